"""A diffusers folder: its configurations, its weight files, and the lines of its hash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from styletune.errors import BaseModelError, NotFound, StyletuneError
from styletune.models.weight_files import cached_sha256, read_header

_TOKENIZER_FILES = ("merges.txt", "tokenizer.json", "vocab.json")
_TOKENIZER_KEYS = ("bos_token", "eos_token", "model_max_length", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder, what the user called it, and the command that fetches it (Hub models only)."""

    path: Path
    where: str
    fetch: str | None = None

    def incomplete(self, message: str) -> StyletuneError:
        """The error for something that is missing: fetching helps, or the folder is wrong."""
        if self.fetch:
            return NotFound(
                f"only a part of the model is on this machine: {message}",
                where=self.where,
                fix=self.fetch,
            )
        return BaseModelError(
            message, where=self.where, fix="copy the whole model folder again, or give another"
        )


def read_config(folder: ModelFolder, name: str) -> dict[str, Any]:
    """Read a JSON object of the folder. Raises BaseModelError or NotFound."""
    file = folder.path / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise folder.incomplete(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{file} cannot be read: {error}", where=folder.where) from None
    if not isinstance(content, dict):
        raise BaseModelError(f"{file} is not a JSON object", where=folder.where)
    return content


def weight_files(folder: ModelFolder, part: str, variant: str | None) -> list[Path]:
    """The .safetensors of one part in one variant (None or "fp16"), empty if it has none.

    Raises:
        BaseModelError: an index does not list its shards, or a file is damaged.
        NotFound, BaseModelError: a listed shard is missing.
    """
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    infix = f".{variant}" if variant else ""
    inside = Path(part)
    files = [inside / f"{stem}{infix}.safetensors"]
    files = [f for f in files if (folder.path / f).is_file()]
    index = inside / f"{stem}.safetensors.index{infix}.json"
    if (folder.path / index).is_file():
        shards = read_config(folder, str(index)).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise BaseModelError(f"{folder.path / index} lists no files", where=folder.where)
        files += [inside / name for name in sorted(set(shards.values()))]
    missing = [str(f) for f in files if not (folder.path / f).is_file()]
    if missing:
        raise folder.incomplete(f"its index lists files that are missing: {', '.join(missing)}")
    whole = [folder.path / f for f in files]
    for file in whole:
        read_header(file, folder.where)
    return whole


def choose_variant(folder: ModelFolder, parts: tuple[str, ...]) -> tuple[str | None, list[Path]]:
    """The plain weights when every part has them, else fp16 where there is such a file.

    Raises as ``weight_files``, and when a part has no weights at all.
    """
    plain = {part: weight_files(folder, part, None) for part in parts}
    if all(plain.values()):
        return None, [f for files in plain.values() for f in files]
    chosen: list[Path] = []
    for part in parts:
        files = weight_files(folder, part, "fp16") or plain[part]
        if not files:
            raise folder.incomplete(_why_none(folder.path / part))
        chosen += files
    return "fp16", chosen


def _why_none(directory: Path) -> str:
    names = sorted(p.name for p in directory.glob("*")) if directory.is_dir() else []
    if any("-of-" in n and n.endswith(".safetensors") for n in names):
        return f"{directory.name}/ has shards, but not the index.json that lists them"
    if any(n.endswith(".bin") for n in names):
        return f"{directory.name}/ has no .safetensors weights, only .bin, which can run code"
    return f"{directory.name}/ has no .safetensors weights"


def weight_lines(folder: ModelFolder, files: list[Path]) -> Iterator[str]:
    """Name and SHA-256 of each weight file."""
    for file in files:
        name = file.relative_to(folder.path).as_posix()
        yield f"{name} {cached_sha256(file, folder.where)}"


def config_line(folder: ModelFolder, name: str) -> str:
    """Name and content of a configuration."""
    # Underscored keys tell where a copy came from, not what it does.
    kept = {k: v for k, v in read_config(folder, name).items() if not k.startswith("_")}
    return f"{name} {json.dumps(kept, sort_keys=True)}"


def tokenizer_lines(path: Path, label: str, where: str) -> Iterator[str]:
    """What decides the tokens of a text: vocabulary, merges and special tokens."""
    folder = ModelFolder(path, where)
    names = [name for name in _TOKENIZER_FILES if (path / name).is_file()]
    if "tokenizer.json" not in names and not {"merges.txt", "vocab.json"} <= set(names):
        raise folder.incomplete(f"{path} has no tokenizer (vocab.json and merges.txt)")
    for name in names:
        yield f"{label}/{name} {cached_sha256(path / name, where)}"
    config = read_config(folder, "tokenizer_config.json")
    kept = {k: config[k] for k in _TOKENIZER_KEYS if k in config}
    yield f"{label} {json.dumps(kept, sort_keys=True)}"

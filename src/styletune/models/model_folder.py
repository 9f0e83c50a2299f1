"""What lies in a diffusers folder: configurations, weight files, and their hash."""

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
class Place:
    """A folder, what the user called it, and how to fetch what lacks (Hub models only)."""

    folder: Path
    where: str
    fetch: str | None = None

    def lacks(self, message: str) -> StyletuneError:
        """The error for something that is not there: fetching helps, or the folder is wrong."""
        if self.fetch:
            return NotFound(
                f"only a part of the model is on this machine: {message}",
                where=self.where,
                fix=self.fetch,
            )
        return BaseModelError(
            message, where=self.where, fix="copy the whole model folder again, or give another"
        )


def read_config(place: Place, name: str) -> dict[str, Any]:
    """Read a JSON object of the folder. Raises BaseModelError or NotFound."""
    file = place.folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise place.lacks(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{file} cannot be read: {error}", where=place.where) from None
    if not isinstance(content, dict):
        raise BaseModelError(f"{file} is not a JSON object", where=place.where)
    return content


def weight_files(place: Place, part: str, variant: str | None) -> list[Path]:
    """The .safetensors of one part in one variant (None or "fp16"), empty if it has none.

    Raises:
        BaseModelError: an index does not list its shards, or a file is damaged.
        NotFound, BaseModelError: a listed shard is missing.
    """
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    infix = f".{variant}" if variant else ""
    folder = Path(part)
    files = [folder / f"{stem}{infix}.safetensors"]
    files = [f for f in files if (place.folder / f).is_file()]
    index = folder / f"{stem}.safetensors.index{infix}.json"
    if (place.folder / index).is_file():
        shards = read_config(place, str(index)).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise BaseModelError(f"{place.folder / index} lists no files", where=place.where)
        files += [folder / name for name in sorted(set(shards.values()))]
    missing = [str(f) for f in files if not (place.folder / f).is_file()]
    if missing:
        raise place.lacks(f"its index lists files that are missing: {', '.join(missing)}")
    found = [place.folder / f for f in files]
    for file in found:
        read_header(file, place.where)
    return found


def choose_variant(place: Place, parts: tuple[str, ...]) -> tuple[str | None, list[Path]]:
    """The plain weights when every part has them, else fp16 where there is such a file.

    Raises as ``weight_files``, and when a part has no weights at all.
    """
    plain = {part: weight_files(place, part, None) for part in parts}
    if all(plain.values()):
        return None, [f for files in plain.values() for f in files]
    chosen: list[Path] = []
    for part in parts:
        files = weight_files(place, part, "fp16") or plain[part]
        if not files:
            raise place.lacks(_why_none(place.folder / part))
        chosen += files
    return "fp16", chosen


def _why_none(directory: Path) -> str:
    names = sorted(p.name for p in directory.glob("*")) if directory.is_dir() else []
    if any("-of-" in n and n.endswith(".safetensors") for n in names):
        return f"{directory.name}/ has shards, but not the index.json that lists them"
    if any(n.endswith(".bin") for n in names):
        return f"{directory.name}/ has no .safetensors weights, only .bin, which can run code"
    return f"{directory.name}/ has no .safetensors weights"


def weight_lines(place: Place, files: list[Path]) -> Iterator[str]:
    for file in files:
        name = file.relative_to(place.folder).as_posix()
        yield f"{name} {cached_sha256(file, place.where)}"


def config_line(place: Place, name: str) -> str:
    # Underscored keys tell where a copy came from, not what it does.
    kept = {k: v for k, v in read_config(place, name).items() if not k.startswith("_")}
    return f"{name} {json.dumps(kept, sort_keys=True)}"


def tokenizer_lines(folder: Path, label: str, where: str) -> Iterator[str]:
    """What decides the tokens of a text: vocabulary, merges and special tokens."""
    place = Place(folder, where)
    found = [name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if "tokenizer.json" not in found and not {"merges.txt", "vocab.json"} <= set(found):
        raise place.lacks(f"{folder} has no tokenizer (vocab.json and merges.txt)")
    for name in found:
        yield f"{label}/{name} {cached_sha256(folder / name, where)}"
    config = read_config(place, "tokenizer_config.json")
    kept = {k: config[k] for k in _TOKENIZER_KEYS if k in config}
    yield f"{label} {json.dumps(kept, sort_keys=True)}"

"""A base model on disk or on the Hub -> a checked pipeline with a content hash."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.errors import BaseModelError, NotFound
from styletune.mini import BASE_DIR
from styletune.runs import file_sha256

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionXLPipeline

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_CONFIGS = tuple(f"{p}/config.json" for p in ("unet", "vae", "text_encoder", "text_encoder_2"))
_WEIGHTS = ("diffusion_pytorch_model*.safetensors", "model*.safetensors")


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """Where a base model lies, checked to be whole, before anything heavy is loaded.

    ``hash`` is the SHA-256 over its weight files and the settings that change an image
    (configurations and scheduler); ``resolution`` the side in pixels that its UNet was made for;
    ``variant`` is "fp16" when only such weights are there.
    """

    model: str
    folder: Path
    revision: str | None
    hash: str
    resolution: int
    variant: str | None


def find_base(model: str, revision: str | None, relative_to: Path) -> BaseFiles:
    """Locate a base model: "mini", a local diffusers folder, or a Hub id in the local cache.

    Raises:
        NotFound: no such folder, or a Hub model that is not on this machine (``fix`` is the
            command that fetches it).
        BaseModelError: the folder is not a whole SDXL pipeline; the message names what lacks.
    """
    folder = _folder(model, revision, relative_to)
    where = f"[base] model = {json.dumps(model)}"
    index = folder / "model_index.json"
    if not index.is_file():
        raise BaseModelError(
            f"{folder} holds no model_index.json, so it is not a diffusers model",
            where=where,
            fix="give the folder that contains model_index.json, unet/, vae/ …",
        )
    pipeline = _read_json(index, where).get("_class_name")
    if pipeline != "StableDiffusionXLPipeline":
        raise BaseModelError(f"is a {pipeline}, not a StableDiffusionXLPipeline", where=where)
    weights: dict[str, list[Path]] = {}
    for part in PARTS:
        directory = folder / part
        if not directory.is_dir():
            raise BaseModelError(f"the part {part}/ is missing in {folder}", where=where)
        if part.startswith(("unet", "vae", "text")):
            files = sorted({f for pattern in _WEIGHTS for f in directory.glob(pattern)})
            if not files:
                raise BaseModelError(f"{part}/ has no .safetensors weights", where=where)
            weights[part] = [f for f in files if "non_ema" not in f.name]
    config = _read_json(folder / "unet" / "config.json", where)
    if config.get("addition_embed_type") != "text_time":
        raise BaseModelError("its UNet is not SDXL's (addition_embed_type)", where=where)
    vae_config = _read_json(folder / "vae" / "config.json", where)
    side, channels = config.get("sample_size"), vae_config.get("block_out_channels")
    if not isinstance(side, int) or not isinstance(channels, list):
        raise BaseModelError("its configuration lacks sample_size or channels", where=where)
    plain = {p: [f for f in fs if ".fp16." not in f.name] for p, fs in weights.items()}
    variant = None if all(plain.values()) else "fp16"
    chosen = plain if variant is None else weights
    files = [f for part in chosen.values() for f in part]
    digest = _hash(folder, files, where)
    resolution = side * 2 ** (len(channels) - 1)
    return BaseFiles(model, folder, revision, digest, resolution, variant)


def _folder(model: str, revision: str | None, relative_to: Path) -> Path:
    where = f"[base] model = {json.dumps(model)}"
    if model == "mini":
        return BASE_DIR
    local = (relative_to / model).expanduser().resolve()
    if local.is_dir():
        return local
    looks_local = model.startswith((".", "/", "~")) or model.count("/") != 1
    if looks_local:
        parent = local.parent
        names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        near = difflib.get_close_matches(local.name, names, n=1)
        raise NotFound(
            f"no folder {local}",
            where=where,
            fix=f"did you mean {parent / near[0]}?" if near
            else 'choices: "mini", a local diffusers folder, a Hub id such as '
            '"stabilityai/stable-diffusion-xl-base-1.0"',
        )  # fmt: skip
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        pin = f" --revision {revision}" if revision else ""
        raise NotFound(
            "neither a folder nor a Hub model on this machine",
            where=where,
            fix=f"hf download {model}{pin}",
        ) from None


def _read_json(file: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(f"{file} is missing", where=where) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BaseModelError(f"{file} cannot be read: {error}", where=where) from None
    if not isinstance(content, dict):
        raise BaseModelError(f"{file} is not a JSON object", where=where)
    return content


def _hash(folder: Path, weights: list[Path], where: str) -> str:
    digest = hashlib.sha256()
    for file in weights:
        try:
            line = f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n"
        except OSError as error:
            raise BaseModelError(f"{file} cannot be read: {error}", where=where) from None
        digest.update(line.encode())
    for name in ("model_index.json", "scheduler/scheduler_config.json", *_CONFIGS):
        settings = _read_json(folder / name, where)
        # Underscored keys tell where a copy came from, not what it does.
        kept = {k: v for k, v in settings.items() if not k.startswith("_")}
        digest.update(f"{name} {json.dumps(kept, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def load_pipeline(base: BaseFiles, dtype: torch.dtype, device: str) -> StableDiffusionXLPipeline:
    """Load a whole pipeline; every module is in ``dtype`` on ``device``, frozen, in eval mode.

    Raises:
        BaseModelError: a part cannot be loaded, or did not come out as asked.
    """
    import torch
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        pipe = StableDiffusionXLPipeline.from_pretrained(
            base.folder, dtype=dtype, variant=base.variant, use_safetensors=True,
            add_watermarker=False, local_files_only=True,
        )  # fmt: skip
    except Exception as error:
        raise BaseModelError(
            f"cannot be loaded: {error}",
            where=f"base model {base.folder}",
            fix="fetch it again, or check the named file",
        ) from error
    pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        module: torch.nn.Module = getattr(pipe, name)
        module.to(device=device, dtype=dtype).requires_grad_(False).eval()
        wrong = {(p.dtype, p.device.type) for p in module.parameters()} - {
            (dtype, torch.device(device).type)
        }
        if wrong:
            raise BaseModelError(f"{name} was loaded as {wrong}, asked was {dtype} on {device}")
    return pipe

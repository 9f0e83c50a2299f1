"""A base model on disk or in the Hub's cache -> its files, checked, with a content hash."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from styletune.errors import BaseModelError, NotFound
from styletune.hub import download_command, find_files, find_snapshot, is_hub_id
from styletune.mini import BASE_DIR
from styletune.models.model_folder import (
    Place,
    choose_variant,
    config_line,
    read_config,
    tokenizer_lines,
    weight_lines,
)
from styletune.models.recognize import why_not_sdxl, why_not_vae
from styletune.models.single_file import RESOLUTION_PX, SDXL_CONFIGS, configs_for
from styletune.models.weight_files import cached_sha256, read_header

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_WITH_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_STOCK = "stabilityai/stable-diffusion-xl-base-1.0"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True)
class VaeFiles:
    """A separate VAE: a diffusers folder, or one file. ``hash`` covers weights and settings.

    ``factor`` is pixels a latent cell and side; ``scaling_factor`` multiplies latents.
    """

    model: str
    folder: Path
    file: Path | None
    variant: str | None
    hash: str
    factor: int
    scaling_factor: float


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """Where a base model lies, checked to be whole, before anything heavy is loaded.

    ``hash`` is the SHA-256 over all that changes an image: weight files, configurations,
    scheduler, tokenizers and a separate VAE. ``resolution`` is the side in pixels that its UNet
    was made for; ``variant`` "fp16" when a part has only such weights; ``revision`` the commit
    of a Hub model. A checkpoint that is one file has ``file``; ``folder`` is then the one it
    lies in. ``tokenizers`` are the folders of the two tokenizers.
    """

    model: str
    folder: Path
    revision: str | None
    hash: str
    resolution: int
    variant: str | None
    tokenizers: tuple[Path, Path]
    file: Path | None = None
    vae: VaeFiles | None = None


def find_base(
    model: str, revision: str | None, relative_to: Path, vae: str | None = None
) -> BaseFiles:
    """Locate and check a base model and, if given, the VAE that replaces its own.

    ``model`` is "mini", a diffusers folder, a .safetensors checkpoint in the original layout, or
    a Hub id (of which ``revision`` pins a commit) that is on this machine. Nothing is downloaded
    and no weights are loaded; hashes of large files are remembered between calls.

    Raises:
        NotFound: no such folder or file, or a Hub model that is not, or not wholly, on this
            machine (``fix`` is the command that fetches it).
        BaseModelError: it is there but no whole SDXL model; the message says what it is instead
            or what is damaged or missing.
    """
    where = f"[base] model = {json.dumps(model)}"
    separate = find_vae(vae, relative_to) if vae else None
    if model == "mini":
        return _from_folder(model, None, Place(BASE_DIR, where), separate)
    local = _local_path(model, relative_to)
    if local.is_dir():
        return _from_folder(model, revision, Place(local, where), separate)
    if local.is_file():
        return _from_file(model, local, where, separate)
    if not is_hub_id(model) or local.suffix in {".safetensors", *_PICKLES}:
        raise _not_found(local, where)
    snapshot = find_snapshot(model, revision, where)
    fetch = download_command(model, revision)
    if snapshot.unfinished:
        fetch += f"  (continues {snapshot.unfinished} unfinished files)"
    return _from_folder(model, snapshot.commit, Place(snapshot.folder, where, fetch), separate)


def find_vae(model: str, relative_to: Path) -> VaeFiles:
    """Locate and check a VAE: a folder (its own, or a whole pipeline's), a file, or a Hub id.

    Raises as ``find_base``. A single file does not say how its latents are scaled; SDXL's
    factor is taken.
    """
    where = f"[base] vae = {json.dumps(model)}"
    local = _local_path(model, relative_to)
    if local.is_file():
        problem = why_not_vae(read_header(local, where).shapes)
        if problem:
            raise BaseModelError(f"{local.name} {problem}", where=where)
        config = SDXL_CONFIGS["vae"]
        digest = _digest([f"file {cached_sha256(local, where)}", json.dumps(config)])
        return VaeFiles(model, local.parent, local, None, digest, *_scales(config, where))
    if local.is_dir():
        place = Place(local, where)
    elif is_hub_id(model) and local.suffix not in {".safetensors", *_PICKLES}:
        patterns = ("config.json", "*.safetensors")
        fetch = download_command(model, None, patterns)
        place = Place(find_snapshot(model, None, where).folder, where, fetch)
    else:
        raise _not_found(local, where)
    if (place.folder / "vae").is_dir():
        place = Place(place.folder / "vae", where, place.fetch)
    config = read_config(place, "config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise BaseModelError(f"is a {config.get('_class_name')}, not an AutoencoderKL", where=where)
    variant, files = choose_variant(place, ("",))
    digest = _digest([*weight_lines(place, files), config_line(place, "config.json")])
    return VaeFiles(model, place.folder, None, variant, digest, *_scales(config, where))


def _local_path(text: str, relative_to: Path) -> Path:
    return (relative_to / Path(text).expanduser()).resolve()


def _not_found(local: Path, where: str) -> NotFound:
    parent = local.parent
    names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(local.name, names, n=1)
    choices = f'"mini", a diffusers folder, a .safetensors file, a Hub id such as "{_STOCK}"'
    return NotFound(
        f"no folder or file {local}",
        where=where,
        fix=f"did you mean {parent / near[0]}?" if near else f"choices: {choices}",
    )


def _from_folder(model: str, revision: str | None, place: Place, vae: VaeFiles | None) -> BaseFiles:
    folder, where = place.folder, place.where
    if not (folder / "model_index.json").is_file():
        if place.fetch:
            raise place.lacks("model_index.json is missing")
        raise BaseModelError(
            f"{folder} holds no model_index.json, so it is not a diffusers model",
            where=where,
            fix="give the folder that contains model_index.json, unet/, vae/ …",
        )
    pipeline = read_config(place, "model_index.json").get("_class_name")
    if pipeline != "StableDiffusionXLPipeline":
        raise BaseModelError(f"is a {pipeline}, not a StableDiffusionXLPipeline", where=where)
    parts = tuple(p for p in PARTS if vae is None or p != "vae")
    for part in parts:
        if not (folder / part).is_dir():
            raise place.lacks(f"the part {part}/ is missing in {folder}")
    weighty = tuple(p for p in parts if p in _WITH_WEIGHTS)
    variant, files = choose_variant(place, weighty)
    config = read_config(place, "unet/config.json")
    if config.get("addition_embed_type") != "text_time":
        raise BaseModelError("its UNet is not SDXL's (addition_embed_type)", where=where)
    if (folder / "vae" / "config.json").is_file():
        scales = _scales(read_config(place, "vae/config.json"), where)
        _check_vae_fits(vae, *scales)
    elif vae is None:
        raise place.lacks("vae/config.json is missing")
    else:
        scales = vae.factor, vae.scaling_factor
    side = config.get("sample_size")
    if not isinstance(side, int):
        raise BaseModelError("its UNet's configuration lacks sample_size", where=where)
    check_schedule(read_config(place, "scheduler/scheduler_config.json"), where)
    tokenizers = (folder / "tokenizer", folder / "tokenizer_2")
    names = ("model_index.json", "scheduler/scheduler_config.json")
    digest = _digest(
        [
            *weight_lines(place, files),
            *(config_line(place, name) for name in names),
            *(config_line(place, f"{part}/config.json") for part in weighty),
            *(line for t in tokenizers for line in tokenizer_lines(t, t.name, where)),
            *_vae_lines(vae),
        ]
    )
    return BaseFiles(
        model, folder, revision, digest, side * scales[0], variant, tokenizers, None, vae
    )


def check_schedule(config: Mapping[str, Any], where: str) -> None:
    """Refuse a base whose noise process is not DDPM's (arXiv 2006.11239). Raises BaseModelError."""
    name, predicts = str(config.get("_class_name")), config.get("prediction_type", "epsilon")
    if "EDM" in name or "Flow" in name:
        raise BaseModelError(
            f"its scheduler is {name}; only bases with a DDPM noise schedule can be trained",
            where=where,
            fix="choose a base model such as stabilityai/stable-diffusion-xl-base-1.0",
        )
    if predicts not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"its UNet predicts {predicts}; only epsilon and v_prediction can be trained",
            where=where,
        )


def _from_file(model: str, file: Path, where: str, vae: VaeFiles | None) -> BaseFiles:
    header = read_header(file, where)
    problem = why_not_sdxl(header.shapes, needs_vae=vae is None)
    if problem:
        raise BaseModelError(
            f"{file.name} {problem}", where=where, fix="give an SDXL base model's checkpoint"
        )
    _check_vae_fits(vae, *_scales(SDXL_CONFIGS["vae"], where))
    tokenizers = _find_tokenizers(file, where)
    configs = configs_for(header.shapes, header.metadata)
    digest = _digest(
        [
            f"file {cached_sha256(file, where)}",
            json.dumps(configs, sort_keys=True),
            *(
                x
                for t, n in zip(tokenizers, "12", strict=True)
                for x in tokenizer_lines(t, n, where)
            ),
            *_vae_lines(vae),
        ]
    )
    return BaseFiles(model, file.parent, None, digest, RESOLUTION_PX, None, tokenizers, file, vae)


def _find_tokenizers(file: Path, where: str) -> tuple[Path, Path]:
    """A single file has no vocabulary: beside it, or in a model on this machine.

    Both of SDXL's text encoders use CLIP's vocabulary; they differ in the padding alone.
    """
    needed = ("vocab.json", "merges.txt", "tokenizer_config.json")
    pair = tuple(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in needed)
    beside = file.parent if all((file.parent / name).is_file() for name in pair) else None
    folder = beside or find_files(_STOCK, pair)
    if folder:
        return folder / "tokenizer", folder / "tokenizer_2"
    clip = find_files("openai/clip-vit-large-patch14", needed)
    if clip:
        return clip, clip
    patterns = ("tokenizer*/*", "*.json", "scheduler/*")
    raise NotFound(
        f"{file.name} holds no tokenizer, and none is on this machine",
        where=where,
        fix=f"{download_command(_STOCK, None, patterns)}, or put the folders tokenizer/ and "
        "tokenizer_2/ of any SDXL model beside it",
    )


def _scales(config: object, where: str) -> tuple[int, float]:
    """(pixels a latent cell, factor of the latents) from a VAE's configuration."""
    content = dict(config) if isinstance(config, dict) else {}
    channels, factor = content.get("block_out_channels"), content.get("scaling_factor", 0.18215)
    if not isinstance(channels, list) or not channels or not isinstance(factor, int | float):
        raise BaseModelError("the VAE's configuration lacks its channels", where=where)
    return 2 ** (len(channels) - 1), float(factor)


def _check_vae_fits(vae: VaeFiles | None, factor: int, scaling_factor: float) -> None:
    if vae is not None and (vae.factor, vae.scaling_factor) != (factor, scaling_factor):
        raise BaseModelError(
            f"its latents (1/{vae.factor} of the side, times {vae.scaling_factor:g}) are not the "
            f"base's (1/{factor}, times {scaling_factor:g}): it belongs to another kind of model",
            where=f"[base] vae = {json.dumps(vae.model)}",
            fix="leave it out, or give a VAE made for the base model",
        )


def _vae_lines(vae: VaeFiles | None) -> list[str]:
    return [f"vae {vae.hash}"] if vae else []


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()

"""A separate VAE on disk or in the Hub's cache -> its files, checked, with a content hash."""

from __future__ import annotations

import json
from pathlib import Path

from styletune.errors import BaseModelError
from styletune.hub import download_command, find_snapshot, is_hub_id
from styletune.models.base import VaeFiles
from styletune.models.family import Family
from styletune.models.locate import (
    FILE_SUFFIXES,
    digest_of,
    local_path,
    not_found,
    refuse_revision,
)
from styletune.models.model_folder import (
    ModelFolder,
    choose_variant,
    config_line,
    read_config,
    weight_lines,
)
from styletune.models.names import local_name, public_name
from styletune.models.recognize import why_not_vae
from styletune.models.weight_files import cached_sha256, read_header


def find_vae(
    model: str, relative_to: Path, family: Family, revision: str | None = None
) -> VaeFiles:
    """Locate and check a VAE: a folder (its own, or a whole pipeline's), a file, or a Hub id.

    A single file does not say how its latents are scaled: it is taken for ``family``'s.

    Raises:
        NotFound, BaseModelError: as ``find_base``.
    """
    where = f"[base] vae = {json.dumps(model)}"
    local = local_path(model, relative_to)
    if local.exists():
        refuse_revision(revision, "vae_revision", local)
    if local.is_file():
        problem = why_not_vae(read_header(local, where).shapes)
        if problem:
            raise BaseModelError(f"{local.name} {problem}", where=where)
        config = family.vae
        digest = digest_of([f"file {cached_sha256(local, where)}", json.dumps(config)])
        scales = vae_scales(config, where)
        return VaeFiles(model, local.parent, local, None, digest, *scales, local_name(model))
    if local.is_dir():
        folder = ModelFolder(local, where)
    elif is_hub_id(model) and local.suffix not in FILE_SUFFIXES:
        patterns = ("config.json", "*.safetensors")
        fetch = download_command(model, revision, patterns)
        folder = ModelFolder(find_snapshot(model, revision, where).folder, where, fetch)
    else:
        raise not_found(local, where)
    if (folder.path / "vae").is_dir():
        folder = ModelFolder(folder.path / "vae", where, folder.fetch)
    config = read_config(folder, "config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise BaseModelError(f"is a {config.get('_class_name')}, not an AutoencoderKL", where=where)
    variant, files = choose_variant(folder, ("",))
    digest = digest_of([*weight_lines(folder, files), config_line(folder, "config.json")])
    public = public_name(model, "local" if local.is_dir() else "hub")
    return VaeFiles(model, folder.path, None, variant, digest, *vae_scales(config, where), public)


def vae_scales(config: object, where: str) -> tuple[int, float]:
    """(pixels per latent cell and side, factor of the latents) from a VAE's configuration."""
    content = dict(config) if isinstance(config, dict) else {}
    channels, factor = content.get("block_out_channels"), content.get("scaling_factor", 0.18215)
    if not isinstance(channels, list) or not channels or not isinstance(factor, int | float):
        raise BaseModelError("the VAE's configuration lacks its channels", where=where)
    return 2 ** (len(channels) - 1), float(factor)


def check_vae_fits(vae: VaeFiles | None, factor: int, scaling_factor: float) -> None:
    """Refuse a VAE whose latents are not those of the base's own.

    Raises:
        BaseModelError: they have another size or scale.
    """
    if vae is not None and (vae.factor, vae.scaling_factor) != (factor, scaling_factor):
        raise BaseModelError(
            f"its latents (1/{vae.factor} of the side, times {vae.scaling_factor:g}) are not the "
            f"base's (1/{factor}, times {scaling_factor:g}): it belongs to another kind of model",
            where=f"[base] vae = {json.dumps(vae.model)}",
            fix="leave it out, or give a VAE made for the base model",
        )

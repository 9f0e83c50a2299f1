"""A base model on disk or in the Hub's cache -> its files, checked, with a content hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from styletune.errors import BaseModelError, NotFound
from styletune.hub import download_command, find_cached_files, find_snapshot, is_hub_id
from styletune.models.base import BaseFiles, VaeFiles
from styletune.models.families import DEFAULT_FAMILY, FAMILIES, find_family
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
    tokenizer_lines,
    weight_lines,
)
from styletune.models.names import BUNDLED
from styletune.models.single_file import configs_for
from styletune.models.vae_files import check_vae_fits, find_vae, vae_scales
from styletune.models.weight_files import cached_sha256, read_header


def find_base(
    model: str,
    revision: str | None,
    relative_to: Path,
    vae: str | None = None,
    vae_revision: str | None = None,
) -> BaseFiles:
    """Locate and check a base model and, if given, the VAE that replaces its own.

    ``model`` is a bundled model's name, a diffusers folder, a .safetensors checkpoint in the
    original layout, or the Hub id of a model on this machine, whose commit ``revision`` pins;
    ``vae_revision`` does the same for a VAE of its own.
    Nothing is downloaded and no weights are loaded; hashes of large files are remembered between
    calls.

    Raises:
        NotFound: no such folder or file, or a Hub model that is not, or not wholly, on this
            machine (``fix`` is the command that fetches it).
        BaseModelError: it is not a whole model of a known family; the message says what it is
            instead, or what is damaged or missing.
        BadInput: a revision of something that is not from the Hub.
    """
    where = f"[base] model = {json.dumps(model)}"
    # A VAE's file does not tell its family, and the base's is not known yet.
    separate = find_vae(vae, relative_to, DEFAULT_FAMILY, vae_revision) if vae else None
    if model in BUNDLED:
        bundled = BUNDLED[model].folder
        refuse_revision(revision, "revision", bundled)
        base = _from_folder(model, None, ModelFolder(bundled, where), separate)
        return replace(base, origin="bundled")
    local = local_path(model, relative_to)
    if local.exists():
        refuse_revision(revision, "revision", local)
    if local.is_dir():
        return _from_folder(model, None, ModelFolder(local, where), separate)
    if local.is_file():
        return _from_file(model, local, where, separate)
    if not is_hub_id(model) or local.suffix in FILE_SUFFIXES:
        raise not_found(local, where)
    snapshot = find_snapshot(model, revision, where)
    fetch = download_command(model, revision)
    if snapshot.unfinished:
        fetch += f"  (continues {snapshot.unfinished} unfinished files)"
    folder = ModelFolder(snapshot.folder, where, fetch)
    return replace(_from_folder(model, snapshot.commit, folder, separate), origin="hub")


def _from_folder(
    model: str, revision: str | None, folder: ModelFolder, vae: VaeFiles | None
) -> BaseFiles:
    where = folder.where
    family = _family_of_folder(folder)
    weighty = tuple(p for p in ("unet", "vae", *family.components[1:]) if not (vae and p == "vae"))
    for part in (*weighty, *family.tokenizers, "scheduler"):
        if not (folder.path / part).is_dir():
            raise folder.incomplete(f"the part {part}/ is missing in {folder.path}")
    variant, files = choose_variant(folder, weighty)
    unet = read_config(folder, "unet/config.json")
    if unet.get("addition_embed_type") != family.unet.get("addition_embed_type"):
        raise BaseModelError(f"its UNet is not {family.name}'s (addition_embed_type)", where=where)
    side = unet.get("sample_size")
    if not isinstance(side, int):
        raise BaseModelError("its UNet's configuration lacks sample_size", where=where)
    factor = _vae_factor(folder, vae)
    check_schedule(read_config(folder, "scheduler/scheduler_config.json"), where)
    tokenizers = tuple(folder.path / name for name in family.tokenizers)
    names = ("model_index.json", "scheduler/scheduler_config.json")
    digest = digest_of(
        [
            *weight_lines(folder, files),
            *(config_line(folder, name) for name in names),
            *(config_line(folder, f"{part}/config.json") for part in weighty),
            *(line for t in tokenizers for line in tokenizer_lines(t, t.name, where)),
            *_vae_lines(vae),
        ]
    )
    return BaseFiles(
        family=family,
        model=model,
        folder=folder.path,
        revision=revision,
        hash=digest,
        resolution=side * factor,
        variant=variant,
        tokenizers=tokenizers,
        vae=vae,
    )


def _family_of_folder(folder: ModelFolder) -> Family:
    """The family that a folder's ``model_index.json`` names."""
    if not (folder.path / "model_index.json").is_file():
        if folder.fetch:
            raise folder.incomplete("model_index.json is missing")
        raise BaseModelError(
            f"{folder.path} holds no model_index.json, so it is not a diffusers model",
            where=folder.where,
            fix="give the folder that contains model_index.json, unet/, vae/ …",
        )
    pipeline = read_config(folder, "model_index.json").get("_class_name")
    family = find_family(str(pipeline))
    if family is None:
        known = " or ".join(f.pipeline for f in FAMILIES)
        raise BaseModelError(f"is a {pipeline}, not a {known}", where=folder.where)
    return family


def _vae_factor(folder: ModelFolder, vae: VaeFiles | None) -> int:
    """Pixels per latent cell and side of the folder's VAE, or of the one that replaces it."""
    if (folder.path / "vae" / "config.json").is_file():
        scales = vae_scales(read_config(folder, "vae/config.json"), folder.where)
        check_vae_fits(vae, *scales)
        return scales[0]
    if vae is None:
        raise folder.incomplete("vae/config.json is missing")
    return vae.factor


def check_schedule(config: Mapping[str, Any], where: str) -> None:
    """Refuse a base whose noise process is not DDPM's (arXiv 2006.11239). Raises BaseModelError."""
    name, predicts = str(config.get("_class_name")), config.get("prediction_type", "epsilon")
    if "EDM" in name or "Flow" in name:
        raise BaseModelError(
            f"its scheduler is {name}; only bases with a DDPM noise schedule can be trained",
            where=where,
            fix=f"choose a base model such as {DEFAULT_FAMILY.stock_model}",
        )
    if predicts not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"its UNet predicts {predicts}; only epsilon and v_prediction can be trained",
            where=where,
        )


def _from_file(model: str, file: Path, where: str, vae: VaeFiles | None) -> BaseFiles:
    family = DEFAULT_FAMILY  # the only one with a reader for single files
    header = read_header(file, where)
    problem = family.why_not(header.shapes, vae is None)
    if problem:
        raise BaseModelError(
            f"{file.name} {problem}",
            where=where,
            fix=f"give an {family.name} base model's checkpoint",
        )
    check_vae_fits(vae, *vae_scales(family.vae, where))
    tokenizers = _find_tokenizers(family, file, where)
    configs = configs_for(family, header.shapes, header.metadata)
    digest = digest_of(
        [
            f"file {cached_sha256(file, where)}",
            json.dumps(configs, sort_keys=True),
            *(
                line
                for number, folder in enumerate(tokenizers, start=1)
                for line in tokenizer_lines(folder, str(number), where)
            ),
            *_vae_lines(vae),
        ]
    )
    return BaseFiles(
        family=family,
        model=model,
        folder=file.parent,
        revision=None,
        hash=digest,
        resolution=family.resolution_px,
        variant=None,
        tokenizers=tokenizers,
        file=file,
        vae=vae,
    )


def _find_tokenizers(family: Family, file: Path, where: str) -> tuple[Path, ...]:
    """A single file has no vocabulary: beside it, or in a model on this machine.

    All text encoders of a family use one vocabulary; their tokenizers differ in the padding alone.
    """
    needed = ("vocab.json", "merges.txt", "tokenizer_config.json")
    names = tuple(f"{part}/{name}" for part in family.tokenizers for name in needed)
    beside = file.parent if all((file.parent / name).is_file() for name in names) else None
    folder = beside or find_cached_files(family.stock_model, names)
    if folder:
        return tuple(folder / part for part in family.tokenizers)
    shared = find_cached_files(family.vocabulary_model, needed)
    if shared:
        return (shared,) * len(family.tokenizers)
    patterns = ("tokenizer*/*", "*.json", "scheduler/*")
    folders = " and ".join(f"{part}/" for part in family.tokenizers)
    raise NotFound(
        f"{file.name} holds no tokenizer, and none is on this machine",
        where=where,
        fix=f"{download_command(family.stock_model, None, patterns)}, or put the folders {folders} "
        f"of any {family.name} model beside it",
    )


def _vae_lines(vae: VaeFiles | None) -> list[str]:
    return [f"vae {vae.hash}"] if vae else []

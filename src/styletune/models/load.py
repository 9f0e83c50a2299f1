"""A base model's files -> a checked pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.errors import BaseModelError, StyletuneError
from styletune.models.base import BaseFiles, VaeFiles
from styletune.models.family import BaseConfigs, Config
from styletune.models.model_folder import ModelFolder, weight_files
from styletune.models.single_file import Configs, configs_for, load_single_file, load_vae_file
from styletune.models.weight_files import FETCH_AGAIN, read_header

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DiffusionPipeline

    from styletune.recipe.training_sections import Quantization


def base_configs(base: BaseFiles) -> BaseConfigs:
    """The configurations of UNet, VAE and text encoders, without weights."""
    encoders = tuple(
        _config(base, encoder.name, "config.json") for encoder in base.family.text_encoders
    )
    unet, vae = (_config(base, part, "config.json") for part in ("unet", "vae"))
    return BaseConfigs(base.family, unet, vae, encoders)


def scheduler_config(base: BaseFiles) -> Config:
    """The noise schedule's settings."""
    return _config(base, "scheduler", "scheduler_config.json")


def _config(base: BaseFiles, part: str, name: str) -> Config:
    if base.file is not None:
        return _file_configs(base, base.file)[part]
    folder = base.folder / part
    if part == "vae" and base.vae is not None and base.vae.file is None:
        folder = base.vae.folder
    config: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return config


def _file_configs(base: BaseFiles, file: Path) -> Configs:
    header = read_header(file, str(file))
    return configs_for(base.family, header.shapes, header.metadata)


def load_pipeline(
    base: BaseFiles,
    dtype: torch.dtype,
    device: str,
    quantization: Quantization = "none",
    vae_dtype: torch.dtype | None = None,
) -> DiffusionPipeline:
    """Load a whole pipeline in ``dtype``, frozen, in eval mode, its UNet on ``device``.

    Text encoders and VAE stay in the host's memory; ``placed`` lets them visit the device. With
    ``quantization`` the UNet's attention blocks have 8- or 4-bit linear weights instead; it is
    never on the device in full. ``vae_dtype`` is the VAE's alone: float32 for encoding a data set,
    read in float32 rather than rounded on the way.

    Raises:
        BaseModelError: a part cannot be loaded, or not in this dtype or on this device.
        BadInput: ``quantization`` without a working bitsandbytes.
    """
    from styletune.models.quantize import quantize_unet

    _quiet()
    vae_dtype = vae_dtype or dtype
    try:
        pipe = _load(base, dtype, vae_dtype)
    except StyletuneError:
        raise
    except Exception as error:
        raise BaseModelError(
            f"cannot be loaded: {error}",
            where=f"base model {base.file or base.folder}",
            fix=FETCH_AGAIN,
        ) from error
    pipe.set_progress_bar_config(disable=True)
    for name in ("vae", *base.family.components):
        module: torch.nn.Module = getattr(pipe, name)
        _check_has_weights(module, name, base)
        part_dtype = vae_dtype if name == "vae" else dtype
        module.to(dtype=part_dtype).requires_grad_(False).eval()
        if name == "unet":
            quantize_unet(pipe.unet, quantization, device)
            module.to(device=device)
            _check_loaded(module, name, part_dtype, device, quantization)
        else:
            _check_loaded(module, name, part_dtype, "cpu", "none")
    # Several images at once would need as many times the memory, and take no less time.
    pipe.vae.enable_slicing()
    return pipe


def _load(base: BaseFiles, dtype: torch.dtype, vae_dtype: torch.dtype) -> DiffusionPipeline:
    import diffusers

    family = base.family
    vae = _load_vae(base, base.vae, vae_dtype) if base.vae else None
    if base.file is not None:
        configs = _file_configs(base, base.file)
        vae = vae or load_vae_file(base.file, family, configs, vae_dtype)
        return load_single_file(base.file, family, base.tokenizers, configs, dtype, vae)
    replaced = {"vae": vae} if vae is not None else {}
    return getattr(diffusers, family.pipeline).from_pretrained(
        base.folder,
        dtype={"default": dtype, "vae": vae_dtype},
        variant=base.variant,
        use_safetensors=True,
        local_files_only=True,
        **family.load_options,
        **replaced,
    )


def _load_vae(base: BaseFiles, vae: VaeFiles, dtype: torch.dtype) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    if vae.file is not None:
        configs = configs_for(base.family, {}, {})
        return load_vae_file(vae.file, base.family, configs, dtype)
    return AutoencoderKL.from_pretrained(
        vae.folder, dtype=dtype, variant=vae.variant, use_safetensors=True, local_files_only=True
    )


def _check_has_weights(module: torch.nn.Module, name: str, base: BaseFiles) -> None:
    """Refuse missing weights: diffusers leaves them empty, transformers makes up random ones."""
    missing = [n for n, p in module.named_parameters() if p.device.type == "meta"]
    if name in base.family.components[1:] and base.file is None:
        folder = ModelFolder(base.folder, f"base model {base.folder}")
        files = weight_files(folder, name, base.variant) or weight_files(folder, name, None)
        prefix = "text_model."  # depends on the version that saved or loads
        names = {n.removeprefix(prefix) for f in files for n in read_header(f, folder.where).shapes}
        missing += [n for n, _ in module.named_parameters() if n.removeprefix(prefix) not in names]
    if missing:
        raise BaseModelError(
            f"{len(missing)} weights of {name} are missing, the first: {missing[0]}",
            where=f"base model {base.file or base.folder}",
            fix=FETCH_AGAIN,
        )


def _check_loaded(
    module: torch.nn.Module, name: str, dtype: torch.dtype, device: str, quantization: Quantization
) -> None:
    """Never assume what a library loaded: dtype, device and quantization of every parameter."""
    import torch

    from styletune.models.quantize import check_quantized, eligible_linears

    if name == "unet":
        check_quantized(module, quantization)
    quantized = (
        {f"{n}.weight" for n in eligible_linears(module)} if quantization != "none" else set()
    )
    kind = torch.device(device).type
    wrong = {
        (p.dtype, p.device.type)
        for n, p in module.named_parameters()
        if p.device.type != kind or (p.dtype != dtype and n not in quantized)
    }
    if wrong:
        raise BaseModelError(f"{name} was loaded as {wrong}, expected {dtype} on {device}")


def _quiet() -> None:
    """Silence the libraries' bars and notes about defaults."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

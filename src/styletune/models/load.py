"""A base model's files -> a checked pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from styletune.errors import BaseModelError, StyletuneError
from styletune.models.base_files import BaseFiles, VaeFiles, find_base
from styletune.models.model_folder import Place, weight_files
from styletune.models.single_file import (
    SDXL_CONFIGS,
    configs_for,
    load_single_file,
    load_vae_file,
)
from styletune.models.weight_files import FETCH_AGAIN, read_header

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline

    from styletune.models.quantize import Quantization

__all__ = [
    "BaseFiles",
    "VaeFiles",
    "base_configs",
    "find_base",
    "load_pipeline",
    "scheduler_config",
]


def base_configs(base: BaseFiles) -> dict[str, Mapping[str, Any]]:
    """The configuration of "unet", "vae", "text_encoder" and "text_encoder_2", without weights."""
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {part: _config(base, part, "config.json") for part in parts}


def scheduler_config(base: BaseFiles) -> Mapping[str, Any]:
    """The noise schedule's settings."""
    return _config(base, "scheduler", "scheduler_config.json")


def _config(base: BaseFiles, part: str, name: str) -> Mapping[str, Any]:
    if base.file is not None:
        header = read_header(base.file, str(base.file))
        return configs_for(header.shapes, header.metadata)[part]
    folder = base.folder / part
    if part == "vae" and base.vae is not None and base.vae.file is None:
        folder = base.vae.folder
    found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def load_pipeline(
    base: BaseFiles,
    dtype: torch.dtype,
    device: str,
    quantization: Quantization = "none",
    vae_dtype: torch.dtype | None = None,
) -> StableDiffusionXLPipeline:
    """Load a whole pipeline in ``dtype``, frozen, in eval mode, its UNet on ``device``.

    Text encoders and VAE stay in the host's memory; who needs them lets them visit. With
    ``quantization`` the UNet's attention blocks have 8- or 4-bit linear weights instead; it never
    lies on the device in full. ``vae_dtype`` is the VAE's alone: float32 for encoding a data set,
    read in float32 rather than rounded on the way.

    Raises:
        BaseModelError: a part cannot be loaded, or did not come out as asked.
        BadInput: quantisation is asked for and bitsandbytes cannot be used.
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
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        module: torch.nn.Module = getattr(pipe, name)
        _check_has_weights(module, name, base)
        wanted = vae_dtype if name == "vae" else dtype
        module.to(dtype=wanted).requires_grad_(False).eval()
        if name == "unet":
            quantize_unet(pipe.unet, quantization, device)
            module.to(device=device)
            _check_loaded(module, name, wanted, device, quantization)
        else:
            _check_loaded(module, name, wanted, "cpu", "none")
    # Several images at once would need as many times the memory, and take no less time.
    pipe.vae.enable_slicing()
    return pipe


def _load(base: BaseFiles, dtype: torch.dtype, vae_dtype: torch.dtype) -> StableDiffusionXLPipeline:
    from diffusers import StableDiffusionXLPipeline

    vae = _load_vae(base.vae, vae_dtype) if base.vae else None
    if base.file is not None:
        header = read_header(base.file, str(base.file))
        configs = configs_for(header.shapes, header.metadata)
        vae = vae or load_vae_file(base.file, configs, vae_dtype)
        return load_single_file(base.file, configs, base.tokenizers, dtype, vae)
    replaced = {"vae": vae} if vae is not None else {}
    return StableDiffusionXLPipeline.from_pretrained(
        base.folder,
        dtype={"default": dtype, "vae": vae_dtype},
        variant=base.variant,
        use_safetensors=True,
        add_watermarker=False,
        local_files_only=True,
        **replaced,
    )


def _load_vae(vae: VaeFiles, dtype: torch.dtype) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    if vae.file is not None:
        return load_vae_file(vae.file, SDXL_CONFIGS, dtype)
    return AutoencoderKL.from_pretrained(
        vae.folder, dtype=dtype, variant=vae.variant, use_safetensors=True, local_files_only=True
    )


def _check_has_weights(module: torch.nn.Module, name: str, base: BaseFiles) -> None:
    """Weights that a file lacks: diffusers leaves them empty, transformers draws random ones."""
    missing = [n for n, p in module.named_parameters() if p.device.type == "meta"]
    if name.startswith("text_encoder") and base.file is None:
        place = Place(base.folder, f"base model {base.folder}")
        files = weight_files(place, name, base.variant) or weight_files(place, name, None)
        prefix = "text_model."  # depends on the version that saved or loads
        found = {n.removeprefix(prefix) for f in files for n in read_header(f, place.where).shapes}
        missing += [n for n, _ in module.named_parameters() if n.removeprefix(prefix) not in found]
    if missing:
        raise BaseModelError(
            f"{len(missing)} weights of {name} are missing, the first: {missing[0]}",
            where=f"base model {base.file or base.folder}",
            fix=FETCH_AGAIN,
        )


def _check_loaded(
    module: torch.nn.Module, name: str, dtype: torch.dtype, device: str, quantization: Quantization
) -> None:
    """Never assume what a library loaded: dtype, device and quantisation of every parameter."""
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
        raise BaseModelError(f"{name} was loaded as {wrong}, asked was {dtype} on {device}")


def _quiet() -> None:
    """One line of ours says more than the libraries' bars and notes about defaults."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

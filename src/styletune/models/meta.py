"""Models of shapes alone, on the meta device: enough to count with, and no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from styletune.models.family import Config, Family


def meta_unet(config: Config) -> UNet2DConditionModel:
    """A frozen UNet, float32 (2,567,463,684 parameters for SDXL)."""
    with torch.device("meta"):
        return UNet2DConditionModel(**_public(config)).requires_grad_(False)


def meta_vae(config: Config) -> AutoencoderKL:
    """A frozen VAE, float32 (83,653,863 parameters for SDXL)."""
    with torch.device("meta"):
        return AutoencoderKL(**_public(config)).requires_grad_(False)


def meta_text_encoders(family: Family, configs: Sequence[Config]) -> list[nn.Module]:
    """A family's frozen text encoders of these configurations, float32."""
    encoders: list[nn.Module] = []
    for encoder, config in zip(family.text_encoders, configs, strict=True):
        with torch.device("meta"):
            made = getattr(transformers, encoder.model_class)(
                transformers.CLIPTextConfig(**_public(config))
            )
        encoders.append(made.requires_grad_(False))
    return encoders


def _public(config: Config) -> dict[str, Any]:
    """Without the underscored keys that a saved ``config.json`` carries."""
    return {k: v for k, v in config.items() if not k.startswith("_")}

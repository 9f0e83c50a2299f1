"""What the adapters' tests share: models, random adapters, images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from styletune.adapters.file import AdapterSpec
from styletune.adapters.inject import (
    adapter_parameters,
    inject_adapter,
    load_into,
    target_modules,
    text_encoder_modules,
)
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from styletune.models.sdxl import SDXL
from styletune.recipe.training_sections import AdapterSection


def section(kind: str, rank: int, alpha: float, **keys: Any) -> AdapterSection:
    """[adapter] with these keys; a rank for text encoders means both of them."""
    text = {"text_encoders": "both"} if "text_encoder_rank" in keys else {}
    return AdapterSection.model_validate(
        {"kind": kind, "rank": rank, "alpha": alpha, **text, **keys}
    )


LORA = section("lora", 4, 10.0)


def mini_pipe(dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    return load_pipeline(find_base("mini", None, Path()), dtype, "cpu")


def sdxl_unet() -> UNet2DConditionModel:
    """The true SDXL configuration, without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def adapter_tensors(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A copy of the injected adapter, float32, by file name."""
    return {k: p.detach().float().cpu().clone() for k, p in adapter_parameters(models).items()}


def models_of(pipe: StableDiffusionXLPipeline) -> dict[str, nn.Module]:
    return {
        "unet": pipe.unet,
        "text_encoder": pipe.text_encoder,
        "text_encoder_2": pipe.text_encoder_2,
    }


def spec_of(shape: AdapterSection) -> AdapterSpec:
    return AdapterSpec(shape.rank, shape.base_alpha, "b", "r", 7, shape.kind, shape.rslora)


def inject(
    pipe: StableDiffusionXLPipeline,
    shape: AdapterSection,
    target: str | tuple[str, ...] = "attention",
    text: bool = False,
) -> dict[str, nn.Module]:
    """Inject into the UNet and, on request, both text encoders; the models it went into."""
    modules = {"unet": target_modules(pipe.unet, target, SDXL, conv=shape.conv_rank is not None)}
    if text:
        for name in ("text_encoder", "text_encoder_2"):
            modules[name] = text_encoder_modules(getattr(pipe, name))
    models = {name: getattr(pipe, name) for name in modules}
    inject_adapter(models, shape, modules, seed=3)
    return models


def shake(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random values that change an image without destroying it."""
    generator = torch.Generator().manual_seed(5)
    shaken = {}
    for key, value in tensors.items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("lora_magnitude_vector"):
            shaken[key] = value * (1 + 0.2 * noise.tanh())
        elif ".hada_" in key or ".lokr_" in key:
            shaken[key] = 0.2 * noise
        else:
            shaken[key] = 0.06 * noise
    return shaken


def random_adapter(
    shape: AdapterSection = LORA, target: str | tuple[str, ...] = "attention", text: bool = False
) -> tuple[dict[str, Tensor], AdapterSpec, StableDiffusionXLPipeline]:
    """A trained-looking adapter and a pipeline that holds it, injected as in training."""
    pipe = mini_pipe()
    models = inject(pipe, shape, target, text)
    tensors = shake(adapter_tensors(models))
    load_into(models, tensors)
    return tensors, spec_of(shape), pipe


def draw(pipe: StableDiffusionXLPipeline, prompt: str = "the sea at noon") -> np.ndarray:
    images: np.ndarray = pipe(
        prompt,
        num_inference_steps=2,
        output_type="np",
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(1),
    ).images
    return images

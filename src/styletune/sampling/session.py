"""The one way from a base model, an adapter, its schedule and its new tokens to a ready pipeline.

with open_pipeline(base, dtype, device) as pipe:         # draws as the bare base
    make_ready(pipe, trained_as)                          # schedule and new tokens
    with merged_adapter(pipe, tensors, spec, strength):   # a checkpoint, or ``load_published``
        generate_images(pipe, …)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from styletune.adapters.file import AdapterSpec
from styletune.adapters.inject import find_module
from styletune.adapters.tokens import add_tokens, load_token_rows
from styletune.adapters.updates import merged
from styletune.models.base import BaseFiles
from styletune.models.families import family_of
from styletune.models.load import load_pipeline
from styletune.models.quantize import check_quantized, quantize_unet
from styletune.models.schedule import set_sampling_schedule
from styletune.recipe.training_sections import Quantization

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOADED_NAME = "style"


@dataclass(frozen=True, slots=True)
class TrainedAs:
    """What a pipeline needs to know of an adapter's training, besides its weights.

    ``tokens`` are its new tokens; ``tokens_init`` any known words, whose rows stand in until the
    trained ones are loaded.
    """

    prediction_type: str
    zero_terminal_snr: bool
    tokens: tuple[str, ...] = ()
    tokens_init: str = "a"


@contextlib.contextmanager
def open_pipeline(
    base: BaseFiles, dtype: torch.dtype, device: str, vae_dtype: torch.dtype | None = None
) -> Iterator[DiffusionPipeline]:
    """The bare base, as ``load_pipeline`` gives it; at the end the pipeline gives up its models.

    Raises:
        BaseModelError: as ``load_pipeline``.
    """
    pipe = load_pipeline(base, dtype, device, vae_dtype=vae_dtype)
    try:
        yield pipe
    finally:
        for name in ("vae", *base.family.components):
            setattr(pipe, name, None)


def make_ready(pipe: DiffusionPipeline, trained_as: TrainedAs) -> None:
    """Set the noise schedule and add the new tokens that an adapter was trained with.

    Raises:
        RecipeError, BaseModelError: as ``add_tokens``.
    """
    set_sampling_schedule(pipe, trained_as.prediction_type, trained_as.zero_terminal_snr)
    if trained_as.tokens:
        add_tokens(pipe, trained_as.tokens, trained_as.tokens_init)


def models_of(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """What an adapter can change, by component."""
    return {name: getattr(pipe, name) for name in family_of(pipe).components}


def base_weight(pipe: DiffusionPipeline, module: str) -> Tensor:
    """The weight of the module that an adapter calls ``component.path``.

    Raises:
        IntegrityError: this base model has no such module.
    """
    weight = find_module(models_of(pipe), module).weight
    assert isinstance(weight, Tensor)
    return weight


@contextlib.contextmanager
def merged_adapter(
    pipe: DiffusionPipeline, tensors: Mapping[str, Tensor], spec: AdapterSpec, strength: float
) -> Iterator[None]:
    """An adapter's update in the weights, and its new tokens' rows; the weights are put back.

    Raises:
        BaseModelError, IntegrityError: as ``merged`` and ``load_token_rows``.
    """
    load_token_rows(pipe, tensors)
    with merged(models_of(pipe), tensors, spec, strength):
        yield


def load_published(
    pipe: DiffusionPipeline, weights: Path, embeddings: Path | None, strength: float
) -> None:
    """Load the files of a published version, as any consumer of diffusers would.

    Raises:
        IntegrityError: ``embeddings`` holds other tokens than were added.
    """
    if embeddings is not None:
        load_token_rows(pipe, load_file(embeddings))
    pipe.load_lora_weights(str(weights.parent), weight_name=weights.name, adapter_name=LOADED_NAME)
    pipe.set_adapters(LOADED_NAME, strength)


def place_for_training(
    pipe: DiffusionPipeline, device: str, quantization: Quantization, text_encoders: bool
) -> None:
    """Move to the device what a step needs, quantized; the rest stays on the host.

    Raises:
        BadInput, BaseModelError: as ``quantize_unet`` and ``check_quantized``.
    """
    quantize_unet(pipe.unet, quantization, device)
    check_quantized(pipe.unet, quantization)
    pipe.unet.to(device)
    if text_encoders:
        for name in family_of(pipe).components[1:]:
            getattr(pipe, name).to(device)

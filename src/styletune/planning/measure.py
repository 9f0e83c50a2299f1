"""Bytes and FLOPs of a training step and of generating, by running the true modules on shapes.

The step runs with the base's own modules, peft's adapter and autograd on the meta device, inside
``styletune.planning.meter``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from styletune.adapters.inject import adapted_modules, adapter_parameters, inject_adapter
from styletune.models.checkpointing import set_checkpointing
from styletune.models.family import Family, SizePx
from styletune.models.meta import meta_text_encoders, meta_unet, meta_vae
from styletune.models.quantize import eligible_linears
from styletune.planning.meter import Meter, fuse_attention_on_meta
from styletune.planning.workload import Step, StepCost
from styletune.recipe.training_sections import AdapterSection, Quantization

_DTYPES = {4: torch.float32, 2: torch.bfloat16}
Parameters = dict[str, nn.Parameter]


@functools.lru_cache(maxsize=64)
def measure_step(
    step: Step, family: Family, unet_json: str, text_jsons: tuple[str, ...]
) -> StepCost:
    """Run one step of the true modules without data (seconds on one core for SDXL at 1024²).

    Args:
        step: sizes and settings.
        family: of the base model.
        unet_json: the UNet's configuration as JSON.
        text_jsons: those of the text encoders; used when one of them is trained.

    Raises:
        RecipeError: a target or rank pattern matches no module, or a kind that cannot do it.
    """
    fuse_attention_on_meta()
    quantization, number_bytes = step.base.quantization, step.number_bytes
    models = _meta_models(step.adapter, family, unet_json, text_jsons)
    unet = models["unet"]
    unet_bytes = weight_bytes(unet, number_bytes, quantization)
    unet_plain_bytes = weight_bytes(unet, number_bytes)
    for model in models.values():
        _cast(model, _DTYPES[number_bytes])
    text_bytes = sum(weight_bytes(m, number_bytes) for n, m in models.items() if n != "unet")
    if quantization != "none":
        _quantize(unet)
    trained = _with_adapter(models, step.adapter, family)
    set_checkpointing(unet, step.checkpointing)
    for model in models.values():
        model.train()
    meter = Meter()
    for parameter in trained.values():
        parameter.register_post_accumulate_grad_hook(meter.became_gradient)
    prior = step.dreambooth.prior
    with meter:
        loss = _pass(models, step, family)
        forward_flops = meter.flops
        if prior == "prediction":
            with torch.no_grad():
                _pass(models, step, family)
        if prior != "none":
            loss = loss + _pass(models, step, family)
        saved = meter.live
        torch.autograd.backward(loss)
    return StepCost(
        saved_bytes=saved,
        peak_bytes=meter.peak,
        gradients_at_peak=meter.gradients_at_peak,
        peak_other_bytes=meter.peak_other,
        forward_flops=forward_flops,
        step_flops=meter.flops,
        unet_bytes=unet_bytes,
        unet_plain_bytes=unet_plain_bytes,
        text_bytes=text_bytes,
        trained=tuple((name, tuple(p.shape)) for name, p in trained.items()),
    )


@functools.lru_cache(maxsize=64)
def trained_tensors(
    adapter: AdapterSection, family: Family, unet_json: str, text_jsons: tuple[str, ...]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of everything that is trained; arguments and errors as ``measure_step``."""
    models = _meta_models(adapter, family, unet_json, text_jsons)
    trained = _with_adapter(models, adapter, family)
    return tuple((name, tuple(p.shape)) for name, p in trained.items())


def _meta_models(
    adapter: AdapterSection, family: Family, unet_json: str, text_jsons: tuple[str, ...]
) -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {"unet": meta_unet(json.loads(unet_json))}
    if adapter.trains_text:
        # All are in use then: captions are encoded at every step.
        encoders = meta_text_encoders(family, [json.loads(text) for text in text_jsons])
        models |= dict(zip(family.components[1:], encoders, strict=True))
    return models


def _pass(models: Mapping[str, nn.Module], step: Step, family: Family) -> Tensor:
    """From inputs to loss, as in training."""
    unet: Any = models["unet"]
    dtype, samples = _DTYPES[step.number_bytes], step.train.batch_size
    inputs = unet_inputs(family, unet.config, (step.height, step.width), samples, dtype)
    encoders = [models[name] for name in family.components[1:] if name in models]
    if encoders:
        with torch.device("meta"):
            ids = torch.zeros(samples, family.max_tokens, dtype=torch.int64)
        text = family.encode_ids(encoders, [ids] * len(encoders))
        inputs["encoder_hidden_states"] = text.embeds.to(dtype)
        inputs["added_cond_kwargs"] |= {k: v.to(dtype) for k, v in text.added.items()}
    noise_pred = unet(**inputs).sample
    loss: Tensor = noise_pred.float().square().mean()
    return loss


def unet_inputs(
    family: Family, config: Mapping[str, Any], size: SizePx, samples: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The inputs of a UNet of this configuration, on the meta device; (height, width) in pixels."""
    latent_size = [side // family.vae_factor for side in size]
    added = {**family.text_shapes(config), **family.size_shapes}
    with torch.device("meta"):
        latents = torch.empty(samples, config["in_channels"], *latent_size, dtype=dtype)
        return {
            "sample": latents,
            "timestep": torch.empty(samples, dtype=torch.int64),
            "encoder_hidden_states": torch.empty(
                samples, family.max_tokens, config["cross_attention_dim"], dtype=dtype
            ),
            "added_cond_kwargs": {
                name: torch.empty(samples, *shape, dtype=dtype) for name, shape in added.items()
            },
        }


@functools.lru_cache(maxsize=64)
def measure_drawing(
    family: Family, unet_json: str, size: SizePx, samples: int, base_bytes: int
) -> tuple[int, int]:
    """(peak bytes, FLOPs) of one guided denoising call, of 2 · ``samples``, without gradients."""
    fuse_attention_on_meta()
    unet = meta_unet(json.loads(unet_json)).eval()
    _cast(unet, _DTYPES[base_bytes])
    inputs = unet_inputs(family, unet.config, size, 2 * samples, _DTYPES[base_bytes])
    with torch.no_grad(), Meter() as meter:
        unet(**inputs)
    return meter.peak, meter.flops


@functools.lru_cache(maxsize=64)
def measure_vae(
    family: Family,
    vae_json: str,
    way: Literal["encode", "decode"],
    size: SizePx,
    samples: int,
    number_bytes: int,
) -> tuple[int, int, int]:
    """(weight bytes, peak bytes, FLOPs) of "encode" or "decode" of whole images, untiled."""
    fuse_attention_on_meta()
    vae = meta_vae(json.loads(vae_json)).eval()
    _cast(vae, _DTYPES[number_bytes])
    factor = 1 if way == "encode" else family.vae_factor
    channels = vae.config.in_channels if way == "encode" else vae.config.latent_channels
    with torch.device("meta"):
        images = torch.empty(
            samples, channels, *(side // factor for side in size), dtype=_DTYPES[number_bytes]
        )
    with torch.no_grad(), Meter() as meter:
        vae.encode(images) if way == "encode" else vae.decode(images)
    return weight_bytes(vae, number_bytes), meter.peak, meter.flops


@functools.lru_cache(maxsize=64)
def measure_text_encoders(family: Family, text_jsons: tuple[str, ...], number_bytes: int) -> int:
    """Weight bytes of all text encoders."""
    encoders = meta_text_encoders(family, [json.loads(text) for text in text_jsons])
    return sum(weight_bytes(encoder, number_bytes) for encoder in encoders)


def weight_bytes(model: nn.Module, number_bytes: int, quantization: Quantization = "none") -> int:
    """Bytes of a frozen model's weights.

    int8: one byte per weight and a float32 per row; nf4: half a byte and a float32 per block of
    64 (32 where rows are no multiples of 64); both for the layers that
    ``styletune.models.quantize`` replaces.
    """
    total = sum(p.numel() for p in model.parameters()) * number_bytes
    if quantization == "none":
        return total
    for linear in eligible_linears(model).values():
        n = linear.weight.numel()
        block = 64 if linear.in_features % 64 == 0 else 32
        scales = linear.out_features if quantization == "int8" else n // block
        total += (n if quantization == "int8" else n // 2) + 4 * scales - n * number_bytes
    return total


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Without the library's remark about layers that some models keep in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _with_adapter(
    models: Mapping[str, nn.Module], adapter: AdapterSection, family: Family
) -> Parameters:
    """Inject the untrained adapter, on meta too, and return what is trained by name."""
    inject_adapter(models, adapter, adapted_modules(models, adapter, family), seed=0)
    trained = adapter_parameters(models)
    for parameter in trained.values():
        parameter.data = parameter.data.to("meta", torch.float32)
    if adapter.new_tokens:
        for each in family.text_encoders:
            encoder: Any = models[each.name]
            table: nn.Embedding = encoder.get_input_embeddings()
            with torch.device("meta"):
                zeros = torch.zeros(len(adapter.new_tokens), table.weight.shape[1])
            rows = trained[each.embedding_key] = nn.Parameter(zeros)
            table.register_forward_hook(partial(_add_row, rows))
    return trained


def _add_row(rows: nn.Parameter, _table: nn.Module, _args: object, embedded: Tensor) -> Tensor:
    """Let gradients reach the new tokens' rows, as when they stand in every caption."""
    return embedded + rows[0].to(embedded.dtype)


class _QuantizedProduct(torch.autograd.Function):
    """What a product with packed weights allocates, without its numbers.

    Both ways the weight is unpacked for the moment and nothing is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, _unpacked(weight), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return grad @ _unpacked(ctx.weight), None, None


def _unpacked(weight: Tensor) -> Tensor:
    return weight.clone() * torch.empty_like(weight[:, :1])


class _QuantizedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _QuantizedProduct.apply(x, self.weight, self.bias)
        return product


def _quantize(unet: nn.Module) -> None:
    for linear in eligible_linears(unet).values():
        linear.__class__ = _QuantizedLinear

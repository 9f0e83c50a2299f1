"""Bytes and FLOPs of a training step, counted by running the real one on shapes alone.

The step runs with the true modules, peft's adapter and autograd on the meta device: every
operation happens, nothing is computed. A dispatch mode sees each storage come and go, so the
highest sum is the peak that an allocator without waste would have, recomputation included.
What it cannot see are the workspaces inside a kernel and fragmentation.

Attention is counted as a fused kernel runs it on a GPU: it keeps query, key, value, output
and one number a row, never the matrix of weights (FlashAttention, arXiv 2205.14135, section 3),
and its backward pass is 2.5 times the forward. Left alone, PyTorch would split attention on
meta tensors into matrix products and keep the matrix: 1.3 GB more for each block of 4096 tokens.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from styletune.adapters.file import Kind
from styletune.adapters.inject import (
    AdapterShape,
    adapter_parameters,
    inject_adapter,
    target_modules,
    text_encoder_modules,
)
from styletune.models.checkpointing import Policy, set_checkpointing
from styletune.models.conditioning import encode_ids
from styletune.models.quantize import Quantization, eligible_linears
from styletune.models.sdxl import MAX_TOKENS, VAE_FACTOR, meta_text_encoders, meta_unet, meta_vae

DTYPES = {4: torch.float32, 2: torch.bfloat16}


class Meter(TorchDispatchMode):
    """Bytes alive that were born inside, their peak, and FLOPs, of everything run inside.

    ``live`` and ``peak`` count each storage once; storages that were there before (weights,
    inputs) are not counted. ``gradients`` is what the caller said has become a gradient;
    ``peak_other`` the peak without them. ``by_op`` sums what is alive by the op that made it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.gradients = 0
        self.gradients_at_peak = self.peak_other = self.flops = 0
        self.by_op: dict[str, int] = {}
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func._overloadpacket
        if op in flop_registry:
            self.flops += flop_registry[op](*args, **kwargs, out_val=out)
        tensors = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if tensors:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            old = {x.untyped_storage()._cdata for x in given}
            for tensor in tensors:
                if tensor.untyped_storage()._cdata not in old:
                    self._born(tensor, str(op))
        return out

    def became_gradient(self, parameter: Tensor) -> None:
        """A hook for parameters: their gradient has just been accumulated."""
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()

    def _born(self, tensor: Tensor, op: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.live -= size
            self.by_op[op] -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.by_op[op] = self.by_op.get(op, 0) + size
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients
        self.peak_other = max(self.peak_other, self.live - self.gradients)


@functools.cache
def fuse_attention_on_meta() -> torch.library.Library:
    """Let attention on meta tensors be one fused operation, as on a GPU; kept for the process."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,  # noqa: ARG001
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG001
    ) -> Tensor:
        # A mask costs nothing here: only the text encoders have one, of 77 tokens.
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]

    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", attention, "AutogradMeta")
    return library


@dataclass(frozen=True, slots=True)
class StepShape:
    """What decides a step's bytes and FLOPs; the recipe's keys of the same names explain them.

    ``height`` and ``width`` in pixels, of the largest bucket; ``base_bytes`` a number of the base
    takes (4 or 2); ``adapter_bytes`` one of the adapter (4 in training).
    """

    height: int
    width: int
    batch_size: int = 1
    base_bytes: int = 2
    adapter_bytes: int = 4
    quantization: Quantization = "none"
    kind: Kind = "lora"
    rank: int = 16
    conv_rank: int | None = None
    block_ranks: tuple[tuple[str, int], ...] = ()
    target: str | tuple[str, ...] = "attention"
    text_encoders: Literal["none", "first", "second", "both"] = "none"
    text_encoder_target: Literal["attention", "all"] = "attention"
    text_encoder_rank: int | None = None
    new_tokens: int = 0
    gradient_checkpointing: Policy = "none"
    prior: Literal["none", "images", "prediction"] = "none"


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one forward and backward pass takes, in bytes and FLOPs.

    ``saved_bytes`` is alive when the loss is there; ``peak_bytes`` the highest sum in the two
    passes, of which ``gradients_at_peak`` are finished gradients; ``peak_other_bytes`` the
    highest sum without gradients; ``saved_by_op`` what saved bytes come from, largest first;
    ``unet_bytes`` and ``text_bytes`` the frozen weights, ``unet_plain_bytes`` the UNet's without
    quantisation; ``trained`` the trained tensors' names and
    shapes.
    """

    saved_bytes: int
    peak_bytes: int
    gradients_at_peak: int
    peak_other_bytes: int
    saved_by_op: tuple[tuple[str, int], ...]
    forward_flops: int
    step_flops: int
    unet_bytes: int
    unet_plain_bytes: int
    text_bytes: int
    trained: tuple[tuple[str, tuple[int, ...]], ...]


@functools.lru_cache(maxsize=64)
def measure_step(shape: StepShape, unet_json: str, text_jsons: tuple[str, str]) -> StepCost:
    """Run one step of the true modules without data (seconds on one core for SDXL at 1024²).

    Args:
        shape: sizes and settings.
        unet_json: the UNet's configuration as JSON.
        text_jsons: those of the two text encoders; used when one of them is trained.

    Raises:
        RecipeError: a target or rank pattern matches no module, or a kind that cannot do it.
    """
    fuse_attention_on_meta()
    dtype = DTYPES[shape.base_bytes]
    unet = meta_unet(json.loads(unet_json))
    unet_bytes = weight_bytes(unet, shape.base_bytes, shape.quantization)
    unet_plain_bytes = weight_bytes(unet, shape.base_bytes)
    models: dict[str, nn.Module] = {"unet": unet}
    if shape.text_encoders != "none" or shape.new_tokens:
        # Both are in use then: captions are encoded anew at every step.
        first, second = (json.loads(text) for text in text_jsons)
        models["text_encoder"], models["text_encoder_2"] = meta_text_encoders(first, second)
    for model in models.values():
        _cast(model, dtype)
    text_bytes = sum(weight_bytes(m, shape.base_bytes) for n, m in models.items() if n != "unet")
    if shape.quantization != "none":
        _quantise(unet)
    trained = _with_adapter(models, shape)
    set_checkpointing(unet, shape.gradient_checkpointing)
    for model in models.values():
        model.train()
    meter = Meter()
    for parameter in trained.values():
        parameter.register_post_accumulate_grad_hook(meter.became_gradient)
    with meter:
        loss = _pass(models, shape)
        forward_flops = meter.flops
        if shape.prior == "prediction":
            with torch.no_grad():
                _pass(models, shape)
        if shape.prior != "none":
            loss = loss + _pass(models, shape)
        saved, by_op = meter.live, sorted(meter.by_op.items(), key=lambda item: -item[1])
        torch.autograd.backward(loss)
    return StepCost(
        saved_bytes=saved,
        peak_bytes=meter.peak,
        gradients_at_peak=meter.gradients_at_peak,
        peak_other_bytes=meter.peak_other,
        saved_by_op=tuple((op, size) for op, size in by_op if size),
        forward_flops=forward_flops,
        step_flops=meter.flops,
        unet_bytes=unet_bytes,
        unet_plain_bytes=unet_plain_bytes,
        text_bytes=text_bytes,
        trained=tuple((name, tuple(p.shape)) for name, p in trained.items()),
    )


def _pass(models: Mapping[str, nn.Module], shape: StepShape) -> Tensor:
    """From inputs to loss, as the trainer goes."""
    unet: Any = models["unet"]
    dtype = DTYPES[shape.base_bytes]
    inputs = unet_inputs(unet.config, shape.height, shape.width, shape.batch_size, dtype)
    if "text_encoder" in models:
        with torch.device("meta"):
            ids = torch.zeros(shape.batch_size, MAX_TOKENS, dtype=torch.int64)
        text = encode_ids(models["text_encoder"], models["text_encoder_2"], (ids, ids))
        inputs["encoder_hidden_states"] = text.embeds.to(dtype)
        inputs["added_cond_kwargs"]["text_embeds"] = text.pooled.to(dtype)
    noise_pred = unet(**inputs).sample
    loss: Tensor = noise_pred.float().square().mean()
    return loss


def unet_inputs(
    config: Mapping[str, Any], height: int, width: int, samples: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What a UNet of this configuration takes, on the meta device; sizes in pixels."""
    sizes = 6 * config["addition_time_embed_dim"]
    pooled = config["projection_class_embeddings_input_dim"] - sizes
    latent_size = (height // VAE_FACTOR, width // VAE_FACTOR)
    with torch.device("meta"):
        latents = torch.empty(samples, config["in_channels"], *latent_size, dtype=dtype)
        return {
            "sample": latents,
            "timestep": torch.empty(samples, dtype=torch.int64),
            "encoder_hidden_states": torch.empty(
                samples, MAX_TOKENS, config["cross_attention_dim"], dtype=dtype
            ),
            "added_cond_kwargs": {
                "text_embeds": torch.empty(samples, pooled, dtype=dtype),
                "time_ids": torch.empty(samples, 6, dtype=dtype),
            },
        }


@functools.lru_cache(maxsize=64)
def measure_drawing(
    unet_json: str, height: int, width: int, samples: int, base_bytes: int
) -> tuple[int, int]:
    """(peak bytes, FLOPs) of one guided denoising call, of 2 · ``samples``, without gradients."""
    fuse_attention_on_meta()
    config = json.loads(unet_json)
    unet = meta_unet(config).eval()
    _cast(unet, DTYPES[base_bytes])
    inputs = unet_inputs(config, height, width, 2 * samples, DTYPES[base_bytes])
    with torch.no_grad(), Meter() as meter:
        unet(**inputs)
    return meter.peak, meter.flops


@functools.lru_cache(maxsize=64)
def measure_vae(
    vae_json: str, way: str, height: int, width: int, samples: int, number_bytes: int
) -> tuple[int, int, int]:
    """(weight bytes, peak bytes, FLOPs) of "encode" or "decode" of whole images, untiled."""
    fuse_attention_on_meta()
    vae = meta_vae(json.loads(vae_json)).eval()
    _cast(vae, DTYPES[number_bytes])
    side = 1 if way == "encode" else VAE_FACTOR
    channels = vae.config.in_channels if way == "encode" else vae.config.latent_channels
    with torch.device("meta"):
        given = torch.empty(
            samples, channels, height // side, width // side, dtype=DTYPES[number_bytes]
        )
    with torch.no_grad(), Meter() as meter:
        vae.encode(given) if way == "encode" else vae.decode(given)
    return weight_bytes(vae, number_bytes), meter.peak, meter.flops


@functools.lru_cache(maxsize=64)
def measure_text_encoders(text_jsons: tuple[str, str], number_bytes: int) -> int:
    """Weight bytes of both text encoders."""
    encoders = meta_text_encoders(json.loads(text_jsons[0]), json.loads(text_jsons[1]))
    return sum(weight_bytes(encoder, number_bytes) for encoder in encoders)


def weight_bytes(model: nn.Module, number_bytes: int, quantization: str = "none") -> int:
    """What a frozen model's weights take.

    int8: a byte a weight and a float32 a row; nf4: half a byte and a float32 for each block of
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


def _with_adapter(models: Mapping[str, nn.Module], shape: StepShape) -> dict[str, nn.Parameter]:
    """Inject the untrained adapter, on meta too, and give what is trained by name."""
    modules = {"unet": target_modules(models["unet"], shape.target, shape.conv_rank is not None)}
    for name, choice in (("text_encoder", "first"), ("text_encoder_2", "second")):
        if shape.text_encoders in (choice, "both"):
            modules[name] = text_encoder_modules(models[name], shape.text_encoder_target)
    adapter = AdapterShape(
        kind=shape.kind,
        rank=shape.rank,
        alpha=float(shape.rank),
        conv_rank=shape.conv_rank,
        block_ranks=dict(shape.block_ranks),
        text_encoder_rank=shape.text_encoder_rank,
    )
    inject_adapter(models, adapter, modules, seed=0)
    trained = adapter_parameters(models)
    for parameter in trained.values():
        parameter.data = parameter.data.to("meta", DTYPES[shape.adapter_bytes])
    if shape.new_tokens:
        for name, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
            encoder: Any = models[name]
            table: nn.Embedding = encoder.get_input_embeddings()
            width = table.weight.shape[1]
            with torch.device("meta"):
                trained[key] = nn.Parameter(torch.zeros(shape.new_tokens, width))
            table.register_forward_hook(partial(_add_row, trained[key]))
    return trained


def _add_row(rows: nn.Parameter, _table: nn.Module, _args: object, embedded: Tensor) -> Tensor:
    """Let gradients reach the new tokens' rows, as when they stand in every caption."""
    return embedded + rows[0].to(embedded.dtype)


class _QuantisedProduct(torch.autograd.Function):
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


class _QuantisedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _QuantisedProduct.apply(x, self.weight, self.bias)
        return product


def _quantise(unet: nn.Module) -> None:
    for linear in eligible_linears(unet).values():
        linear.__class__ = _QuantisedLinear

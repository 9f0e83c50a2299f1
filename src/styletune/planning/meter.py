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
from styletune.models.family import Family, Size, chosen_encoders
from styletune.models.meta import meta_text_encoders, meta_unet, meta_vae
from styletune.models.quantize import Quantization, eligible_linears

DTYPES = {4: torch.float32, 2: torch.bfloat16}


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
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

    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("scaled_dot_product_attention", attention, "AutogradMeta")  # type: ignore[no-untyped-call]
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
def measure_step(
    shape: StepShape, family: Family, unet_json: str, text_jsons: tuple[str, ...]
) -> StepCost:
    """Run one step of the true modules without data (seconds on one core for SDXL at 1024²).

    Args:
        shape: sizes and settings.
        family: of the base model.
        unet_json: the UNet's configuration as JSON.
        text_jsons: those of the text encoders; used when one of them is trained.

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
        # All are in use then: captions are encoded anew at every step.
        encoders = meta_text_encoders(family, [json.loads(text) for text in text_jsons])
        models |= dict(zip(family.components[1:], encoders, strict=True))
    for model in models.values():
        _cast(model, dtype)
    text_bytes = sum(weight_bytes(m, shape.base_bytes) for n, m in models.items() if n != "unet")
    if shape.quantization != "none":
        _quantize(unet)
    trained = _with_adapter(models, shape, family)
    set_checkpointing(unet, shape.gradient_checkpointing)
    for model in models.values():
        model.train()
    meter = Meter()
    for parameter in trained.values():
        parameter.register_post_accumulate_grad_hook(meter.became_gradient)  # type: ignore[no-untyped-call]
    with meter:
        loss = _pass(models, shape, family)
        forward_flops = meter.flops
        if shape.prior == "prediction":
            with torch.no_grad():
                _pass(models, shape, family)
        if shape.prior != "none":
            loss = loss + _pass(models, shape, family)
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


def _pass(models: Mapping[str, nn.Module], shape: StepShape, family: Family) -> Tensor:
    """From inputs to loss, as the trainer goes."""
    unet: Any = models["unet"]
    dtype = DTYPES[shape.base_bytes]
    size = (shape.height, shape.width)
    inputs = unet_inputs(family, unet.config, size, shape.batch_size, dtype)
    encoders = [models[name] for name in family.components[1:] if name in models]
    if encoders:
        with torch.device("meta"):
            ids = torch.zeros(shape.batch_size, family.max_tokens, dtype=torch.int64)
        text = family.encode_ids(encoders, [ids] * len(encoders))
        inputs["encoder_hidden_states"] = text.embeds.to(dtype)
        inputs["added_cond_kwargs"] |= {k: v.to(dtype) for k, v in text.added.items()}
    noise_pred = unet(**inputs).sample
    loss: Tensor = noise_pred.float().square().mean()
    return loss


def unet_inputs(
    family: Family, config: Mapping[str, Any], size: Size, samples: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What a UNet of this configuration takes, on the meta device; (height, width) in pixels."""
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
    family: Family, unet_json: str, size: Size, samples: int, base_bytes: int
) -> tuple[int, int]:
    """(peak bytes, FLOPs) of one guided denoising call, of 2 · ``samples``, without gradients."""
    fuse_attention_on_meta()
    unet = meta_unet(json.loads(unet_json)).eval()
    _cast(unet, DTYPES[base_bytes])
    inputs = unet_inputs(family, unet.config, size, 2 * samples, DTYPES[base_bytes])
    with torch.no_grad(), Meter() as meter:
        unet(**inputs)
    return meter.peak, meter.flops


@functools.lru_cache(maxsize=64)
def measure_vae(
    family: Family, vae_json: str, way: str, size: Size, samples: int, number_bytes: int
) -> tuple[int, int, int]:
    """(weight bytes, peak bytes, FLOPs) of "encode" or "decode" of whole images, untiled."""
    fuse_attention_on_meta()
    vae = meta_vae(json.loads(vae_json)).eval()
    _cast(vae, DTYPES[number_bytes])
    factor = 1 if way == "encode" else family.vae_factor
    channels = vae.config.in_channels if way == "encode" else vae.config.latent_channels
    with torch.device("meta"):
        images = torch.empty(
            samples, channels, *(side // factor for side in size), dtype=DTYPES[number_bytes]
        )
    with torch.no_grad(), Meter() as meter:
        vae.encode(images) if way == "encode" else vae.decode(images)
    return weight_bytes(vae, number_bytes), meter.peak, meter.flops


@functools.lru_cache(maxsize=64)
def measure_text_encoders(family: Family, text_jsons: tuple[str, ...], number_bytes: int) -> int:
    """Weight bytes of all text encoders."""
    encoders = meta_text_encoders(family, [json.loads(text) for text in text_jsons])
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


def _with_adapter(
    models: Mapping[str, nn.Module], shape: StepShape, family: Family
) -> dict[str, nn.Parameter]:
    """Inject the untrained adapter, on meta too, and give what is trained by name."""
    conv = shape.conv_rank is not None
    modules = {"unet": target_modules(models["unet"], shape.target, conv, family)}
    for chosen in chosen_encoders(family, shape.text_encoders):
        model = models[chosen.name]
        modules[chosen.name] = text_encoder_modules(model, shape.text_encoder_target)
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
        for each in family.text_encoders:
            encoder: Any = models[each.name]
            table: nn.Embedding = encoder.get_input_embeddings()
            width = table.weight.shape[1]
            with torch.device("meta"):
                rows = nn.Parameter(torch.zeros(shape.new_tokens, width))
            trained[each.embedding_key] = rows
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

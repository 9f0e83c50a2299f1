"""What an adapter does to the weights: W' - W of each module, and merging it temporarily."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from styletune.adapters.file import PART, AdapterSpec, is_embedding, module_parts
from styletune.adapters.inject import find_module
from styletune.errors import BaseModelError, IntegrityError

# Kinds whose update depends on the base's weights.
NEEDS_BASE = ("dora", "oft")


def module_scales(tensors: Mapping[str, Tensor], spec: AdapterSpec) -> dict[str, float]:
    """What multiplies each module's update, by ``component.module``."""
    own, scales = dict(spec.alphas), {}
    for module, parts in module_parts(tensors).items():
        rank = parts["lora_A.weight"].shape[0] if "lora_A.weight" in parts else spec.rank
        root = math.sqrt(rank) if spec.rslora else float(rank)
        plain = spec.alpha / (math.sqrt(rank) if spec.rslora else spec.rank)
        scales[module] = own[module] / root if module in own else plain
    return scales


def weight_updates(
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    weight_of: Callable[[str], Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(``component.module``, its W' - W, float32, of the weight's shape), one after the other.

    For SDXL they are gigabytes together, so nobody should hold them all. ``weight_of`` gives the
    base weight by ``component.module``; DoRA and OFT need it.

    Raises:
        ValueError: the kind needs base weights and ``weight_of`` is None.
        IntegrityError: a tensor is missing or is not a part of an adapter.
    """
    scale_of = module_scales(tensors, spec)
    for module, parts in module_parts(tensors).items():
        weight = None
        if "lora_magnitude_vector" in parts or "oft_R.weight" in parts:
            if weight_of is None:
                raise ValueError(f"the update of {module} depends on the base weight")
            weight = weight_of(module).detach().float()
        try:
            flat = _update({k: v.float() for k, v in parts.items()}, scale_of[module], weight)
        except KeyError as error:
            raise IntegrityError(f"{module} lacks {error.args[0]}") from None
        yield module, _with_kernel(module, flat)


def _update(parts: dict[str, Tensor], scale: float, weight: Tensor | None) -> Tensor:
    if "oft_R.weight" in parts:
        assert weight is not None
        rotation = cayley(parts["oft_R.weight"])
        blocks = weight.reshape(weight.shape[0], *rotation.shape[:2])
        turned = torch.einsum("onc,nkc->onk", blocks, rotation).reshape(weight.shape)
        return turned - weight
    if "hada_w1_a" in parts:
        left = parts["hada_w1_a"] @ parts["hada_w1_b"]
        return scale * left * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    if any(k.startswith("lokr") for k in parts):
        small, big = (
            parts[w] if w in parts else parts[f"{w}_a"] @ parts[f"{w}_b"]
            for w in ("lokr_w1", "lokr_w2")
        )
        return scale * torch.kron(small.contiguous(), big.flatten(1).contiguous())
    a, b = parts["lora_A.weight"], parts["lora_B.weight"]
    low = scale * (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
    if weight is None:
        return low
    whole = weight + low
    gain = parts["lora_magnitude_vector"].flatten() / whole.flatten(1).norm(dim=1)
    changed: Tensor = gain.reshape(-1, *[1] * (whole.ndim - 1)) * whole
    return changed - weight


def cayley(skew: Tensor) -> Tensor:
    """(n, b(b-1)/2) upper triangles -> (n, b, b) rotations (I - Q)(I + Q)⁻¹."""
    side = (1 + math.isqrt(1 + 8 * skew.shape[1])) // 2
    rows, columns = torch.triu_indices(side, side, 1, device=skew.device)
    q = skew.new_zeros(skew.shape[0], side, side)
    q[:, rows, columns] = skew
    q = q - q.transpose(1, 2)
    eye = torch.eye(side, dtype=skew.dtype, device=skew.device)
    rotation: Tensor = torch.linalg.solve(eye + q, eye - q, left=False)
    return rotation


def _with_kernel(module: str, update: Tensor) -> Tensor:
    """LoHa and LoKr keep a convolution's update flat; in a UNet the name tells the kernel."""
    if update.ndim == 4 or not module.startswith("unet."):
        return update
    if module.endswith(".conv_shortcut"):
        return update[:, :, None, None]
    if module.endswith((".conv1", ".conv2", ".conv")):
        return update.reshape(update.shape[0], -1, 3, 3)
    return update


@contextlib.contextmanager
def merged(
    models: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    strength: float,
) -> Iterator[None]:
    """Put W + strength · (W' - W) into the models; afterwards they are back to the bit.

    Sampling then runs at the bare models' speed. New tokens are not added here.

    Raises:
        BaseModelError: a weight is quantized.
        IntegrityError: the adapter changes a module that is not there.
    """

    def weight_of(name: str) -> nn.Parameter:
        weight = find_module(models, name).weight
        assert isinstance(weight, nn.Parameter)
        if not weight.is_floating_point():
            raise BaseModelError(
                f"{name} is quantized; an adapter cannot be merged into it",
                fix="load the base without quantization",
            )
        return weight

    devices = {m: weight_of(m).device for m in module_parts(tensors)}
    placed = {k: v.to(devices[PART.sub("", k)]) for k, v in tensors.items() if not is_embedding(k)}
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for name, update in weight_updates(placed, spec, weight_of):
            weight = weight_of(name)
            # On the CPU: the copies would not fit beside the model on a small card.
            kept.append((weight, weight.detach().to("cpu", copy=True)))
            weight.data.copy_(weight.detach().float() + strength * update)
        yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)

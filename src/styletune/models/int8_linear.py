"""A frozen linear layer with 8-bit weights. Imports bitsandbytes, so it is itself imported late."""

from __future__ import annotations

from typing import Any, Self

import torch
from bitsandbytes.nn.modules import Int8Params, Linear8bitLt
from torch import Tensor, nn
from torch.nn import functional as F


def int8_values(rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(out, in) int8 and (out,) absolute maxima of the rows -> the weight in ``dtype``."""
    return (rows * (scales.float() / 127)[:, None]).to(dtype)


class _FrozenProduct(torch.autograd.Function):
    """x · Wᵀ + b with W made from int8 in both directions and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.rows, ctx.scales = rows, scales
        return F.linear(x, int8_values(rows, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        return grad @ int8_values(ctx.rows, ctx.scales, grad.dtype), None, None, None


class FrozenInt8Linear(Linear8bitLt):
    """bitsandbytes' 8-bit layer, so that peft knows it, with another product.

    The library's own rounds the activations too, and holds on to them in a way that gradient
    checkpointing cannot free.
    """

    @classmethod
    def of(cls, linear: nn.Linear, device: str) -> Self:
        """A quantized copy of ``linear`` on ``device``."""
        new = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            device="meta",
        )
        weight: Any = Int8Params(
            linear.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False
        )
        new.weight = weight.to(device)  # where the rounding happens
        return new

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out), both in x's dtype."""
        weight: Any = self.weight
        result: Tensor = _FrozenProduct.apply(x, weight.data, weight.SCB, self.bias)
        return result

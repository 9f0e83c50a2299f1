"""A moving average of what is trained: steadier than the last step, cheap for an adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def ema_start(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The average before the first step: float32 copies of the parameters, by name."""
    return {name: p.detach().float().clone() for name, p in parameters.items()}


def ema_decay_at(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)), ``step`` 0-based.

    Early on the average forgets fast, so the untrained start does not linger in it.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(
    shadow: dict[str, Tensor], parameters: Mapping[str, nn.Parameter], decay: float, step: int
) -> None:
    """Move the average: d · average + (1 − d) · parameter, in place, with d = ``ema_decay_at``.

    Call it after the optimizer's step; ``step`` is that step's number, 0-based.
    """
    live = [parameters[name].detach().float() for name in shadow]
    torch._foreach_lerp_(list(shadow.values()), live, 1 - ema_decay_at(decay, step))


@contextlib.contextmanager
def ema_swap(
    shadow: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> Iterator[None]:
    """Put the averages into the model inside the block; the live values come back bit for bit."""
    live = {name: parameters[name].detach().clone() for name in shadow}
    try:
        with torch.no_grad():
            for name, average in shadow.items():
                parameters[name].copy_(average)
        yield
    finally:
        with torch.no_grad():
            for name, value in live.items():
                parameters[name].copy_(value)

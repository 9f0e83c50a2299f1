"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def make_optimizer(parameters: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW (arXiv 1711.05101); the loop sets the rate of every step."""
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay, fused=True)


def learning_rate_at(
    step: int, *, peak: float, steps: int, warmup_steps: int, schedule: str
) -> float:
    """The rate of a step (0-based): linear warm-up, then constant or half a cosine to zero.

    A pure function, so a resumed run cannot lose its schedule.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    match schedule:
        case "constant":
            return peak
        case "cosine":
            done = (step - warmup_steps) / max(1, steps - warmup_steps)
            return peak * 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError(f"schedule {schedule!r}; choices: constant, cosine")

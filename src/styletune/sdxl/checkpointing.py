"""What the backward pass recomputes instead of keeping."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Policy = Literal["none", "ff", "full"]


def set_checkpointing(unet: UNet2DConditionModel, policy: Policy) -> None:
    """Choose what is recomputed; replaces an earlier choice, before or after an adapter is added.

    ``none`` keeps every activation. ``ff`` keeps all but the insides of the feed-forward layers,
    whose hidden width is eight times the block's: much memory for few operations. ``full``
    recomputes whole UNet blocks (diffusers' own, non-reentrant). The gradients are the same, and
    dropout draws the same numbers again.
    """
    unet.disable_gradient_checkpointing()
    for block in _blocks(unet):
        block.ff.__dict__.pop("forward", None)
    if policy == "full":
        unet.enable_gradient_checkpointing()
    elif policy == "ff":
        for block in _blocks(unet):
            # On the instance: a wrapping module would rename the weights.
            block.ff.forward = partial(_recomputed, block.ff.forward)


def _blocks(unet: UNet2DConditionModel) -> list[BasicTransformerBlock]:
    return [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]


def _recomputed(forward: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(hidden_states)
    result: Tensor = checkpoint(forward, hidden_states, use_reentrant=False)
    return result

"""Several processes that train one adapter: how they start and add up what each found.

Every process holds the whole frozen base and the whole adapter, so nothing is sharded: they see
different samples of one global batch and share one flat buffer of gradients a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn

from styletune.errors import BadInput
from styletune.runs import Run


def make_accelerator(mixed_precision: str, tracker: str, run: Run) -> Accelerator:
    """Accelerate with our own precision policy: it scales fp16 losses, we place the dtypes.

    Raises:
        BadInput: fp16 without a GPU, or a tracker that is not installed.
    """
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise BadInput(
            "fp16 needs a GPU", where="[train] mixed_precision", fix='choose "no" or "bf16"'
        )
    if tracker == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise BadInput(
                "wandb is not installed", where="[train] tracker",
                fix='pip install "styletune[wandb]"',
            ) from None  # fmt: skip
    return Accelerator(
        mixed_precision="fp16" if mixed_precision == "fp16" else "no",
        log_with=None if tracker == "none" else tracker,
        project_dir=str(run.dir),
    )


def share_gradients(parameters: Mapping[str, nn.Parameter], accelerator: Accelerator) -> None:
    """Add up the gradients of all processes; a parameter no sample reached has the gradient 0.

    One reduction of one flat buffer: an adapter is small, and wrapping the UNet for the sake of
    overlapping would tie the loop to one kind of parallel wrapper.
    """
    for parameter in parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes == 1:
        return
    grads = [p.grad for p in parameters.values() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    for grad, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def summed(value: Tensor, accelerator: Accelerator) -> float:
    """The sum over processes."""
    if accelerator.num_processes > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
    return float(value)

"""Checkpoints: the adapter, the optimizer's state, and a receipt written last.

A checkpoint without its receipt was interrupted and does not count. A state that does not
match its checksums stops the run: training never goes on from half a state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from styletune.errors import CheckFailed, Conflict, IntegrityError
from styletune.runs import Run, file_sha256, read_json, write_bytes, write_json
from styletune.sdxl.adapter import (
    AdapterSpec,
    adapter_parameters,
    adapter_tensors,
    load_adapter,
    load_into,
    pack_tensors,
    save_adapter,
)

FIX_DIVERGED = 'lower optimizer.learning_rate, or set train.mixed_precision = "no"'


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint belongs to: SHA-256 sums (hex); the recipe's is its ``training_hash``."""

    recipe_hash: str
    data_fingerprint: str
    base_hash: str


def save_checkpoint(
    run: Run, step: int, unet: nn.Module, optimizer: torch.optim.Optimizer, spec: AdapterSpec,
    identity: Identity,
) -> None:  # fmt: skip
    """Write the checkpoint after ``step`` optimizer steps.

    Raises:
        CheckFailed: a weight is NaN or infinite; the checkpoint before stays the last one.
        OutputError: it cannot be written.
    """
    tensors = adapter_tensors(unet)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckFailed(f"{name} is not finite after step {step}", fix=FIX_DIVERGED)
    save_adapter(run.adapter_file(step), tensors, spec)
    state: dict[str, Tensor] = {}
    for name, parameter in adapter_parameters(unet).items():
        for key, value in optimizer.state[parameter].items():
            state[f"{key}:{name}"] = value.detach().cpu().contiguous()
    write_bytes(run.state_file(step), pack_tensors(state, {}))
    receipt = {
        "step": step,
        "recipe_hash": identity.recipe_hash,
        "data_fingerprint": identity.data_fingerprint,
        "base_hash": identity.base_hash,
        "adapter_sha256": file_sha256(run.adapter_file(step)),
        "state_sha256": file_sha256(run.state_file(step)),
    }
    write_json(run.state_facts_file(step), receipt)


def check_receipt(run: Run, step: int, identity: Identity) -> None:
    """Raise Conflict for another run's checkpoint, IntegrityError for damaged files."""
    receipt: Mapping[str, object] = read_json(run.state_facts_file(step))
    where = str(run.checkpoint_dir(step))
    for key, label in (
        ("recipe_hash", "recipe"), ("data_fingerprint", "data set"), ("base_hash", "base model")
    ):  # fmt: skip
        if receipt.get(key) != getattr(identity, key):
            raise Conflict(f"belongs to another {label}", where=where, fix="use another --run-dir")
    for key, file in (
        ("adapter_sha256", run.adapter_file(step)),
        ("state_sha256", run.state_file(step)),
    ):
        if not file.is_file() or file_sha256(file) != receipt.get(key):
            raise IntegrityError(
                f"{file.name} is missing or is not what its checkpoint recorded",
                where=where,
                fix=f"delete {where} to go on from the checkpoint before it",
            )


def restore_checkpoint(
    run: Run, step: int, unet: nn.Module, optimizer: torch.optim.Optimizer, identity: Identity
) -> None:
    """Put the adapter and the optimizer back to where they were after ``step`` steps."""
    check_receipt(run, step, identity)
    tensors, _ = load_adapter(run.adapter_file(step))
    load_into(unet, tensors)
    by_owner: dict[str, dict[str, Tensor]] = {}
    for full, value in load_file(run.state_file(step)).items():
        key, _, owner = full.partition(":")
        by_owner.setdefault(owner, {})[key] = value
    for name, parameter in adapter_parameters(unet).items():
        if name not in by_owner:
            raise IntegrityError(f"no optimizer state for {name}", where=str(run.state_file(step)))
        # A fused AdamW keeps its step count beside the parameter.
        optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in by_owner[name].items()}


def assert_finite(loss: float, step: int, file_names: list[str]) -> None:
    """Stop on NaN or infinity and name the step and its images."""
    if not math.isfinite(loss):
        raise CheckFailed(
            f"the loss is {loss} at step {step}, images: {', '.join(file_names)}", fix=FIX_DIVERGED
        )

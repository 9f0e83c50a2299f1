"""Checkpoints: the adapter, the state to resume from, and a receipt written last.

A checkpoint without its receipt was interrupted and does not count. A state that does not
match its checksums stops the run: training never resumes from half a state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from styletune.adapters.file import AdapterSpec, load_adapter, pack_tensors, save_adapter
from styletune.errors import CheckFailed, Conflict, IntegrityError
from styletune.files import file_sha256, require_space, write_bytes
from styletune.runs import Run
from styletune.runs.documents import Receipt, read_receipt, write_receipt
from styletune.training.ema import ema_swap
from styletune.training.identity import Identity
from styletune.training.optimizer import to_eval, to_train
from styletune.training.optimizer_state import (
    pack_scaler,
    pack_state,
    unpack_scaler,
    unpack_state,
)

FIX_DIVERGED = (
    "lower optimizer.learning_rate or adapter.alpha; in bf16 or fp16, "
    'train.mixed_precision = "no" may help'
)
LIVE = "live:"
EMA = "ema:"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What training changes, and nothing else: the rest is a function of seed and step.

    ``parameters`` by their name in an adapter file, float32; ``ema`` their moving averages or
    None; ``scaler`` the fp16 loss scaler or None; ``processes`` how many share a global batch.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor] | None
    scaler: Any
    processes: int


@contextlib.contextmanager
def averaged_weights(state: TrainingState) -> Iterator[None]:
    """Put the weights that are to be used (EMA, schedule-free average) in place inside the block.

    The live weights come back bit for bit, so looking at a run does not change it.
    """
    live = {n: p.detach().clone() for n, p in state.parameters.items()}
    to_eval(state.optimizer)
    swap = (
        ema_swap(state.ema, state.parameters) if state.ema is not None else contextlib.nullcontext()
    )
    try:
        with swap:
            yield
    finally:
        to_train(state.optimizer)
        for name, parameter in state.parameters.items():
            parameter.data.copy_(live[name])


def save_checkpoint(
    run: Run,
    step: int,
    state: TrainingState,
    spec: AdapterSpec,
    identity: Identity,
    keep_last: int | None,
) -> None:
    """Write the checkpoint after ``step`` optimizer steps and drop states beyond ``keep_last``.

    The adapter's header is ``spec`` with the identity's hashes and the step.

    Raises:
        CheckFailed: a weight is NaN or infinite; the checkpoint before stays the last one.
        OutputError: it cannot be written, or the disk has no room for it.
    """
    live = {n: p.detach().float().cpu().clone() for n, p in state.parameters.items()}
    for name, tensor in live.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckFailed(f"{name} is not finite after step {step}", fix=FIX_DIVERGED)
    with averaged_weights(state):
        used = {n: p.detach().float().cpu().clone() for n, p in state.parameters.items()}
    tensors, facts = pack_state(state.optimizer, list(state.parameters))
    if any(not torch.equal(live[n], used[n]) for n in live):
        tensors |= {LIVE + n: t for n, t in live.items()}
    if state.ema is not None:
        tensors |= {EMA + n: t.detach().cpu() for n, t in state.ema.items()}
    # Before the space is measured too: a smaller keep_last is how a user frees a full disk.
    _drop_states(run, keep_last)
    earlier = run.checkpoint_steps()
    require_space(
        run.dir,
        sum(t.nbytes for t in (*used.values(), *tensors.values())),
        fix="free some space"
        + (", or set train.keep_last" if len(earlier) > 1 else "")
        + (f"; the same command resumes from step {earlier[-1]}" if earlier else ""),
    )
    spec = replace(
        spec, base_hash=identity.base_hash, training_hash=identity.training_hash, step=step
    )
    save_adapter(run.adapter_file(step), used, spec)
    write_bytes(run.state_file(step), pack_tensors(tensors, {}))
    receipt = Receipt(
        step=step,
        **asdict(identity),
        processes=state.processes,
        optimizer=facts,
        scaler=pack_scaler(state.scaler) if state.scaler is not None else None,
        adapter_sha256=file_sha256(run.adapter_file(step)),
        state_sha256=file_sha256(run.state_file(step)),
    )
    write_receipt(run, receipt)
    _drop_states(run, keep_last)


def _drop_states(run: Run, keep_last: int | None) -> None:
    """Remove the states of all but the last checkpoints; their adapters stay."""
    if keep_last is not None:
        for old in run.checkpoint_steps()[:-keep_last]:
            run.state_file(old).unlink(missing_ok=True)


def check_receipt(run: Run, step: int, identity: Identity, with_state: bool = False) -> None:
    """Check that a checkpoint is this run's and whole; with ``with_state`` its state too.

    Raises:
        Conflict: it is of another recipe, data set or base model.
        IntegrityError: a file is missing or damaged.
    """
    receipt = read_receipt(run, step)
    where = str(run.checkpoint_dir(step))
    for recorded, expected, label in (
        (receipt.training_hash, identity.training_hash, "recipe"),
        (receipt.data_fingerprint, identity.data_fingerprint, "data set"),
        (receipt.data_order, identity.data_order, "order of the images"),
        (receipt.base_hash, identity.base_hash, "base model"),
    ):
        if recorded != expected:
            raise Conflict(f"belongs to another {label}", where=where, fix="use another --run-dir")
    files = [(run.adapter_file(step), receipt.adapter_sha256)]
    # keep_last removes old states on purpose; one that exists must be the one recorded.
    if with_state or run.state_file(step).is_file():
        files.append((run.state_file(step), receipt.state_sha256))
    for file, recorded in files:
        if not file.is_file() or file_sha256(file) != recorded:
            raise IntegrityError(
                f"{file.name} is missing or is not what its checkpoint recorded",
                where=where,
                fix=_way_back(run, step),
            )


def _way_back(run: Run, step: int) -> str:
    """How to resume when this checkpoint is unusable: from the last one before it with a state."""
    earlier = [s for s in run.checkpoint_steps() if s < step and run.state_file(s).is_file()]
    if not earlier:
        return "no earlier checkpoint can be resumed from: train again with another --run-dir"
    broken = [str(run.checkpoint_dir(s)) for s in run.checkpoint_steps() if s > earlier[-1]]
    return f"delete {', '.join(broken)} to resume from step {earlier[-1]}"


def restore_checkpoint(run: Run, step: int, state: TrainingState, identity: Identity) -> None:
    """Put everything in ``state`` back to where it was after ``step`` steps.

    Raises:
        Conflict: another run's checkpoint, or made with another number of processes.
        IntegrityError: damaged, or a state that is not of these parameters.
    """
    check_receipt(run, step, identity, with_state=True)
    receipt = read_receipt(run, step)
    where = str(run.checkpoint_dir(step))
    if receipt.processes != state.processes:
        raise Conflict(
            f"was trained with {receipt.processes} processes, now there are "
            f"{state.processes}: the global batch would change",
            where=where,
            fix="start as many processes as before, or use another --run-dir",
        )
    used, _ = load_adapter(run.adapter_file(step))
    if used.keys() != state.parameters.keys():
        odd = sorted(used.keys() ^ state.parameters.keys())
        raise IntegrityError(f"the adapter's tensors differ, first: {odd[0]}", where=where)
    tensors = load_file(run.state_file(step))
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors.pop(LIVE + name, used[name]))
    if state.ema is not None:
        for name, average in state.ema.items():
            if EMA + name not in tensors:
                raise IntegrityError(f"no moving average of {name}", where=where)
            average.copy_(tensors.pop(EMA + name))
    unpack_state(state.optimizer, list(state.parameters), tensors, receipt.optimizer)
    if state.scaler is not None:
        unpack_scaler(state.scaler, receipt.scaler)


def assert_finite(value: float, what: str, step: int, file_names: list[str]) -> None:
    """Stop on NaN or infinity and name the step and its images."""
    if not math.isfinite(value):
        raise CheckFailed(
            f"the {what} is {value} at step {step}, images: {', '.join(file_names)}",
            fix=FIX_DIVERGED,
        )

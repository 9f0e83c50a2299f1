"""Checkpoints: the adapter, the state to go on from, and a receipt written last.

A checkpoint without its receipt was interrupted and does not count. A state that does not
match its checksums stops the run: training never goes on from half a state.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from styletune.adapters.file import AdapterSpec, load_adapter, pack_tensors, save_adapter
from styletune.errors import CheckFailed, Conflict, IntegrityError, OutputError
from styletune.files import file_sha256, read_json, write_bytes, write_json
from styletune.runs import Run
from styletune.training.ema import ema_swap
from styletune.training.optimizer import to_eval, to_train
from styletune.training.optimizer_state import (
    pack_scaler,
    pack_state,
    unpack_scaler,
    unpack_state,
)

FIX_DIVERGED = 'lower optimizer.learning_rate, or set train.mixed_precision = "no"'
LIVE = "live:"
EMA = "ema:"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint belongs to: SHA-256 sums (hex); the recipe's is its ``training_hash``."""

    recipe_hash: str
    data_fingerprint: str
    data_order: str
    base_hash: str


@dataclass(frozen=True, slots=True)
class Trained:
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
def averaged_weights(trained: Trained) -> Iterator[None]:
    """Put the weights that are to be used in place (EMA, schedule-free average) for a while.

    The live weights come back bit for bit, so looking at a run does not change it.
    """
    live = {n: p.detach().clone() for n, p in trained.parameters.items()}
    to_eval(trained.optimizer)
    swap = (
        ema_swap(trained.ema, trained.parameters)
        if trained.ema is not None
        else contextlib.nullcontext()
    )
    try:
        with swap:
            yield
    finally:
        to_train(trained.optimizer)
        for name, parameter in trained.parameters.items():
            parameter.data.copy_(live[name])


def save_checkpoint(
    run: Run,
    step: int,
    trained: Trained,
    spec: AdapterSpec,
    identity: Identity,
    keep_last: int | None,
) -> None:
    """Write the checkpoint after ``step`` optimizer steps and drop states beyond ``keep_last``.

    Raises:
        CheckFailed: a weight is NaN or infinite; the checkpoint before stays the last one.
        OutputError: it cannot be written, or the disk has no room for it.
    """
    live = {n: p.detach().float().cpu().clone() for n, p in trained.parameters.items()}
    for name, tensor in live.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckFailed(f"{name} is not finite after step {step}", fix=FIX_DIVERGED)
    with averaged_weights(trained):
        used = {n: p.detach().float().cpu().clone() for n, p in trained.parameters.items()}
    state, facts = pack_state(trained.optimizer, list(trained.parameters))
    if any(not torch.equal(live[n], used[n]) for n in live):
        state |= {LIVE + n: t for n, t in live.items()}
    if trained.ema is not None:
        state |= {EMA + n: t.detach().cpu() for n, t in trained.ema.items()}
    # Before the room is measured too: a smaller keep_last is how a full disk is mended.
    _drop_states(run, keep_last)
    _require_space(run, sum(t.nbytes for t in (*used.values(), *state.values())))
    save_adapter(run.adapter_file(step), used, spec)
    write_bytes(run.state_file(step), pack_tensors(state, {}))
    receipt = {
        "step": step,
        "recipe_hash": identity.recipe_hash,
        "data_fingerprint": identity.data_fingerprint,
        "data_order": identity.data_order,
        "base_hash": identity.base_hash,
        "processes": trained.processes,
        "optimizer": facts,
        "scaler": pack_scaler(trained.scaler) if trained.scaler is not None else None,
        "adapter_sha256": file_sha256(run.adapter_file(step)),
        "state_sha256": file_sha256(run.state_file(step)),
    }
    write_json(run.state_facts_file(step), receipt)
    _drop_states(run, keep_last)


def _drop_states(run: Run, keep_last: int | None) -> None:
    """Remove the states of all but the last checkpoints; their adapters stay."""
    if keep_last is not None:
        for old in run.checkpoint_steps()[:-keep_last]:
            run.state_file(old).unlink(missing_ok=True)


def _require_space(run: Run, size_bytes: int) -> None:
    """Refuse to start a write that the disk has no room for."""
    free = shutil.disk_usage(run.dir).free
    if free < size_bytes * 1.05 + 2**20:
        raise OutputError(
            f"no space for a checkpoint of {size_bytes / 1e6:.1f} MB: {free / 1e6:.1f} MB are free",
            where=str(run.dir),
            fix="free some space, or set train.keep_last; the same command goes on from the last "
            "checkpoint",
        )


def check_receipt(run: Run, step: int, identity: Identity, with_state: bool = False) -> None:
    """Check that a checkpoint is this run's and whole; its state too where it is needed.

    Raises:
        Conflict: it is of another recipe, data set or base model.
        IntegrityError: a file is missing or damaged.
    """
    receipt: Mapping[str, object] = read_json(run.state_facts_file(step))
    where = str(run.checkpoint_dir(step))
    for key, label in (
        ("recipe_hash", "recipe"),
        ("data_fingerprint", "data set"),
        ("data_order", "order of the images"),
        ("base_hash", "base model"),
    ):
        if receipt.get(key) != getattr(identity, key):
            raise Conflict(f"belongs to another {label}", where=where, fix="use another --run-dir")
    files = [("adapter_sha256", run.adapter_file(step))]
    # keep_last removes old states on purpose; one that is there must be the one recorded.
    if with_state or run.state_file(step).is_file():
        files.append(("state_sha256", run.state_file(step)))
    for key, file in files:
        if not file.is_file() or file_sha256(file) != receipt.get(key):
            raise IntegrityError(
                f"{file.name} is missing or is not what its checkpoint recorded",
                where=where,
                fix=_way_back(run, step),
            )


def _way_back(run: Run, step: int) -> str:
    """How to go on when this checkpoint cannot be used; without keep_last, the one before it."""
    earlier = [s for s in run.checkpoint_steps() if s < step and run.state_file(s).is_file()]
    if not earlier:
        return "no earlier checkpoint has a state to go on from: train anew with another --run-dir"
    broken = [str(run.checkpoint_dir(s)) for s in run.checkpoint_steps() if s > earlier[-1]]
    return f"delete {', '.join(broken)} to go on from step {earlier[-1]}"


def restore_checkpoint(run: Run, step: int, trained: Trained, identity: Identity) -> None:
    """Put everything in ``trained`` back to where it was after ``step`` steps.

    Raises:
        Conflict: another run's checkpoint, or made with another number of processes.
        IntegrityError: damaged, or a state that is not of these parameters.
    """
    check_receipt(run, step, identity, with_state=True)
    receipt = read_json(run.state_facts_file(step))
    where = str(run.checkpoint_dir(step))
    if receipt["processes"] != trained.processes:
        raise Conflict(
            f"was trained with {receipt['processes']} processes, now there are "
            f"{trained.processes}: the global batch would change",
            where=where,
            fix="start as many processes as before, or use another --run-dir",
        )
    used, _ = load_adapter(run.adapter_file(step))
    if used.keys() != trained.parameters.keys():
        odd = sorted(used.keys() ^ trained.parameters.keys())
        raise IntegrityError(f"the adapter's tensors differ, first: {odd[0]}", where=where)
    state = load_file(run.state_file(step))
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            parameter.copy_(state.pop(LIVE + name, used[name]))
    if trained.ema is not None:
        for name, shadow in trained.ema.items():
            if EMA + name not in state:
                raise IntegrityError(f"no moving average of {name}", where=where)
            shadow.copy_(state.pop(EMA + name))
    unpack_state(trained.optimizer, list(trained.parameters), state, receipt["optimizer"])
    if trained.scaler is not None:
        unpack_scaler(trained.scaler, receipt["scaler"])


def assert_finite(value: float, what: str, step: int, file_names: list[str]) -> None:
    """Stop on NaN or infinity and name the step and its images."""
    if not math.isfinite(value):
        raise CheckFailed(
            f"the {what} is {value} at step {step}, images: {', '.join(file_names)}",
            fix=FIX_DIVERGED,
        )

"""Several processes that train one adapter: how they start, agree, and add up their gradients.

Every process holds the whole frozen base and the whole adapter, so nothing is sharded: they see
different samples of one global batch and share one flat buffer of gradients per step.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    DynamoBackend,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from filelock import FileLock, Timeout
from torch import Tensor, nn

from styletune import __version__
from styletune.errors import BadInput, Conflict
from styletune.files import file_sha256, make_dir, output_errors, write_text
from styletune.recipe.training_sections import TrainSection
from styletune.runs import Run
from styletune.training.identity import Identity
from styletune.training.tracker import check_machine, library_of

# The others wait while the first process generates class images or previews.
LONGEST_WAIT = datetime.timedelta(hours=24)
# A network disk may report for a minute that a file is missing.
SHARED_DISK_WAIT_S = 90.0

FIX_SEVERAL = (
    "for several GPUs accelerate launch --multi_gpu --num_processes N -m styletune train RECIPE; "
    "for CPUs ACCELERATE_USE_CPU=true python -m torch.distributed.run --standalone "
    "--nproc_per_node N -m styletune train RECIPE"
)
SHARDED_BY = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}


def make_accelerator(train: TrainSection, run: Run) -> Accelerator:
    """Accelerate with our own precision policy: it scales fp16 losses, we place the dtypes.

    Raises:
        BadInput: fp16 without a GPU, a tracker that is not installed, or processes that were
            started in a way that does not train one adapter.
    """
    check_machine(train)
    mixed_precision = train.mixed_precision
    for variable, name in SHARDED_BY.items():
        # Before Accelerate reads it: it would ask for a library that nothing here needs.
        if os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off"):
            raise BadInput(
                f"{name} is not supported: the base is frozen and the adapter small, so plain "
                "data parallelism is enough",
                where=variable,
                fix=f"unset {variable}; {FIX_SEVERAL}",
            )
    accelerator = Accelerator(
        mixed_precision="fp16" if mixed_precision == "fp16" else "no",
        log_with=library_of(train),
        project_dir=str(run.dir),
        # What is left out here is taken from the environment; the recipe decides the training.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend=DynamoBackend.NO,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    _check_started(accelerator)
    return accelerator


def _check_started(accelerator: Accelerator) -> None:
    """Refuse processes that do not know each other, and other devices. Raises BadInput."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise BadInput(
            f"{kind.value} is not supported: several processes run on CUDA GPUs or on CPUs, each "
            "with the whole frozen base and the small adapter",
            where="accelerate launch",
            fix=FIX_SEVERAL,
        )
    processes, expected = accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if expected != processes:
        raise BadInput(
            f"is {expected}, but this process found {processes} in all: each would train on its "
            "own",
            where="WORLD_SIZE",
            fix=f"{FIX_SEVERAL}; for a single process unset WORLD_SIZE",
        )
    # ``accelerate launch`` names an address when several processes were requested; on CPUs, or
    # with one GPU, it then silently starts a single one.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if processes == 1 and launched and "WORLD_SIZE" not in os.environ:
        raise BadInput(
            "should have started several processes and has started one",
            where="accelerate launch",
            fix=f"{FIX_SEVERAL}; for a single process styletune train RECIPE",
        )


@contextlib.contextmanager
def hold_run(run: Run, accelerator: Accelerator) -> Iterator[None]:
    """Let no other command train this run inside the block; the first process locks it for all.

    The lock is the operating system's: it goes with its process, however that ended.

    Raises:
        Conflict: another process is training this run; raised on all processes.
        OutputError: the run folder cannot be written.
    """
    lock, holder = FileLock(run.lock_file), None
    if accelerator.is_main_process:
        make_dir(run.dir)
        with output_errors(run.lock_file):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                holder = _text_of(run.trainer_file)
    holder = _gathered(holder, accelerator)[0]
    if holder is not None:
        raise Conflict(
            f"another process is training this run {holder}".strip(),
            where=str(run.dir),
            fix="wait until it ends, or stop it: the same command then resumes from its last "
            "checkpoint",
        )
    try:
        if lock.is_locked:
            now = datetime.datetime.now(datetime.UTC).isoformat()
            write_text(run.trainer_file, f"({os.getpid()} on {platform.node()}, since {now})")
        yield
    finally:
        if lock.is_locked:
            run.trainer_file.unlink(missing_ok=True)
            lock.release()


def agreed_step(run: Run, identity: Identity, recipe_hash: str, accelerator: Accelerator) -> int:
    """The step to resume from, when all processes have the same run; within ``hold_run``.

    Adding up gradients of different adapters raises no error and trains a wrong one.

    Args:
        run: where this process looks for checkpoints.
        identity: what this process is about to train.
        recipe_hash: of the whole recipe, including the keys that decide only what is logged when.
        accelerator: from ``make_accelerator``.

    Raises:
        Conflict: on every process, when they differ.
    """
    done = max(run.checkpoint_steps(), default=0)
    if accelerator.num_processes == 1:
        return done
    # The receipt records the sums of adapter and state, and restoring compares the files to it.
    receipt = file_sha256(run.state_facts_file(done))[:12] if done else "none"
    views = _gathered(
        {
            "recipe": f"{recipe_hash[:12]} {identity.training_hash[:12]}",
            "data set": identity.data_fingerprint[:12],
            "order of the images": identity.data_order[:12],
            "base model": identity.base_hash[:12],
            "version": f"styletune {__version__}, torch {torch.__version__}",
            "run folder": f"step {done}, {receipt}",
            "trainer": _text_of(run.trainer_file),
        },
        accelerator,
    )
    fix = "give every process the same recipe, images, base model and versions"
    for what in ("recipe", "data set", "order of the images", "base model", "version"):
        _require_same(what, [view[what] for view in views], run, fix)
    fix = "--run-dir and --runs-dir must be on a disk that all nodes share"
    _require_same("run folder", [view["run folder"] for view in views], run, fix)
    # Two empty folders look alike, so all must see what the first process has just written.
    trainer = views[0]["trainer"]
    visible = _gathered(_comes_to_hold(run.trainer_file, trainer), accelerator)
    places = ["there" if is_visible else "not there" for is_visible in visible]
    _require_same("run folder", [f"{trainer} is {place}" for place in places], run, fix)
    return done


def _require_same(what: str, values: list[str], run: Run, fix: str) -> None:
    """Raises Conflict."""
    for process, value in enumerate(values):
        if value != values[0]:
            raise Conflict(
                f"the processes do not see the same {what}: process 0 has {values[0]}, "
                f"process {process} has {value}",
                where=str(run.dir),
                fix=fix,
            )


def _comes_to_hold(file: Path, text: str) -> bool:
    """Whether a file has this text, now or after as long as a network disk may take."""
    deadline = time.monotonic() + SHARED_DISK_WAIT_S
    while _text_of(file) != text:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _text_of(file: Path) -> str:
    """A file's text; empty when there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _gathered(value: Any, accelerator: Accelerator) -> list[Any]:
    """The value of each process, the first process's first."""
    if accelerator.num_processes == 1:
        return [value]
    values = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def share_gradients(parameters: Mapping[str, nn.Parameter], accelerator: Accelerator) -> None:
    """Add up the gradients of all processes; a parameter that no sample reached has gradient 0.

    One reduction of one flat buffer: an adapter is small, and wrapping the UNet only to overlap
    communication would tie the loop to one kind of parallel wrapper.
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

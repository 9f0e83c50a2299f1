"""What a run will need before anything is loaded: memory, FLOPs, and whether a card has it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.errors import BadInput
from styletune.runs.answers import PlanCompute, PlanMemory, PlanProblem

if TYPE_CHECKING:
    from styletune.models.base import BaseFiles
    from styletune.models.family import BaseConfigs
    from styletune.planning.gpus import Gpu
    from styletune.planning.memory import MemoryEstimate
    from styletune.planning.workload import Workload
    from styletune.recipe.training_sections import TrainSection

# Of a card's memory; the rest is the desktop's and the driver's.
USABLE_SHARE = 0.96


def configs_of(base: BaseFiles | None) -> BaseConfigs:
    """The base's own configurations; the published ones for a model not on this machine."""
    from styletune.models.families import DEFAULT_FAMILY
    from styletune.models.load import base_configs

    return DEFAULT_FAMILY.configs if base is None else base_configs(base)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a plan says of a run: memory, compute, and what keeps it off the card, if anything."""

    memory: PlanMemory
    compute: PlanCompute
    problem: PlanProblem | None


def preflight(workload: Workload, base: BaseConfigs, gpu: Gpu | None) -> Needs:
    """What a run needs, and whether the card has it; without a card there is no problem.

    Raises:
        RecipeError: a target or rank pattern without a match, or settings a kind does not have.
    """
    from styletune.planning.memory import estimate

    expected = estimate(workload, base)
    memory = PlanMemory(
        peak_bytes=expected.peak_bytes,
        phase=expected.phase,
        parts=dict(expected.parts),
        phases=dict(expected.phases),
    )
    problem = None
    if gpu is not None and expected.peak_bytes > usable_bytes(gpu):
        problem = _too_large(workload, base, expected, gpu)
    return Needs(memory, _compute(workload.step.train, expected, gpu), problem)


def _compute(train: TrainSection, expected: MemoryEstimate, gpu: Gpu | None) -> PlanCompute:
    from styletune.planning.gpus import floor_s

    floor = None if gpu is None else floor_s(expected.step_flops, gpu)
    images = train.batch_size * train.gradient_accumulation_steps
    return PlanCompute(
        step_flops=expected.step_flops,
        forward_flops=expected.forward_flops,
        gpu=gpu.name if gpu else None,
        floor_s=None if floor is None else round(floor * train.steps, 1),
        images_per_s=None if floor is None else round(images / floor, 2),
    )


def usable_bytes(gpu: Gpu) -> int:
    """The memory that a run may plan with."""
    return int(gpu.memory_bytes * USABLE_SHARE)


def _too_large(
    workload: Workload, base: BaseConfigs, expected: MemoryEstimate, gpu: Gpu
) -> PlanProblem:
    from styletune.planning.gpus import GIB
    from styletune.planning.memory import estimate
    from styletune.planning.suggestions import suggest_changes

    limit = usable_bytes(gpu)
    changes = suggest_changes(workload, limit, lambda changed: estimate(changed, base).phases)
    enough = bool(changes) and changes[-1].peak_bytes <= limit
    settings = "; ".join(change.setting for change in changes)
    return PlanProblem(
        severity="error",
        where=f"memory of {gpu.name}",
        message=f"the run needs {expected.peak_bytes / GIB:.1f} GiB at its peak "
        f"({expected.phase}), the card has {limit / GIB:.1f} GiB available",
        fix=f"{settings} (then {changes[-1].peak_bytes / GIB:.1f} GiB)"
        if enough
        else "no setting makes it fit; use a larger card",
    )


def require_room(workload: Workload, base: BaseConfigs) -> None:
    """Refuse what this machine's card cannot hold; without a card, do nothing.

    Raises:
        BadInput: names the settings that would make it fit.
    """
    gpu = present_gpu()
    if gpu is None:
        return
    problem = preflight(workload, base, gpu).problem
    if problem is not None:
        raise BadInput(problem.message, where=problem.where, fix=problem.fix)


def present_gpu() -> Gpu | None:
    """The first CUDA card of this machine with its memory; None without one."""
    # Without a driver's device there is none, and torch takes seconds to say so.
    devices = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in devices):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    from styletune.planning.gpus import Gpu, find_gpu

    facts = torch.cuda.get_device_properties(0)
    try:
        tflops = find_gpu(facts.name).tflops
    except BadInput:
        tflops = None
    return Gpu(facts.name, tflops, facts.total_memory)

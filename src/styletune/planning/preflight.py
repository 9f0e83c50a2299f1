"""What a run will need before anything is loaded: memory, FLOPs, and whether a card has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from styletune.errors import BadInput

if TYPE_CHECKING:
    from styletune.models.family import BaseConfigs
    from styletune.models.load import BaseFiles
    from styletune.planning.gpus import Gpu
    from styletune.planning.memory import MemoryEstimate
    from styletune.planning.workload import Workload

# Of a card's memory; the rest is the desktop's and the driver's.
USABLE_SHARE = 0.96


def configs_of(base: BaseFiles | None) -> BaseConfigs:
    """The base's own configurations; the published ones for a model not on this machine."""
    from styletune.models.families import DEFAULT_FAMILY
    from styletune.models.load import base_configs

    return DEFAULT_FAMILY.configs if base is None else base_configs(base)


def preflight(
    workload: Workload, base: BaseConfigs, gpu: Gpu | None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The plan's ``memory`` and ``compute``, and a problem when the card has too little memory."""
    from styletune.planning.gpus import floor_s
    from styletune.planning.memory import estimate

    expected, train = estimate(workload, base), workload.step.train
    document: dict[str, Any] = {
        "memory": {
            "peak_bytes": expected.peak_bytes,
            "phase": expected.phase,
            "parts": dict(expected.parts),
            "phases": dict(expected.phases),
        },
        "compute": {
            "step_flops": expected.step_flops,
            "forward_flops": expected.forward_flops,
            "gpu": None,
            "floor_s": None,
            "images_per_s": None,
        },
    }
    if gpu is None:
        return document, []
    document["compute"]["gpu"] = gpu.name
    floor = floor_s(expected.step_flops, gpu)
    if floor is not None:
        images = train.batch_size * train.gradient_accumulation_steps
        document["compute"] |= {
            "floor_s": round(floor * train.steps, 1),
            "images_per_s": round(images / floor, 2),
        }
    if expected.peak_bytes <= usable_bytes(gpu):
        return document, []
    return document, [_too_large(workload, base, expected, gpu)]


def usable_bytes(gpu: Gpu) -> int:
    """The memory that a run may plan with."""
    return int(gpu.memory_bytes * USABLE_SHARE)


def _too_large(
    workload: Workload, base: BaseConfigs, expected: MemoryEstimate, gpu: Gpu
) -> dict[str, str]:
    from styletune.planning.gpus import GIB
    from styletune.planning.suggestions import fits

    limit = usable_bytes(gpu)
    changes = fits(workload, limit, base)
    enough = bool(changes) and changes[-1].peak_bytes <= limit
    settings = "; ".join(change.setting for change in changes)
    return {
        "severity": "error",
        "where": f"memory of {gpu.name}",
        "message": f"the run needs {expected.peak_bytes / GIB:.1f} GiB at its peak "
        f"({expected.phase}), the card has {limit / GIB:.1f} GiB available",
        "fix": f"{settings} (then {changes[-1].peak_bytes / GIB:.1f} GiB)"
        if enough
        else "no setting makes it fit; use a larger card",
    }


def require_room(workload: Workload, base: BaseConfigs) -> None:
    """Refuse what this machine's card cannot hold; without a card, do nothing.

    Raises:
        BadInput: names the settings that would make it fit.
    """
    gpu = present_gpu()
    if gpu is None:
        return
    for problem in preflight(workload, base, gpu)[1]:
        raise BadInput(problem["message"], where=problem["where"], fix=problem["fix"])


def present_gpu() -> Gpu | None:
    """The first CUDA card of this machine with its memory; None without one."""
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

"""What a run will need before anything is loaded: memory, FLOPs, and whether a card has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from styletune.data.pixels.buckets import Size
from styletune.errors import BadInput
from styletune.recipe import Recipe

if TYPE_CHECKING:
    from styletune.models.family import BaseConfigs
    from styletune.models.load import BaseFiles
    from styletune.planning.gpus import Gpu
    from styletune.planning.memory import Setup

DRAWN_AT_ONCE = 1  # previews and class images: beside a training run there is no memory for more
# Of a card's memory, what a run may plan with; the rest is the desktop's and the driver's.
USABLE_SHARE = 0.96


def setup_of(recipe: Recipe, largest: Size, shown: int, captions: int) -> Setup:
    """What the recipe needs memory for.

    ``largest`` is the (height, width) in pixels of its largest bucket, ``shown`` the entries of
    the cache, ``captions`` those encoded, variants included.
    """
    from styletune.planning.memory import Setup
    from styletune.planning.meter import StepShape

    adapter, train, dreambooth = recipe.adapter, recipe.train, recipe.dreambooth
    step = StepShape(
        height=largest[0],
        width=largest[1],
        batch_size=train.batch_size,
        base_bytes=4 if train.mixed_precision == "no" else 2,
        quantization=recipe.base.quantization,
        kind=adapter.kind,
        rank=adapter.rank,
        conv_rank=adapter.conv_rank,
        block_ranks=tuple(adapter.block_ranks.items()),
        target=adapter.target,
        text_encoders=adapter.text_encoders,
        text_encoder_target=adapter.text_encoder_target,
        text_encoder_rank=adapter.text_encoder_rank,
        new_tokens=len(adapter.new_tokens),
        gradient_checkpointing=train.gradient_checkpointing,
        prior=dreambooth.prior,
    )
    class_images = dreambooth.num_class_images if dreambooth.prior == "images" else 0
    extra = recipe.data.extra_resolutions
    side_key = "[data] resolution"
    if extra and max(extra) > (recipe.data.resolution or min(largest)):
        side_key = "[data] extra_resolutions, at most"
    return Setup(
        step=step,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        optimizer=recipe.optimizer.name,
        ema=recipe.optimizer.ema_decay > 0,
        images=shown + class_images,
        # Trained text encoders read the words anew at every step.
        captions=0 if adapter.text_encoders != "none" or adapter.new_tokens else captions + 1,
        side_key=side_key,
        preview_batch=DRAWN_AT_ONCE if recipe.preview.prompts else 0,
        class_batch=DRAWN_AT_ONCE if class_images else 0,
        score_batch=recipe.score.batch_size if recipe.score else 0,
        # SDXL's own VAE overflows in float16: the pipeline then decodes in float32.
        decode_bytes=2 if train.mixed_precision == "bf16" else 4,
    )


def configs_of(base: BaseFiles | None) -> BaseConfigs:
    """The base's own configurations; the published ones for a model not on this machine."""
    from styletune.models.families import DEFAULT_FAMILY
    from styletune.models.load import base_configs

    return DEFAULT_FAMILY.configs if base is None else base_configs(base)


def preflight(
    setup: Setup, base: BaseConfigs, steps: int, images: int, gpu: Gpu | None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The plan's ``memory`` and ``compute``, and a problem when the card has too little memory.

    ``images`` is how many a step sees.
    """
    from styletune.planning.gpus import GIB, floor_s
    from styletune.planning.memory import estimate, fits

    found = estimate(setup, base)
    document: dict[str, Any] = {
        "memory": {
            "peak_bytes": found.peak_bytes,
            "phase": found.phase,
            "parts": dict(found.parts),
            "phases": dict(found.phases),
        },
        "compute": {
            "step_flops": found.step_flops,
            "forward_flops": found.forward_flops,
            "gpu": None,
            "floor_s": None,
            "images_per_s": None,
        },
    }
    if gpu is None:
        return document, []
    document["compute"]["gpu"] = gpu.name
    floor = floor_s(found.step_flops, gpu)
    if floor is not None:
        document["compute"] |= {
            "floor_s": round(floor * steps, 1),
            "images_per_s": round(images / floor, 2),
        }
    limit = int(gpu.memory_bytes * USABLE_SHARE)
    if found.peak_bytes <= limit:
        return document, []
    changes = fits(setup, limit, base)
    enough = bool(changes) and changes[-1].peak_bytes <= limit
    settings = "; ".join(c.setting for c in changes)
    return document, [
        {
            "severity": "error",
            "where": f"memory of {gpu.name}",
            "message": f"the run needs {found.peak_bytes / GIB:.1f} GiB at its peak "
            f"({found.phase}), the card lends {limit / GIB:.1f}",
            "fix": f"{settings} (then {changes[-1].peak_bytes / GIB:.1f} GiB)"
            if enough
            else "no setting makes it fit; use a larger card",
        }
    ]


def require_room(setup: Setup, base: BaseConfigs) -> None:
    """Refuse what this machine's card cannot hold; without one anything goes.

    Raises:
        BadInput: names the settings that would make it fit.
    """
    gpu = present_gpu()
    if gpu is None:
        return
    for problem in preflight(setup, base, 1, 1, gpu)[1]:
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

"""Which settings to change so that a run fits a card: what-if changes of the recipe's sections."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from styletune.planning.workload import Workload
from styletune.recipe.training_sections import Quantization

Change = Callable[[Workload], tuple[str, Workload]]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change of the recipe, and the run with it and those before it."""

    setting: str
    workload: Workload
    peak_bytes: int


def suggest_changes(
    workload: Workload,
    memory_bytes: int,
    phases_of: Callable[[Workload], Mapping[str, int]],
) -> list[Suggestion]:
    """Settings to change, one upon the other, until the run fits; empty when it does already.

    ``phases_of`` gives the peak bytes of each phase of a run, as ``estimate`` does.

    Each is tried by estimating again and left out when it does not help. The order goes from no
    harm to the result to most. When the last suggestion's peak is still above ``memory_bytes``,
    nothing known here makes the run fit.
    """
    helpful: list[Suggestion] = []
    now = phases_of(workload)
    for change, times in _CHANGES:
        suggestion = None
        for _ in range(times):
            setting, candidate = change(workload)
            if max(now.values()) <= memory_bytes or candidate == workload:
                break
            then = phases_of(candidate)
            # By all phases: one that is over may hide behind a worse one.
            if _excess(then, memory_bytes) >= _excess(now, memory_bytes):
                break
            workload, now = candidate, then
            suggestion = Suggestion(setting, workload, max(now.values()))
        if suggestion is not None:
            key = _key(suggestion.setting)
            # A later value of the same key replaces the earlier one.
            helpful = [kept for kept in helpful if not _key(kept.setting).startswith(key)]
            helpful.append(suggestion)
    return helpful


def _key(setting: str) -> str:
    """``[section] key`` of a setting; ``[section]`` where the section is left out."""
    match = re.search(r"\[\w+\](?: \w+(?= =))?", setting)
    return match[0] if match else setting


def _excess(phases: Mapping[str, int], memory_bytes: int) -> int:
    return sum(max(0, peak - memory_bytes) for peak in phases.values())


def _half_precision(workload: Workload) -> tuple[str, Workload]:
    setting = '[train] mixed_precision = "bf16"'
    if workload.step.train.mixed_precision != "no":
        return setting, workload
    return setting, _with_train(workload, {"mixed_precision": "bf16"})


def _without_previews(workload: Workload) -> tuple[str, Workload]:
    preview = workload.preview.model_copy(update={"prompts": ()})
    return "[preview] prompts = []", replace(workload, preview=preview)


def _score_fewer(workload: Workload) -> tuple[str, Workload]:
    """A quarter of the images at a time."""
    if workload.score is None:
        return "", workload
    batch_size = max(1, workload.score.batch_size // 4)
    score = workload.score.model_copy(update={"batch_size": batch_size})
    return f"[score] batch_size = {batch_size}", replace(workload, score=score)


def _score_elsewhere(workload: Workload) -> tuple[str, Workload]:
    setting = "no [score], and styletune score on a larger card"
    return setting, replace(workload, score=None) if workload.trains else workload


def _recompute(workload: Workload) -> tuple[str, Workload]:
    full = _with_train(workload, {"gradient_checkpointing": "full"})
    return '[train] gradient_checkpointing = "full"', full


def _prior_by_prediction(workload: Workload) -> tuple[str, Workload]:
    """Its target costs a pass without gradients, but no class images."""
    setting, dreambooth = '[dreambooth] prior = "prediction"', workload.step.dreambooth
    if dreambooth.prior != "images":
        return setting, workload
    dreambooth = dreambooth.model_copy(update={"prior": "prediction"})
    return setting, replace(workload, step=replace(workload.step, dreambooth=dreambooth))


def _eight_bit_base(workload: Workload) -> tuple[str, Workload]:
    setting = '[base] quantization = "int8"'
    if workload.step.base.quantization != "none":
        return setting, workload
    return setting, _with_quantization(workload, "int8")


def _four_bit_base(workload: Workload) -> tuple[str, Workload]:
    return '[base] quantization = "nf4"', _with_quantization(workload, "nf4")


def _one_image(workload: Workload) -> tuple[str, Workload]:
    """The same images per step, one after the other."""
    train = workload.step.train
    total = train.batch_size * train.gradient_accumulation_steps
    setting = f"[train] batch_size = 1, gradient_accumulation_steps = {total}"
    if train.batch_size == 1:
        return setting, workload
    one = {"batch_size": 1, "gradient_accumulation_steps": total}
    return setting, _with_train(workload, one)


def _eight_bit_optimizer(workload: Workload) -> tuple[str, Workload]:
    optimizer = workload.optimizer
    # Prodigy's rate is a factor, AdamW's the rate itself.
    rate = ", learning_rate = 1e-4" if optimizer.name == "prodigy" else ""
    setting = f'[optimizer] name = "adamw8bit"{rate}'
    if optimizer.name in ("adafactor", "lion", "paged-adamw8bit"):
        return setting, workload  # at least as small
    optimizer = optimizer.model_copy(update={"name": "adamw8bit"})
    return setting, replace(workload, optimizer=optimizer)


def _lower_rank(workload: Workload) -> tuple[str, Workload]:
    adapter = workload.step.adapter
    rank = max(min(adapter.rank, 4), adapter.rank // 2)
    lower = adapter.model_copy(update={"rank": rank})
    return f"[adapter] rank = {rank}", replace(workload, step=replace(workload.step, adapter=lower))


def _smaller_images(workload: Workload) -> tuple[str, Workload]:
    """Three quarters of the side."""
    step = workload.step
    height, width = (max(64, side * 3 // 4 // 64 * 64) for side in (step.height, step.width))
    side = round(math.sqrt(height * width) / 64) * 64
    smaller = replace(step, height=height, width=width)
    return f"{workload.side_key} = {side}", replace(workload, step=smaller)


def _with_train(workload: Workload, update: Mapping[str, object]) -> Workload:
    train = workload.step.train.model_copy(update=update)
    return replace(workload, step=replace(workload.step, train=train))


def _with_quantization(workload: Workload, quantization: Quantization) -> Workload:
    step = workload.step
    if step.adapter.kind != "lora":
        return workload  # the other kinds need the base's own weights
    base = step.base.model_copy(update={"quantization": quantization})
    return replace(workload, step=replace(step, base=base))


# Each with how often it is tried while it helps.
_CHANGES: tuple[tuple[Change, int], ...] = (
    (_half_precision, 1),
    (_without_previews, 1),
    (_score_fewer, 2),
    (_score_elsewhere, 1),
    (_recompute, 1),
    (_prior_by_prediction, 1),
    (_eight_bit_base, 1),
    (_one_image, 1),
    (_eight_bit_optimizer, 1),
    (_four_bit_base, 1),
    (_lower_rank, 1),
    (_smaller_images, 2),
)

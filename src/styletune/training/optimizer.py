"""The optimizers and the learning rate of every step."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import torch

from styletune.errors import BadInput
from styletune.recipe.training_sections import OptimizerName, OptimizerSection
from styletune.training.groups import ParameterGroup, split_lora_plus

_LIBRARIES: Mapping[OptimizerName, str] = {
    "adamw": "torch.optim",
    "adamw8bit": "bitsandbytes.optim",
    "paged-adamw8bit": "bitsandbytes.optim",
    "lion": "bitsandbytes.optim",
    "adafactor": "transformers.optimization",
    "prodigy": "prodigyopt",
    "schedule-free-adamw": "schedulefree",
}


def make_optimizer(
    groups: Sequence[ParameterGroup], section: OptimizerSection
) -> torch.optim.Optimizer:
    """The optimizer over named parameter groups, ready for its first step.

    "adamw" is torch's fused AdamW (arXiv 1711.05101); "adamw8bit", "paged-adamw8bit" and "lion"
    (arXiv 2302.06675) are bitsandbytes'; the 8-bit ones keep tensors under 4096 elements in 32
    bits. "adafactor" (arXiv 1804.04235) is transformers', with the section's rate rather than a
    relative one, and no moments to set betas of. "prodigy" (arXiv 2306.06101) corrects the bias
    and guards its estimate against the warm-up. "schedule-free-adamw" (arXiv 2405.15682) comes
    in training mode, see ``to_eval``.

    Args:
        groups: no parameter in two of them; ``lora_plus_ratio`` splits them further.
        section: the loop sets the rates of every step with ``set_rates``.

    Raises:
        BadInput: an optimizer that is not installed.
    """
    parts = [p for group in groups for p in split_lora_plus(group, section.lora_plus_ratio)]
    torch_groups: list[dict[str, Any]] = [
        {
            "params": list(group.parameters.items()),
            "name": group.name,
            "rate_factor": group.rate_factor,
            # Prodigy would shrink weights that are not to be trained.
            "weight_decay": section.weight_decay if group.rate_factor else 0.0,
        }
        for group in parts
    ]
    optimizer = _construct(torch_groups, section)
    set_rates(optimizer, section.learning_rate)
    to_train(optimizer)
    return optimizer


def _construct(groups: list[dict[str, Any]], section: OptimizerSection) -> torch.optim.Optimizer:
    """The bare optimizer. Imports only what the name needs."""
    rate, decay = section.learning_rate, section.weight_decay
    betas = (section.beta1, section.beta2)
    library = optimizer_library(section.name)
    match section.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=decay, fused=True)
        case "adamw8bit" | "paged-adamw8bit" | "lion":
            optimizer = {
                "adamw8bit": library.AdamW8bit,
                "paged-adamw8bit": library.PagedAdamW8bit,
                "lion": library.Lion,
            }[section.name](groups, lr=rate, betas=betas, weight_decay=decay)
        case "adafactor":
            optimizer = library.Adafactor(
                groups, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False
            )
        case "prodigy":
            # It prints, and standard output is for our one JSON document.
            with contextlib.redirect_stdout(io.StringIO()):
                optimizer = library.Prodigy(
                    groups,
                    lr=rate,
                    betas=betas,
                    weight_decay=decay,
                    use_bias_correction=True,
                    safeguard_warmup=True,
                )
        case "schedule-free-adamw":
            optimizer = library.AdamWScheduleFree(groups, lr=rate, betas=betas, weight_decay=decay)
        case _:
            assert_never(section.name)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def optimizer_library(name: OptimizerName) -> Any:
    """The module that has an optimizer, imported. Raises BadInput when it is not installed."""
    module = _LIBRARIES[name]
    try:
        # By name: these libraries carry no types.
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).split(".")[0]
        raise BadInput(
            f"{name} needs {package}, which cannot be imported here: {error}",
            where="[optimizer] name",
            fix=f'pip install {package}, or name = "adamw"',
        ) from error


def to_train(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights that gradients are taken at in place (schedule-free; no-op for others)."""
    switch = getattr(optimizer, "train", None)
    if switch is not None:
        switch()


def to_eval(optimizer: torch.optim.Optimizer) -> None:
    """Put the averaged weights in place: to preview, validate, save (schedule-free, else no-op).

    Going back with ``to_train`` is exact up to rounding; keep a copy where bits count.
    """
    switch = getattr(optimizer, "eval", None)
    if switch is not None:
        switch()


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group of ``make_optimizer`` to ``rate`` times its ``rate_factor``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def learning_rate_at(step: int, section: OptimizerSection, steps: int) -> float:
    """The rate of a step (0-based) of ``steps``: linear warm-up, then the section's schedule.

    With x from 0 after the warm-up to 1 after the last step: "constant" is the peak; "linear"
    peak · (1 − x); "cosine" peak · (1 + cos πx) / 2; "polynomial" peak · (1 − x)^power. A pure
    function, so a resumed run cannot lose its schedule. For prodigy it multiplies the rate that
    prodigy finds.
    """
    peak, warmup_steps = section.learning_rate, section.warmup_steps
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    x = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    match section.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - x)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * x))
        case "polynomial":
            return float(peak * (1 - x) ** section.schedule_power)
        case _:
            assert_never(section.schedule)

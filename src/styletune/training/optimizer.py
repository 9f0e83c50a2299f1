"""The optimizers, their parameter groups and the learning rate of every step."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from styletune.errors import BadInput

# The second factor of a low-rank update, by its name in an adapter file.
FACTOR_B = "lora_B"


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """The recipe's [optimizer], and how many ``steps`` the schedule spans.

    ``learning_rate`` is the peak; for prodigy it multiplies the rate that prodigy finds.
    ``lora_plus_ratio`` is the rate of B over that of A (arXiv 2402.12354); 1, alike.
    """

    name: str
    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    schedule: str
    schedule_power: float
    warmup_steps: int
    steps: int
    lora_plus_ratio: float
    max_grad_norm: float


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters, by name, that train at ``rate_factor`` times the learning rate."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    rate_factor: float


def split_lora_plus(group: Group, ratio: float) -> list[Group]:
    """Give a group's B factors ``ratio`` times its rate (LoRA+, arXiv 2402.12354).

    The rest keeps the group's rate. A group without B factors comes back as it is.
    """
    factors = {n: p for n, p in group.parameters.items() if FACTOR_B in n}
    if ratio == 1 or not factors:
        return [group]
    rest = {n: p for n, p in group.parameters.items() if n not in factors}
    faster = Group(f"{group.name}/B", factors, group.rate_factor * ratio)
    return [Group(group.name, rest, group.rate_factor), faster] if rest else [faster]


def make_optimizer(groups: Sequence[Group], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer over named parameter groups, ready for its first step.

    "adamw" is torch's fused AdamW (arXiv 1711.05101); "adamw8bit", "paged-adamw8bit" and "lion"
    (arXiv 2302.06675) are bitsandbytes'; the 8-bit ones keep tensors under 4096 elements in 32
    bits. "adafactor" (arXiv 1804.04235) is transformers', with the given rate rather than a
    relative one, and no moments to set betas of. "prodigy" (arXiv 2306.06101) corrects the bias
    and guards its estimate against the warm-up. "schedule-free-adamw" (arXiv 2405.15682) comes
    in training mode, see ``to_eval``.

    Args:
        groups: no parameter in two of them; ``lora_plus_ratio`` splits them further.
        settings: see there; the loop sets the rates of every step with ``set_rates``.

    Raises:
        BadInput: a setting that the optimizer or the adapter has no use for, an optimizer that
            is not installed, or nothing to train.
    """
    ratio = settings.lora_plus_ratio
    parts = [part for g in groups if g.parameters for part in split_lora_plus(g, ratio)]
    if not parts:
        raise BadInput("there is nothing to train", where="[adapter]")
    if ratio != 1 and not any(FACTOR_B in name for g in parts for name in g.parameters):
        raise BadInput(
            "LoRA+ needs an adapter with factors A and B; this one has none",
            where="[optimizer] lora_plus_ratio",
            fix="lora_plus_ratio = 1",
        )
    factors = {g.rate_factor for g in parts if g.rate_factor != 0}
    if settings.name == "prodigy" and len(factors) > 1:
        raise BadInput(
            "prodigy finds one learning rate for all parameters; the recipe asks for "
            f"{len(factors)} different ones",
            where="[optimizer] name",
            fix='name = "adamw", or leave out lora_plus_ratio and the rates of single parts',
        )
    if settings.name == "adafactor" and (settings.beta1, settings.beta2) != (0.9, 0.999):
        raise BadInput(
            "adafactor has no moments that beta1 and beta2 could set",
            where="[optimizer] beta1, beta2",
            fix="leave them out",
        )
    torch_groups: list[dict[str, Any]] = [
        {
            "params": list(g.parameters.items()),
            "name": g.name,
            "rate_factor": g.rate_factor,
            # Prodigy would shrink weights that are not to be trained.
            "weight_decay": settings.weight_decay if g.rate_factor else 0.0,
        }
        for g in parts
    ]
    optimizer = _construct(torch_groups, settings)
    set_rates(optimizer, 0, settings)
    to_train(optimizer)
    return optimizer


def _construct(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The bare optimizer. Imports only what the name needs."""
    rate, decay = settings.learning_rate, settings.weight_decay
    betas = (settings.beta1, settings.beta2)
    try:
        match settings.name:
            case "adamw":
                return torch.optim.AdamW(
                    groups, lr=rate, betas=betas, weight_decay=decay, fused=True
                )
            case "adamw8bit" | "paged-adamw8bit" | "lion":
                # Imported by name, here and below: these libraries carry no types.
                bnb = importlib.import_module("bitsandbytes.optim")
                made = {
                    "adamw8bit": bnb.AdamW8bit,
                    "paged-adamw8bit": bnb.PagedAdamW8bit,
                    "lion": bnb.Lion,
                }[settings.name](groups, lr=rate, betas=betas, weight_decay=decay)
            case "adafactor":
                made = importlib.import_module("transformers.optimization").Adafactor(
                    groups, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False
                )
            case "prodigy":
                library = importlib.import_module("prodigyopt")
                # It prints, and standard output is for our one JSON document.
                with contextlib.redirect_stdout(io.StringIO()):
                    made = library.Prodigy(
                        groups,
                        lr=rate,
                        betas=betas,
                        weight_decay=decay,
                        use_bias_correction=True,
                        safeguard_warmup=True,
                    )
            case "schedule-free-adamw":
                made = importlib.import_module("schedulefree").AdamWScheduleFree(
                    groups, lr=rate, betas=betas, weight_decay=decay
                )
            case _:
                raise BadInput(
                    f"optimizer {settings.name!r} is unknown",
                    where="[optimizer] name",
                    fix="choices: adamw, adamw8bit, paged-adamw8bit, adafactor, prodigy, "
                    "schedule-free-adamw, lion",
                )
    except ImportError as error:
        package = (error.name or "its package").split(".")[0]
        raise BadInput(
            f"{settings.name} needs {package}, which cannot be imported here: {error}",
            where="[optimizer] name",
            fix=f'pip install {package}, or name = "adamw"',
        ) from error
    assert isinstance(made, torch.optim.Optimizer)
    return made


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


def set_rates(optimizer: torch.optim.Optimizer, step: int, settings: OptimizerSettings) -> float:
    """Set every group's rate for a step (0-based) and return the one of factor 1.

    A group of ``make_optimizer`` gets its ``rate_factor`` times ``learning_rate_at``.
    """
    rate = learning_rate_at(
        step,
        peak=settings.learning_rate,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        schedule=settings.schedule,
        power=settings.schedule_power,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
    return rate


def learning_rate_at(
    step: int, *, peak: float, steps: int, warmup_steps: int, schedule: str, power: float = 1.0
) -> float:
    """The rate of a step (0-based): linear warm-up, then what the schedule says.

    With x from 0 after the warm-up to 1 after the last step: "constant" is peak; "linear"
    peak · (1 − x); "cosine" peak · (1 + cos πx) / 2; "polynomial" peak · (1 − x)^power. A pure
    function, so a resumed run cannot lose its schedule.

    Raises:
        BadInput: a schedule that is none of these.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    match schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "polynomial":
            return float(peak * (1 - done) ** power)
    raise BadInput(
        f"schedule {schedule!r} is unknown",
        where="[optimizer] schedule",
        fix="choices: constant, linear, cosine, polynomial",
    )

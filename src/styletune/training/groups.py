"""Which parameters train together, and at what multiple of the learning rate."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from styletune.errors import BadInput
from styletune.models.family import Family
from styletune.recipe.training_sections import OptimizerSection

if TYPE_CHECKING:
    from torch import nn

# The second factor of a low-rank update, by its name in an adapter file.
FACTOR_B = "lora_B"


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters, by name, that train at ``rate_factor`` times the learning rate."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    rate_factor: float


def parameter_groups(
    section: OptimizerSection,
    block_rates: Mapping[str, float],
    parameters: Mapping[str, nn.Parameter],
    family: Family,
) -> list[ParameterGroup]:
    """Parameters by their rate: that of their component, times their block's factor.

    Args:
        section: its learning rates are used.
        block_rates: [adapter] ``block_learning_rates``, see ``block_factors``.
        parameters: everything that is trained, by its name in an adapter file.
        family: of the base model.

    Raises:
        BadInput: a block pattern that matches nothing that is trained.
    """
    members: dict[tuple[str, float], dict[str, nn.Parameter]] = {}
    for name, factor in rate_factors(section, block_rates, parameters, family).items():
        component = name.partition(".")[0]
        members.setdefault((component, factor), {})[name] = parameters[name]
    return [ParameterGroup(f"{c} x{f:g}", group, f) for (c, f), group in members.items()]


def rate_factors(
    section: OptimizerSection,
    block_rates: Mapping[str, float],
    names: Collection[str],
    family: Family,
) -> dict[str, float]:
    """What multiplies the learning rate of each tensor; arguments and errors as above."""
    factors = block_factors(block_rates, names)
    rates: dict[str, float | None] = {"unet": None}
    for encoder in family.text_encoders:
        rates[encoder.name] = getattr(section, f"{encoder.name}_learning_rate")
        rates[encoder.embedding_key] = section.token_learning_rate
    return {
        name: (1.0 if rate is None else rate / section.learning_rate) * factors.get(name, 1.0)
        for name in names
        for rate in (rates[name.partition(".")[0]],)
    }


def block_factors(block_rates: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """The factor on the rate of each of the UNet's tensors that a pattern matches, by name.

    A pattern is the start of a module's path, shell style; the first match applies.

    Raises:
        BadInput: a pattern that matches nothing that is trained.
    """
    paths = {n: n.removeprefix("unet.") for n in names if n.startswith("unet.")}
    factors: dict[str, float] = {}
    matched: set[str] = set()
    for name, path in paths.items():
        hit = next((p for p in block_rates if fnmatch.fnmatchcase(path, f"{p}*")), None)
        if hit is not None:
            matched.add(hit)
            factors[name] = block_rates[hit]
    unmatched = [p for p in block_rates if p not in matched]
    if unmatched:
        raise BadInput(
            f'block pattern "{unmatched[0]}" matches nothing that is trained',
            where="[adapter] block_learning_rates",
            fix=f"names look like {next(iter(paths.values()), '')}",
        )
    return factors


def split_lora_plus(group: ParameterGroup, ratio: float) -> list[ParameterGroup]:
    """Give a group's B factors ``ratio`` times its rate (LoRA+, arXiv 2402.12354).

    The rest keeps the group's rate. A group without B factors comes back as it is.
    """
    factors = {n: p for n, p in group.parameters.items() if FACTOR_B in n}
    if ratio == 1 or not factors:
        return [group]
    rest = {n: p for n, p in group.parameters.items() if n not in factors}
    faster = ParameterGroup(f"{group.name}/B", factors, group.rate_factor * ratio)
    return [ParameterGroup(group.name, rest, group.rate_factor), faster] if rest else [faster]

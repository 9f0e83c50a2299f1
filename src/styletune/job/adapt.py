"""What is trained: the recipe's [adapter] put into the base model, with a rate for each part."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.errors import BadInput, StyletuneError
from styletune.models.families import DEFAULT_FAMILY, family_of
from styletune.models.family import Family, chosen_encoders
from styletune.recipe import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

    from styletune.adapters.file import AdapterSpec
    from styletune.adapters.inject import AdapterShape
    from styletune.training.optimizer import Group


@dataclass(frozen=True, slots=True)
class Models:
    """The pipeline with its adapter in place, and what of it is trained.

    ``adapted`` are the modules that have an adapter, by component; ``parameters`` all trained
    tensors by their name in an adapter file.
    """

    pipe: DiffusionPipeline
    adapted: Mapping[str, nn.Module]
    parameters: Mapping[str, nn.Parameter]
    spec: AdapterSpec

    def set_training(self, on: bool) -> None:
        """Put the adapted models into training or evaluation mode."""
        for module in self.adapted.values():
            module.train(on)


def adapt(recipe: Recipe, pipe: DiffusionPipeline, start_from: Path | None) -> Models:
    """Put an untrained adapter, or the one to go on from, into the pipeline's models.

    Raises:
        RecipeError, BadInput: a target, kind or starting adapter that does not fit.
    """
    from styletune.adapters.file import AdapterSpec
    from styletune.adapters.inject import (
        adapter_parameters,
        inject_adapter,
        target_modules,
        text_encoder_modules,
    )
    from styletune.adapters.tokens import token_parameters

    section, shape = recipe.adapter, adapter_shape(recipe)
    adapted: dict[str, nn.Module] = {"unet": pipe.unet}
    family, conv = family_of(pipe), section.conv_rank is not None
    modules = {"unet": target_modules(pipe.unet, section.target, conv, family)}
    for encoder in chosen_encoders(family, section.text_encoders):
        adapted[encoder.name] = getattr(pipe, encoder.name)
        modules[encoder.name] = text_encoder_modules(
            adapted[encoder.name], section.text_encoder_target
        )
    inject_adapter(adapted, shape, modules, recipe.train.seed)
    parameters = adapter_parameters(adapted)
    if section.new_tokens:
        parameters |= token_parameters(pipe)
    spec = AdapterSpec(
        rank=shape.rank,
        alpha=shape.alpha,
        kind=shape.kind,
        rslora=shape.rslora,
        tokens=section.new_tokens,
    )
    if start_from is not None:
        _start_from(start_from, pipe, adapted, spec)
    return Models(pipe, adapted, parameters, spec)


def adapter_shape(recipe: Recipe) -> AdapterShape:
    """The recipe's [adapter] as what is injected."""
    from styletune.adapters.inject import AdapterShape

    section = recipe.adapter
    return AdapterShape(
        kind=section.kind,
        rank=section.rank,
        alpha=section.alpha or float(section.rank),
        rslora=section.rslora,
        conv_rank=section.conv_rank,
        block_ranks=section.block_ranks,
        text_encoder_rank=section.text_encoder_rank,
    )


def _start_from(
    file: Path, pipe: DiffusionPipeline, adapted: Mapping[str, nn.Module], spec: AdapterSpec
) -> None:
    """Copy an existing adapter's updates in, rescaled to the recipe's alpha."""
    from styletune.adapters.inject import load_into
    from styletune.adapters.layouts import read_adapter_file, rescaled
    from styletune.adapters.tokens import load_token_rows

    where = f"[adapter] start_from = {str(file)!r}"
    family = family_of(pipe)
    tensors, given = read_adapter_file(file, family)
    has_words = family.text_encoders[0].embedding_key in tensors
    # A file of another tool may have rows and not say of which words; ours says it.
    if (given.tokens and given.tokens != spec.tokens) or (has_words and not spec.tokens):
        named = ", ".join(given.tokens) or "without their names"
        raise BadInput(
            f"was trained with new words ({named}), the recipe has "
            f"{', '.join(spec.tokens) or 'none'}",
            where=where,
            fix=f"new_tokens = {json.dumps(list(given.tokens))}"
            if given.tokens
            else "name them in new_tokens, in the order of the rows",
        )
    if given.tokens and not has_words:
        raise BadInput(
            f"holds no rows of its new words ({', '.join(given.tokens)})",
            where=where,
            fix="start from the checkpoint's adapter.safetensors, which has them",
        )
    values = rescaled(tensors, given, spec)
    try:
        load_into(adapted, values)
        if has_words:
            load_token_rows(pipe, tensors)
    except StyletuneError as error:
        raise BadInput(
            f"does not fit the recipe's adapter: {error.message}",
            where=where,
            fix="choose the target, rank, text encoders and new tokens that it was trained with",
        ) from error


def block_factors(recipe: Recipe, names: Iterable[str]) -> dict[str, float]:
    """The factor on the rate of those of the UNet's tensors that a pattern matches, by name.

    Raises:
        BadInput: a pattern that matches nothing that is trained.
    """
    patterns = recipe.adapter.block_learning_rates
    paths = {n: n.removeprefix("unet.") for n in names if n.startswith("unet.")}
    found, matched = dict[str, float](), set[str]()
    for name, path in paths.items():
        hit = next((p for p in patterns if fnmatch.fnmatchcase(path, f"{p}*")), None)
        if hit is not None:
            matched.add(hit)
            found[name] = patterns[hit]
    lost = [p for p in patterns if p not in matched]
    if lost:
        raise BadInput(
            f'block pattern "{lost[0]}" matches nothing that is trained',
            where="[adapter] block_learning_rates",
            fix=f"names look like {next(iter(paths.values()), '')}",
        )
    return found


def parameter_groups(
    recipe: Recipe, parameters: Mapping[str, nn.Parameter], family: Family = DEFAULT_FAMILY
) -> list[Group]:
    """Parameters by their rate: of their component, times their block's factor.

    Raises:
        BadInput: a block pattern that matches nothing that is trained.
    """
    from styletune.training.optimizer import Group

    section, factors = recipe.optimizer, block_factors(recipe, parameters)
    rates: dict[str, float | None] = {"unet": None}
    for encoder in family.text_encoders:
        rates[encoder.name] = getattr(section, f"{encoder.name}_learning_rate")
        rates[encoder.embedding_key] = section.token_learning_rate
    found: dict[tuple[str, float], dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        component = name.partition(".")[0]
        rate = rates[component]
        factor = 1.0 if rate is None else rate / section.learning_rate
        factor *= factors.get(name, 1.0)
        found.setdefault((component, factor), {})[name] = parameter
    return [Group(f"{c} x{f:g}", members, f) for (c, f), members in found.items()]

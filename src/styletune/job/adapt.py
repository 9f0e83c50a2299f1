"""What is trained: the recipe's [adapter] put into the base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.errors import BadInput, StyletuneError
from styletune.models.families import family_of
from styletune.models.family import chosen_encoders
from styletune.recipe.training_sections import AdapterSection

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

    from styletune.adapters.file import AdapterSpec


@dataclass(frozen=True, slots=True)
class AdaptedPipeline:
    """The pipeline with its adapter in place, and what of it is trained.

    ``modules`` are the models that have an adapter, by component; ``parameters`` all trained
    tensors by their name in an adapter file.
    """

    pipe: DiffusionPipeline
    modules: Mapping[str, nn.Module]
    parameters: Mapping[str, nn.Parameter]
    spec: AdapterSpec


def adapt(
    pipe: DiffusionPipeline, adapter: AdapterSection, seed: int, start_from: Path | None
) -> AdaptedPipeline:
    """Put an untrained adapter, or the one to start from, into the pipeline's models.

    Args:
        pipe: with the section's new tokens added.
        adapter: what is adapted, and how.
        seed: of the starting values.
        start_from: an adapter's file, or None.

    Raises:
        RecipeError, BadInput: a target, kind or starting adapter that does not fit.
    """
    from styletune.adapters.inject import (
        adapted_modules,
        adapter_parameters,
        adapter_spec,
        inject_adapter,
    )
    from styletune.adapters.tokens import token_parameters

    family = family_of(pipe)
    encoders = chosen_encoders(family, adapter.text_encoders)
    components = ("unet", *(encoder.name for encoder in encoders))
    modules: dict[str, nn.Module] = {name: getattr(pipe, name) for name in components}
    inject_adapter(modules, adapter, adapted_modules(modules, adapter, family), seed)
    parameters = adapter_parameters(modules)
    if adapter.new_tokens:
        parameters |= token_parameters(pipe)
    spec = adapter_spec(adapter)
    if start_from is not None:
        _start_from(start_from, pipe, modules, spec)
    return AdaptedPipeline(pipe, modules, parameters, spec)


def _start_from(
    file: Path, pipe: DiffusionPipeline, modules: Mapping[str, nn.Module], spec: AdapterSpec
) -> None:
    """Copy an existing adapter's updates in, rescaled to the recipe's alpha."""
    from styletune.adapters.inject import load_into
    from styletune.adapters.layouts import read_adapter_file, rescaled
    from styletune.adapters.tokens import load_token_rows

    where = f"[adapter] start_from = {str(file)!r}"
    family = family_of(pipe)
    tensors, stored = read_adapter_file(file, family)
    has_words = family.text_encoders[0].embedding_key in tensors
    # A file of another tool may have rows without naming their words; ours names them.
    if (stored.tokens and stored.tokens != spec.tokens) or (has_words and not spec.tokens):
        named = ", ".join(stored.tokens) or "without their names"
        raise BadInput(
            f"was trained with new words ({named}), the recipe has "
            f"{', '.join(spec.tokens) or 'none'}",
            where=where,
            fix=f"new_tokens = {json.dumps(list(stored.tokens))}"
            if stored.tokens
            else "name them in new_tokens, in the order of the rows",
        )
    if stored.tokens and not has_words:
        raise BadInput(
            f"holds no rows of its new words ({', '.join(stored.tokens)})",
            where=where,
            fix="start from the checkpoint's adapter.safetensors, which has them",
        )
    values = rescaled(tensors, stored, spec)
    try:
        load_into(modules, values)
        if has_words:
            load_token_rows(pipe, tensors)
    except StyletuneError as error:
        raise BadInput(
            f"does not fit the recipe's adapter: {error.message}",
            where=where,
            fix="choose the target, rank, text encoders and new tokens that it was trained with",
        ) from error

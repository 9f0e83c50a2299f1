"""What is trained: the recipe's [adapter] put into the base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from styletune.models.families import family_of
from styletune.models.family import chosen_encoders
from styletune.recipe.training_sections import AdapterSection

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

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
    pipe: DiffusionPipeline, adapter: AdapterSection, seed: int, start: Mapping[str, Tensor] | None
) -> AdaptedPipeline:
    """Put an untrained adapter, or the one to start from, into the pipeline's models.

    Args:
        pipe: with the section's new tokens added.
        adapter: what is adapted, and how.
        seed: of the starting values.
        start: values to start from, as ``starting_values``; None for an untrained adapter.

    Raises:
        RecipeError, BadInput: a target, kind or starting adapter that does not fit.
    """
    from styletune.adapters.inject import (
        adapted_modules,
        adapter_parameters,
        adapter_spec,
        inject_adapter,
        load_into,
    )
    from styletune.adapters.tokens import load_token_rows, token_parameters

    family = family_of(pipe)
    encoders = chosen_encoders(family, adapter.text_encoders)
    components = ("unet", *(encoder.name for encoder in encoders))
    modules: dict[str, nn.Module] = {name: getattr(pipe, name) for name in components}
    inject_adapter(modules, adapter, adapted_modules(modules, adapter, family), seed)
    parameters = adapter_parameters(modules)
    if adapter.new_tokens:
        parameters |= token_parameters(pipe)
    spec = adapter_spec(adapter)
    if start is not None:
        load_into(modules, start)
        if family.text_encoders[0].embedding_key in start:
            load_token_rows(pipe, start)
    return AdaptedPipeline(pipe, modules, parameters, spec)

"""Recipes: what they may say (``sections``) and how they are read (``load``, ``toml``)."""

from styletune.recipe.load import (
    LoadedRecipe,
    first_training_hash,
    load_recipe,
    recipe_hash,
    recipe_schema,
    training_hash,
    training_keys,
)
from styletune.recipe.output_sections import PublishSection
from styletune.recipe.section import NAME_PATTERN, Section
from styletune.recipe.sections import Recipe
from styletune.recipe.toml import load_toml, read_toml, validate

__all__ = [
    "NAME_PATTERN",
    "LoadedRecipe",
    "PublishSection",
    "Recipe",
    "Section",
    "first_training_hash",
    "load_recipe",
    "load_toml",
    "read_toml",
    "recipe_hash",
    "recipe_schema",
    "training_hash",
    "training_keys",
    "validate",
]

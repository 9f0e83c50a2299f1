"""Recipes: what they may say (``sections``) and how they are read (``load``)."""

from styletune.recipe.load import (
    LoadedRecipe,
    load_recipe,
    load_toml,
    read_toml,
    recipe_hash,
    recipe_schema,
    training_hash,
    training_keys,
    validate,
)
from styletune.recipe.section import Section
from styletune.recipe.sections import NAME_PATTERN, PublishSection, Recipe

__all__ = [
    "NAME_PATTERN",
    "LoadedRecipe",
    "PublishSection",
    "Recipe",
    "Section",
    "load_recipe",
    "load_toml",
    "read_toml",
    "recipe_hash",
    "recipe_schema",
    "training_hash",
    "training_keys",
    "validate",
]

"""A recipe: one strict TOML file that describes one whole run, read before any heavy import."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from styletune.errors import RecipeError
from styletune.recipe.sections import Recipe
from styletune.recipe.toml import read_toml, validate


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe with its name (the file's stem) and the folder its paths are relative to."""

    name: str
    file: Path
    recipe: Recipe

    def path(self, relative: str) -> Path:
        """A path of the recipe, which is relative to the recipe's folder."""
        return (self.file.parent / relative).resolve()


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of the resolved recipe's canonical JSON.

    Comments and order do not count, but for the patterns by block, of which the first match does.
    """
    return _canonical_hash(recipe.model_dump(mode="json"))


def _canonical_hash(tree: dict[str, Any]) -> str:
    adapter = tree["adapter"]
    for key in ("block_ranks", "block_learning_rates"):
        adapter[key] = list(adapter[key].items())
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def training_keys(recipe: Recipe) -> dict[str, Any]:
    """What decides the adapter; a new version number needs no new training.

    Neither does another place of the same images: what the sources hold and how often and how
    much it counts is in the data's fingerprint.
    """
    return recipe.model_dump(
        mode="json",
        exclude={
            "preview": True,
            "score": True,
            "publish": True,
            "data": {
                "path",
                "sources",
                "mask_path",
                "allow",
                "require_rights",
                "opt_out_override",
                "encoder",
            },
            "train": {"log_every", "keep_last", "validation_every", "tracker", "tracker_project"},
        },
    )


def training_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of ``training_keys``, as ``recipe_hash``."""
    return _canonical_hash(training_keys(recipe))


def load_recipe(file: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe strictly.

    Args:
        file: a TOML recipe.
        overrides: ``section.key=value`` strings; a value is read as TOML, else as a string.

    Raises:
        NotFound: there is no such file.
        RecipeError: not TOML, an unknown or misplaced key, a wrong type or value.
    """
    tree = read_toml(file)
    for override in overrides:
        _apply_override(tree, override)
    if isinstance(tree.get("name"), str):
        raise RecipeError(
            'unknown key "name"; a recipe is named by its file', where=str(file), fix="remove it"
        )
    recipe = validate(Recipe, tree, file)
    if not re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*$", file.stem):
        raise RecipeError(
            f'"{file.stem}" cannot name a run',
            where=str(file),
            fix="name the file with letters, digits, dots, dashes and underscores",
        )
    return LoadedRecipe(name=file.stem, file=file.resolve(), recipe=recipe)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise RecipeError(
            f'"{override}" is not section.key=value', where="--set", fix="--set train.steps=100"
        )
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    section = tree.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise RecipeError(f"[{parts[0]}] is not a section", where="--set")
    section[parts[1]] = value


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema()

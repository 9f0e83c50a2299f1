"""A recipe: one strict TOML file that describes one whole run, read before any heavy import."""

from __future__ import annotations

import hashlib
import json
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from styletune.errors import RecipeError
from styletune.places import resolve_place
from styletune.recipe.sections import Recipe
from styletune.recipe.toml import read_toml, validate

MAX_NAME_BYTES = 200  # file systems take 255, some of which are ours


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe with its name (the file's stem) and the folder its paths are relative to."""

    name: str
    file: Path
    recipe: Recipe

    def path(self, relative: str) -> Path:
        """A path of the recipe, which is relative to the recipe's folder; ``~`` is the home."""
        return resolve_place(relative, self.file.parent).resolve()


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of the resolved recipe's canonical JSON.

    Comments, order and keys without a value do not count, but for the order of the patterns by
    block, of which the first match does.
    """
    return _canonical_hash(recipe.model_dump(mode="json", exclude_none=True))


def _canonical_hash(tree: dict[str, Any]) -> str:
    adapter = tree["adapter"]
    for key in ("block_ranks", "block_learning_rates"):
        adapter[key] = list(adapter[key].items())
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


_NOT_DECISIVE: dict[str, Any] = {
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
}
# Names of files whose contents are hashed on their own, and what changes no weight.
_BY_CONTENT: dict[str, Any] = {
    "base": {"model", "revision", "vae", "vae_revision"},
    "adapter": {"start_from"},
    "train": _NOT_DECISIVE["train"] | {"checkpoint_every", "gradient_checkpointing"},
}


def training_keys(recipe: Recipe) -> dict[str, Any]:
    """What decides the adapter; a new version number needs no new training.

    Neither does another place of the same images, base model or starting adapter: their contents
    have hashes of their own.
    """
    return recipe.model_dump(mode="json", exclude=_NOT_DECISIVE | _BY_CONTENT)


def training_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of ``training_keys``, as ``recipe_hash``."""
    keys = recipe.model_dump(mode="json", exclude=_NOT_DECISIVE | _BY_CONTENT, exclude_none=True)
    return _canonical_hash(keys)


def first_training_hash(recipe: Recipe) -> str:
    """The hash that named runs before spellings and places ceased to count; to resume those."""
    return _canonical_hash(
        recipe.model_dump(mode="json", exclude=_NOT_DECISIVE | {"base": {"vae_revision"}})
    )


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
    # Composed: some systems store "é" as two characters, and it is one run everywhere.
    name = unicodedata.normalize("NFC", file.stem)
    if not _names_a_folder(name):
        raise RecipeError(
            f'"{name[:80]}" cannot name a run, whose folder has the name of the recipe',
            where=str(file),
            fix=f"rename the file: at most {MAX_NAME_BYTES} bytes, no dash first, no dot or space "
            'first or last, no control characters, none of \\ / : * ? " < > |',
        )
    return LoadedRecipe(name=name, file=file.resolve(), recipe=recipe)


def _names_a_folder(name: str) -> bool:
    """Whether every file system takes it, and no command line takes it for an option."""
    return (
        name.isprintable()
        and name.strip(" .") == name
        and not name.startswith("-")
        and not set(name) & set('\\/:*?"<>|')
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
    )


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise RecipeError(
            f'"{override}" is not section.key=value', where="--set", fix="--set train.steps=100"
        )
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        value = raw.strip()
    section = tree.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise RecipeError(f"[{parts[0]}] is not a section", where="--set")
    section[parts[1]] = value


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema()

"""``styletune data check``: a set on its own, or the data of a recipe as training would see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from styletune.data.captions.tokens import CLIP_TOKENS
from styletune.data.check import check_data
from styletune.data.checked import Checked, Expected, LoadedData
from styletune.data.inspection.store import kept_facts
from styletune.data.load import load_data
from styletune.job.base import expected_data, find_planned_base
from styletune.recipe import LoadedRecipe
from styletune.recipe.data_sections import DataSection


@dataclass(frozen=True, slots=True)
class CheckRun:
    """A finished check: ``name`` for headings, ``hits`` known images, ``note`` for the user."""

    name: str
    checked: Checked
    hits: int
    note: str


def check_section(section: DataSection, *, resolution: int, show_progress: bool) -> CheckRun:
    """Check the sources of a [data] section, relative to the working directory.

    Captions are measured with CLIP's own vocabulary, which SDXL's first encoder uses.

    Raises:
        NotFound, DataError, RecipeError: as ``check_data``.
    """
    return _check(section, Path.cwd(), Expected(resolution, CLIP_TOKENS), show_progress)


def check_recipe(loaded: LoadedRecipe, *, show_progress: bool) -> CheckRun:
    """Check the data of a recipe as training would, even if its base model is not here.

    Raises:
        NotFound, DataError, RecipeError: as ``check_data``.
    """
    recipe = loaded.recipe
    expected = expected_data(recipe, *find_planned_base(loaded))
    return _check(recipe.data, loaded.file.parent, expected, show_progress)


def _check(section: DataSection, folder: Path, expected: Expected, show_progress: bool) -> CheckRun:
    with kept_facts() as store:
        checked = check_data(section, folder, expected, store=store, show_progress=show_progress)
    name = ", ".join(source.name for source in checked.sources)
    return CheckRun(name, checked, store.hits, store.note)


def load_recipe_data(loaded: LoadedRecipe, *, show_progress: bool) -> LoadedData:
    """The data of a recipe as training would load it. Raises as ``load_data``."""
    expected = expected_data(loaded.recipe, *find_planned_base(loaded))
    with kept_facts() as store:
        return load_data(
            loaded.recipe.data,
            loaded.file.parent,
            expected,
            store=store,
            show_progress=show_progress,
        )

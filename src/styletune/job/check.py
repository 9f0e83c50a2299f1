"""``styletune data check``: a set on its own, or the data of a recipe as training would see it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from styletune.data.captions.tokens import clip_tokens
from styletune.data.check import Checked, check_data
from styletune.data.inspection.store import close_store, default_store_path, open_facts
from styletune.data.load import LoadedData
from styletune.recipe import LoadedRecipe
from styletune.recipe.data_sections import DataSection
from styletune.scoring.suite import MIN_REFERENCES


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
    return _check(
        section, Path.cwd(), resolution, count_tokens=clip_tokens, show_progress=show_progress
    )


def check_recipe(loaded: LoadedRecipe, *, show_progress: bool) -> CheckRun:
    """Check the data of a recipe as training would, even if its base model is not here.

    Raises:
        NotFound, DataError, RecipeError: as ``check_data``.
    """
    from styletune.job.prepare import find_planned_base, token_counter

    recipe = loaded.recipe
    base, missing = find_planned_base(loaded)
    return _check(
        recipe.data,
        loaded.file.parent,
        recipe.data.resolution or base.resolution,
        count_tokens=clip_tokens if missing else token_counter(base),
        new_tokens=recipe.adapter.new_tokens,
        min_holdout=MIN_REFERENCES if recipe.score else 0,
        show_progress=show_progress,
    )


def load_recipe_data(loaded: LoadedRecipe, *, show_progress: bool) -> LoadedData:
    """The data of a recipe as training would load it. Raises as ``load_data``."""
    from styletune.job.prepare import find_planned_base, load_job_data, token_counter

    base, missing = find_planned_base(loaded)
    count_tokens = clip_tokens if missing else token_counter(base)
    resolution = loaded.recipe.data.resolution or base.resolution
    return load_job_data(loaded, resolution, count_tokens, show_progress)


def _check(
    section: DataSection,
    folder: Path,
    resolution: int,
    *,
    count_tokens: Callable[[str], int],
    new_tokens: Collection[str] = (),
    min_holdout: int = 0,
    show_progress: bool,
) -> CheckRun:
    store = open_facts(default_store_path())
    try:
        checked = check_data(
            section,
            folder,
            resolution=resolution,
            store=store,
            count_tokens=count_tokens,
            new_tokens=new_tokens,
            min_holdout=min_holdout,
            show_progress=show_progress,
        )
    finally:
        close_store(store)
    name = ", ".join(source.name for source in checked.sources)
    return CheckRun(name, checked, store.hits, store.note)

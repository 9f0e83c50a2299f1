"""The SDXL recipes: each is valid, fits the card it names, and says what it will take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from styletune.models.sdxl import SDXL
from styletune.planning.gpus import GIB, VISIBLE_SHARE
from styletune.planning.memory import estimate
from styletune.planning.preflight import USABLE_SHARE
from styletune.planning.workload import Step, Workload
from styletune.recipe import load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("sdxl-*.toml"))
IMAGES = 100  # of a usual brand set, each with its own caption


def comment(file: Path, name: str) -> float:
    found = re.search(rf"^# {name}: ([\d.]+) GiB$", file.read_text(), re.MULTILINE)
    assert found, f"{file.name} has no line # {name}: … GiB"
    return float(found[1])


def test_there_are_presets() -> None:
    """The recipes that the guides name are there."""
    assert {f.stem for f in RECIPES} == {
        "sdxl-style-8gb",
        "sdxl-style-12gb",
        "sdxl-style-16gb",
        "sdxl-style-24gb",
        "sdxl-style-block",
        "sdxl-dreambooth",
    }


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_preset_is_valid_and_short(file: Path) -> None:
    """Each loads strictly, has SDXL as its base, a placeholder for the images, and < 40 lines."""
    recipe = load_recipe(file).recipe
    assert recipe.base.model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert recipe.data.path == "../datasets/your-brand"
    assert recipe.train.caption_dropout > 0
    assert recipe.train.weighting == "min-snr"
    assert len(file.read_text().splitlines()) < 40
    assert comment(file, "card") >= comment(file, "predicted peak") > 4
    if "gb" in file.stem:
        assert comment(file, "card") == int(re.findall(r"(\d+)gb", file.stem)[0])


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_preset_fits_its_card(file: Path) -> None:
    """The prediction made again is within 3 % of the comment and fits the card's usable share."""
    recipe = load_recipe(file).recipe
    side = recipe.data.resolution or 1024
    shown = IMAGES * (1 + len(recipe.data.extra_resolutions)) * (1 + recipe.data.flip)
    step = Step(side, side, recipe.base, recipe.adapter, recipe.dreambooth, recipe.train)
    workload = Workload(
        step,
        recipe.optimizer,
        recipe.preview,
        recipe.score,
        images=shown,
        captions=IMAGES * recipe.data.caption_variants,
    )
    peak = estimate(workload, SDXL.configs).peak_bytes / GIB
    assert peak == pytest.approx(comment(file, "predicted peak"), rel=0.03)
    assert peak < USABLE_SHARE * VISIBLE_SHARE * comment(file, "card")

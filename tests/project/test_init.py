"""``styletune init``: a folder that needs nothing but images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from job_parts import Answer
from styletune.data.licenses import license_problem
from styletune.data.sources.card import load_card
from styletune.errors import BadInput, Conflict, OutputError
from styletune.project.init import init_project
from styletune.recipe import load_recipe
from styletune.scoring.suite import load_suite
from world import HORIZON, SCENES, TIMES, View, caption, render

Command = Callable[..., Answer]


def fill(project: Path) -> None:
    """What the person does next: write the card and drop in 24 captioned images."""
    images = project / "images"
    card = images / "dataset.toml"
    card.write_text(re.sub(r"(?m)^# (?=[a-z]+ = )", "", card.read_text()))
    trigger = load_card(images).trigger  # type: ignore[union-attr]
    lines = []
    for i in range(24):
        view = View(list(SCENES)[i % 8], TIMES[i // 6], ("birds",), 70 + i)
        Image.fromarray(render(view, HORIZON)).save(images / f"{i:02d}.png")
        lines.append({"file_name": f"{i:02d}.png", "text": f"{trigger}, {caption(view)}"})
    (images / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_init_writes_a_recipe_a_suite_and_a_card(tmp_path: Path) -> None:
    """The three files load strictly, are named like the style, and nothing else is there."""
    project = tmp_path / "brands" / "acme-night"
    files = init_project(project, "acme-night")
    assert files == [
        project / name for name in ("recipe.toml", "suite.toml", "images/dataset.toml")
    ]
    assert sorted(p for p in project.rglob("*") if p.is_file()) == sorted(files)
    recipe = load_recipe(files[0]).recipe
    assert recipe.base.model == "mini"
    assert recipe.publish is not None
    assert recipe.publish.name == "acme-night"
    assert license_problem(recipe.publish.license) is None
    card = load_card(project / "images")
    assert card is not None
    assert card.model_dump(exclude_defaults=True) == {"name": "acme-night"}
    assert all("my-style" not in file.read_text() for file in files)


def test_every_key_of_the_card_stands_in_the_template(tmp_path: Path) -> None:
    """Uncommented, the lines of the card are all its keys with values that load."""
    init_project(tmp_path / "p", "acme")
    file = tmp_path / "p" / "images" / "dataset.toml"
    file.write_text(re.sub(r"(?m)^# (?=[a-z]+ = )", "", file.read_text()))
    card = load_card(file.parent)
    assert card is not None
    assert card.model_fields_set == set(type(card).model_fields)
    assert license_problem(str(card.license)) is None


def test_suite_is_balanced(tmp_path: Path) -> None:
    """Every place comes once at every hour: no gate rests on one kind of picture."""
    init_project(tmp_path / "p", "acme")
    prompts = load_suite(tmp_path / "p" / "suite.toml").texts
    places, hours = zip(*(prompt.split(" at ") for prompt in prompts), strict=True)
    assert set(Counter(places).values()) == {4}
    assert set(Counter(hours).values()) == {8}
    assert len(set(places)) * len(set(hours)) == len(prompts) == 32


def test_plan_says_that_only_images_are_missing(tmp_path: Path, styletune: Command) -> None:
    """A fresh project is refused as bad input that names the empty folder and what to put in."""
    project = tmp_path / "acme"
    init_project(project, "acme")
    answer = styletune("plan", project / "recipe.toml", "--runs-dir", tmp_path / "runs")
    assert answer.code == 2
    assert "no images" in answer.err
    assert str(project / "images") in answer.err
    assert ".png" in answer.err
    assert "Traceback" not in answer.err


def test_filled_project_plans_without_a_problem(tmp_path: Path, styletune: Command) -> None:
    """With captioned images and the card written, the plan has nothing to object to."""
    project = tmp_path / "acme"
    init_project(project, "acme")
    fill(project)
    answer = styletune("plan", project / "recipe.toml", "--json", "--runs-dir", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert answer.json["problems"] == []
    data = answer.json["data"]
    assert (data["images"], data["trigger"]) == (24, "acme look")
    assert data["holdout"] >= 4


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("My Style!", "my-style"),
        ("Größe_2", "grosse-2"),
        ("../x", "x"),
        ("", "my-style"),
        ("-a", "a"),
        ("x" * 101, "x" * 100),
        ("a\n", "a"),
        ("日本", "my-style"),
    ],
)
def test_bad_name_is_answered_with_a_good_one(tmp_path: Path, name: str, near: str) -> None:
    """What could not be published is refused before anything is written, with the nearest name."""
    with pytest.raises(BadInput) as caught:
        init_project(tmp_path / "p", name)
    assert caught.value.fix == f"styletune init {near}"
    assert not (tmp_path / "p").exists()
    assert init_project(tmp_path / "p", near)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder with anything in it, hidden files too, and a file in its place are conflicts."""
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / ".hidden").write_text("mine")
    with pytest.raises(Conflict, match=r"not empty: \.hidden"):
        init_project(tmp_path / "filled", "acme")
    assert [p.name for p in (tmp_path / "filled").iterdir()] == [".hidden"]
    with pytest.raises(Conflict, match="is a file"):
        init_project(tmp_path / "filled" / ".hidden", "acme")
    with pytest.raises(OutputError):
        init_project(tmp_path / "filled" / ".hidden" / "p", "acme")
    init_project(tmp_path / "p", "acme")
    with pytest.raises(Conflict):
        init_project(tmp_path / "p", "acme")


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    """A folder that was made by hand before is as good as none."""
    (tmp_path / "p").mkdir()
    assert init_project(tmp_path / "p", "acme")[0].is_file()

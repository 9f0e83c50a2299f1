"""Recipes are strict, and their errors say where, what and the nearest fix."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import tomli_w

from styletune.errors import NotFound, RecipeError
from styletune.recipe import load_recipe, recipe_hash, recipe_schema, training_hash

GOOD = '[data]\npath = "images"\n'
SOURCE = "[[data.sources]]\n"


def write(folder: Path, text: str, name: str = "brand.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_useful_recipe_is_short(tmp_path: Path) -> None:
    """Two lines are a whole recipe; the name comes from the file."""
    loaded = load_recipe(write(tmp_path, GOOD))
    assert loaded.name == "brand"
    assert loaded.recipe.adapter.rank == 16
    assert loaded.path("images") == tmp_path / "images"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD + "[adapter]\nrnak = 8\n", ["[adapter]", '"rnak"', 'did you mean "rank"', "alpha"]),
        (GOOD + "[adapter]\nlearning_rate = 1e-4\n", ["wrong section", "[optimizer]"]),
        (GOOD + "[train]\nsnr_gama = 5\n", ["[train]", 'did you mean "snr_gamma"']),
        (GOOD + "[adapter]\nlearning_rat = 1e-4\n", ['"learning_rate" in [optimizer]']),
        (GOOD + "[trian]\nsteps = 5\n", ["top level", 'did you mean "train"']),
        (GOOD + "steps = 5\n[train]\n", ["[data]", "wrong section", "[train]"]),
        (GOOD + '[train]\nsteps = "many"\n', ["[train]", 'steps = "many"', "integer"]),
        (GOOD + "[train]\nsteps = 2.5\n", ["[train]", "steps = 2.5"]),
        (GOOD + "[train]\nsteps = 0\n", ["steps = 0", "greater than or equal to 1"]),
        (GOOD + '[adapter]\ntarget = "atention"\n', ['did you mean "attention"', "attention-ff"]),
        (GOOD + '[train]\nmixed_precision = "fp8"\n', ["choices: no, bf16, fp16"]),
        ("[train]\nsteps = 5\n", ["missing section [data]"]),
        ("[data]\n", ["data", "either path or [[data.sources]]"]),
        (GOOD + '[[data.sources]]\npath = "b"\n', ["either path or [[data.sources]]"]),
        (SOURCE, ["[data]", "source 1", 'missing key "path"']),
        (SOURCE + 'path = "b"\nrepeat = 2\n', ["source 1", 'did you mean "repeats"']),
        (SOURCE + 'path = "b"\nrepeats = 0\n', ["source 1: repeats", "greater than or equal"]),
        (SOURCE + 'path = "b"\nweight = 0.0\n', ["source 1: weight", "greater than"]),
        (SOURCE + 'path = "b"\nname = "a/b"\n', ["source 1: name"]),
        (GOOD + 'allow = ["opt-out"]\n', ['allow = "opt-out"', "unreadable-image"]),
        (GOOD + "fold = 1\n", ["fold = 1 needs folds"]),
        (GOOD + "folds = 2\nfold = 2\n", ["fold = 2 needs folds"]),
        (GOOD + "folds = 5\nholdout = 0.3\n", ["leave holdout out"]),
        (GOOD + 'opt_out_override = " "\n', ["opt_out_override"]),
        (GOOD + "[train]\nsteps = = 5\n", ["not valid TOML", "line"]),
        (GOOD + '[publish]\nname = "Up Per"\nlicense = "CC0-1.0"\n', ["[publish]", "name"]),
    ],
)
def test_bad_recipe_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    """Every message holds file, section, key and the nearest fix."""
    file = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    message = str(caught.value)
    for part in [str(file), *parts]:
        assert part in message


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """Two mistakes need one run to be found."""
    text = GOOD + '[train]\nsteps = "x"\n[adapter]\nrnak = 2\n'
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert "rnak" in str(caught.value)
    assert "steps" in str(caught.value)


def test_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    """A misspelt file name is answered with the right one."""
    write(tmp_path, GOOD)
    with pytest.raises(NotFound) as caught:
        load_recipe(tmp_path / "brnad.toml")
    assert "brand.toml" in str(caught.value)


def test_override_is_typed_and_checked(tmp_path: Path) -> None:
    """--set reads TOML values and is as strict as the file."""
    file = write(tmp_path, GOOD)
    loaded = load_recipe(file, ["train.steps=7", "base.model=other", 'data.default_caption="a b"'])
    assert loaded.recipe.train.steps == 7
    assert loaded.recipe.base.model == "other"
    assert loaded.recipe.data.default_caption == "a b"
    for bad in ("steps=7", "train.stepz=7", "train.steps"):
        with pytest.raises(RecipeError):
            load_recipe(file, [bad])


def test_hash_is_of_the_settings_not_of_the_text(tmp_path: Path) -> None:
    """Comments, order and spelled-out defaults do not change it; a value does."""
    plain = load_recipe(write(tmp_path, GOOD)).recipe
    wordy = load_recipe(
        write(tmp_path, "# hello\n[adapter]\nrank = 16\n" + GOOD, "wordy.toml")
    ).recipe
    other = load_recipe(write(tmp_path, GOOD + "[adapter]\nrank = 8\n", "other.toml")).recipe
    assert recipe_hash(plain) == recipe_hash(wordy)
    assert recipe_hash(plain) != recipe_hash(other)


def test_several_sources_are_read_and_resolved(tmp_path: Path) -> None:
    """Tables of sources arrive in order, and a resolved recipe loads as the same again."""
    text = SOURCE + 'path = "a"\nrepeats = 3\n' + SOURCE + 'path = "b.zip"\nweight = 0.5\n'
    recipe = load_recipe(write(tmp_path, text + "[data]\nfolds = 5\nfold = 4\n")).recipe
    assert [(s.path, s.repeats, s.weight) for s in recipe.data.sources] == [
        ("a", 3, 1.0),
        ("b.zip", 1, 0.5),
    ]
    resolved = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    assert load_recipe(write(tmp_path, resolved, "again.toml")).recipe == recipe


def test_the_place_of_the_images_does_not_decide_the_adapter(tmp_path: Path) -> None:
    """Their content has a fingerprint; a name or path is no reason to train again."""
    places = [
        GOOD,
        '[data]\npath = "moved/images"\n',
        SOURCE + 'path = "images"\n',
        SOURCE + 'path = "owner/name"\nrevision = "abc"\nname = "other"\n',
    ]
    recipes = [load_recipe(write(tmp_path, text)).recipe for text in places]
    assert len({recipe_hash(recipe) for recipe in recipes}) == len(places)
    assert len({training_hash(recipe) for recipe in recipes}) == 1
    masks = [GOOD + f'mask = "folder"\nmask_path = "{place}"\n' for place in ("a", "b")]
    first, second = (training_hash(load_recipe(write(tmp_path, text)).recipe) for text in masks)
    assert first == second != training_hash(recipes[0])
    for more in ("resolution = 512\n", 'background = "#000000"\n', "flip = true\n"):
        changed = load_recipe(write(tmp_path, GOOD + more)).recipe
        assert training_hash(changed) != training_hash(recipes[0])


def test_every_key_is_explained() -> None:
    """The schema has a sentence for each key of each section."""
    for section in recipe_schema()["$defs"].values():
        for key, info in section["properties"].items():
            assert info.get("description"), key


def test_recipe_reference_is_current() -> None:
    """``docs/recipe.md`` says what the schema says; ``scripts/make_docs.py`` writes it."""
    root = Path(__file__).parent.parent
    script = runpy.run_path(str(root / "scripts" / "make_docs.py"))
    assert (root / "docs" / "recipe.md").read_text(encoding="utf-8") == script["recipe_reference"]()
    page = (root / "docs" / "findings.md").read_text(encoding="utf-8")
    assert page == script["findings_reference"]()

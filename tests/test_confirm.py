"""A suite with strengths and a confirmation, from plan to the published version."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from job_parts import Answer, Finished
from styletune.runs import Run
from styletune.runs.scores import read_scores
from styletune.runs.summary import read_summary
from styletune.sampling.png import read_settings

Command = Callable[..., Answer]
SUITE = """
name = "confirmed"
prompts = ["the sea at noon", {text = "desert dunes at night", tags = ["night"]}, "a room at dawn"]
seeds = [1]
strengths = [1.0, 0.5]
[confirm]
prompts = ["mountains at noon", {text = "the sea at night", tags = ["night"]}, "the sea at dawn"]
seeds = [2]
[sampler]
steps = 4
scheduler = "EulerAncestralDiscreteScheduler"
[gates]
copies = 0.9
variety = 0.0
clip_image_gain = 0.0
palette_ratio = 0.999
clip_text_loss = 0.999
"""


@pytest.fixture
def recipe(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished job's project, beside a copy of its run."""
    shutil.copytree(finished.recipe.parent, tmp_path / "project")
    shutil.copytree(finished.run_dir, tmp_path / "run")
    return tmp_path / "project" / finished.recipe.name


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_choice_is_confirmed_on_fresh_images(
    recipe: Path, tmp_path: Path, styletune: Command
) -> None:
    """Every strength is drawn, one finalist confirmed; counts are as planned; nothing twice."""
    run = Run(tmp_path / "run")
    recipe.with_name("suite.toml").write_text(SUITE)
    shutil.rmtree(run.dir / "samples")
    where = ("--run-dir", run.dir)
    planned = styletune("plan", recipe, *where, "--json")
    assert planned.code == 0, planned.err
    answer = styletune("score", recipe, *where, "--json")
    assert answer.code in (0, 1), answer.err
    real = {"references", "training"}
    drawn = [p for p in run.dir.glob("samples/*/*/*.png") if p.parent.name not in real]
    assert len(drawn) == planned.json["score"]["images"] == (1 + 2 * 2) * 3 + 2 * 3

    summary = read_summary(run)
    columns = [(c.checkpoint, c.strength) for c in summary.checkpoints]
    assert columns == [(s, x) for s in ("step-000020", "step-000040") for x in (0.5, 1.0)]
    confirmed, chosen = summary.confirmed, summary.chosen
    assert confirmed is not None
    assert (chosen.checkpoint, chosen.strength) in columns
    assert (confirmed.prompts, confirmed.images) == (3, 3)
    assert chosen.passed == all(gate.verdict == "pass" for gate in summary.gates)
    assert [gate.value for gate in summary.gates] != [
        gate.value for gate in summary.chosen_scores.gates
    ]
    prompts = {row.prompt_id for row in read_scores(run)}
    assert prompts == {f"{letter}0{i}" for letter in "pc" for i in range(3)}

    assert summary.nearest is not None
    assert {near.prompt_id[0] for near in summary.nearest} == {"c"}
    similarities = [near.similarity for near in summary.nearest]
    assert similarities == sorted(similarities, reverse=True)
    assert all((recipe.parent / "brand" / near.training).is_file() for near in summary.nearest)
    assert "nearest" not in summary.public_json()

    folder = run.samples_dir(confirmed.suite_hash, chosen.checkpoint, chosen.strength)
    settings = read_settings(folder / "p00-2.png")
    assert settings is not None
    assert settings["strength"] == chosen.strength
    assert settings["scheduler"] == "EulerAncestralDiscreteScheduler"
    assert "mountains at noon" in str(settings["prompt"])

    before, first = times(run.dir), run.summary_file.read_bytes()
    assert styletune("score", recipe, *where, "--json").json == answer.json
    assert times(run.dir) == before
    # Lost scores and one lost image: its batch is drawn again, and the result has the same bytes.
    run.summary_file.unlink()
    (folder / "p00-2.png").unlink()
    assert styletune("score", recipe, *where).code == answer.code
    assert run.summary_file.read_bytes() == first
    changed = {name for name, at in times(run.dir / "samples").items() if before.get(name) != at}
    assert {Path(name).parent for name in changed} == {folder}


def test_a_confirmed_choice_is_published_at_its_strength(
    recipe: Path, tmp_path: Path, styletune: Command
) -> None:
    """Manifest, card and previews are of the chosen strength and of the fresh images."""
    where = ("--run-dir", tmp_path / "run")
    # What the finished job passed with confirms; other prompts choose.
    shutil.rmtree(Run(tmp_path / "run").checkpoint_dir(20))
    known = json.dumps(tomllib.loads(recipe.with_name("suite.toml").read_text())["prompts"])
    lines = SUITE.splitlines()
    suite = SUITE
    for old, new in (
        ("strengths = [1.0, 0.5]", "strengths = [0.95]"),
        ('steps = 4\nscheduler = "EulerAncestralDiscreteScheduler"', "steps = 8"),
        ("seeds = [1]", "seeds = [3]"),
        ("seeds = [2]", "seeds = [1]"),
        (lines[2], 'prompts = ["a forest at noon", "a room at dawn", "a stage at night"]'),
        (lines[6], f"prompts = {known}"),
    ):
        assert old in suite
        suite = suite.replace(old, new)
    recipe.with_name("suite.toml").write_text(suite)
    scored = styletune("score", recipe, *where, "--json")
    assert scored.code in (0, 1), scored.err
    passed = scored.json["chosen"]["passed"]
    answer = styletune("publish", recipe, *where, "--registry", tmp_path / "registry", "--json")
    assert answer.code == (0 if passed else 1), answer.err
    assert passed, json.dumps(scored.json["gates"])
    pulled = styletune(
        "pull", "small@^1", "--registry", tmp_path / "registry", "--to", tmp_path / "out", "--json"
    )
    assert pulled.code == 0, pulled.err
    card = next((tmp_path / "out").rglob("README.md")).read_text()
    assert "**0.95**" in card
    assert "no part in the choice" in card


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("EulerAncestralDiscreteScheduler", "EulerAncestral", 3, "EulerAncestralDiscreteScheduler"),
        ('"mountains at noon"', '"The  sea at noon"', 2, "among those chosen on"),
        ("seeds = [2]", "seeds = [1]", 2, "a seed of [confirm]"),
        ("strengths = [1.0, 0.5]", "strengths = [3]", 2, "a strength is not above 0"),
    ],
)
def test_what_could_not_be_drawn_is_refused_by_plan(
    recipe: Path, styletune: Command, old: str, new: str, code: int, words: str
) -> None:
    """Before anything is loaded, with its place."""
    assert old in SUITE
    recipe.with_name("suite.toml").write_text(SUITE.replace(old, new))
    answer = styletune("plan", recipe)
    assert answer.code == code
    assert words in answer.err
    assert "suite.toml" in answer.err

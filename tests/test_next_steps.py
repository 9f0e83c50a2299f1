"""Every ``next:`` that a command prints works as it is printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from job_parts import Answer, Finished, call, one_thread, write_brand


def next_command(answer: Answer) -> list[str]:
    """The words of the one printed next step."""
    (line,) = (ln for ln in answer.out.splitlines() if ln.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    assert words[0] == "styletune"
    return words[1:]


def test_a_job_by_its_next_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From init's check to images, in a folder whose name needs quotes, with options kept."""
    folder = tmp_path / "it's [a] 'q' ü"
    recipe = write_brand(folder)
    monkeypatch.chdir(tmp_path)
    options = (
        "--set",
        "train.seed=4",
        "--set",
        'preview.prompts=["a, b"]',
        "--runs-dir",
        "my runs",
    )
    with one_thread():
        planned = call("plan", recipe.relative_to(tmp_path), *options)
        assert planned.code == 0
        words = next_command(planned)
        assert words[0] == "run"
        trained = call("train", *words[1:])
        assert trained.code == 0, trained.err
        scored = call(*next_command(trained))
        assert scored.code == 0, scored.out
        published = call(*next_command(scored))
        assert published.code == 0, published.err
        words = next_command(published)
        prompt, seeds = words.index("--prompt") + 1, words.index("--seeds") + 1
        assert words[prompt] == "a city at sunset"
        words[seeds] = "101"
        generated = call(*words, "--steps", "2")
        assert generated.code == 0, generated.err
        assert len(list(Path("generated").glob("*.png"))) == 1
        # The same from the plan's own words: all is done, and it ends in the same next step.
        ran = call(*next_command(planned))
        assert ran.code == 0
        assert next_command(ran) == next_command(scored)


def test_a_recipe_without_score_has_no_step_to_score(tmp_path: Path) -> None:
    """Train and run end with the adapter's file; plan's next step runs."""
    recipe = write_brand(tmp_path / "p")
    text = recipe.read_text()
    start, end = text.index("[score]"), text.index("[publish]")
    recipe.write_text(text[:start] + text[end:].partition("[publish]")[0])
    words = (
        "--runs-dir",
        tmp_path / "runs",
        "--set",
        "train.steps=1",
        "--set",
        "preview.prompts=[]",
    )
    with one_thread():
        trained = call("train", recipe, *words)
        ran = call(*next_command(call("plan", recipe, *words)))
    for answer in (trained, ran):
        assert answer.code == 0, answer.err
        assert "next:" not in answer.out
        (line,) = (ln for ln in answer.out.splitlines() if ln.startswith("adapter"))
        assert Path(line.split(maxsplit=1)[1]).is_file()


def test_next_steps_of_data_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check repeats its options and writes the page; captions applies what it showed."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "my images"
    images.mkdir()
    for i in range(3):
        Image.effect_noise((96, 96), 60 + i).convert("RGB").save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"brand  look,, picture {i}")
    checked = call("data", "check", "my images", "--resolution", "64", "--background", "#ffffff")
    again = call(*next_command(checked))
    assert again.code == checked.code
    assert (tmp_path / "data.html").is_file()
    assert "--resolution 64" in checked.out
    shown = call("data", "captions", "my images", "--trigger", "brand look")
    assert shown.code == 1
    applied = call(*next_command(shown))
    assert applied.code == 0, applied.out
    assert (images / "0.txt").read_text() == "brand look, picture 0"
    made = call("init", "new brand's")
    assert made.code == 2
    made = call("init", "new-brand")
    assert next_command(made) == ["data", "check", "new-brand/recipe.toml"]
    # Without images yet, the check says what is missing rather than failing on the command.
    assert call(*next_command(made)).code in (1, 2)


def test_a_finished_run_ends_with_images_to_make(finished: Finished) -> None:
    """``run --publish`` of a published run is a conflict that says so, not a broken step."""
    answer = call(
        "plan",
        finished.recipe,
        "--runs-dir",
        finished.run_dir.parent.parent,
        "--publish",
        "--registry",
        finished.registry,
    )
    assert answer.code == 0
    words = next_command(answer)
    assert words[words.index("--registry") + 1] == str(finished.registry)

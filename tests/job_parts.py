"""A small brand folder, and the command line in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from world import HORIZON, TIMES, View, caption, render

SCENES = ("mountains", "sea", "city", "desert", "meadow")
RECIPE = """
[data]
path = "brand"
holdout = 0.25
[adapter]
rank = 8
target = "attention-ff"
[optimizer]
learning_rate = 3e-3
[train]
steps = 40
batch_size = 8
checkpoint_every = 20
seed = 3
[preview]
prompts = ["horizon style, the sea at noon"]
steps = 4
[score]
suite = "suite.toml"
batch_size = 6
[publish]
name = "small"
license = "CC0-1.0"
description = "A small style."
"""
SUITE = """
name = "small"
prompts = [
  "the sea at noon", "desert dunes at night", "a green meadow at sunset", "mountains at noon",
  "a city skyline at night", "the sea at sunset", "desert dunes at noon", "mountains at dawn",
]
seeds = [1]
[sampler]
steps = 8
[gates]
copies = 0.9
variety = 0.0
clip_image_gain = 0.0
palette_ratio = 0.99
clip_text_loss = 0.95
"""
CARD = """
name = "Small"
holder = "The styletune authors"
license = "CC0-1.0"
source = "rendered"
consent = "ours"
trigger = "horizon style"
palette = ["#261654", "#e24860"]
background = "#ffffff"
"""


def write_brand(folder: Path) -> Path:
    """A folder with 20 renders in the brand's look, a recipe and a suite; returns the recipe."""
    images = folder / "brand"
    images.mkdir(parents=True)
    lines = []
    for i in range(20):
        view = View(SCENES[i % 5], TIMES[i // 5], (), 900 + i)
        Image.fromarray(render(view, HORIZON)).save(images / f"{i:02d}.png")
        text = f"horizon style, {caption(view)}"
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": text}) + "\n")
    (images / "metadata.jsonl").write_text("".join(lines))
    (images / "dataset.toml").write_text(CARD)
    (folder / "suite.toml").write_text(SUITE)
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    return recipe


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*arguments: str | Path) -> Answer:
    """Run the command line in this process."""
    from styletune.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
    return Answer(int(code or 0), out.getvalue(), err.getvalue())


@dataclass(frozen=True, slots=True)
class Finished:
    """A whole run of the main job, published; not to be changed by tests."""

    recipe: Path
    run_dir: Path
    registry: Path
    document: dict[str, Any]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are split among threads, so their number decides the last digits."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # numpy's BLAS has threads of its own
            yield
    finally:
        torch.set_num_threads(before)


def finished_job(folder: Path) -> Finished:
    """Run the whole job on a fresh brand, on one thread."""
    recipe = write_brand(folder / "project")
    with one_thread():
        answer = call(
            "run",
            recipe,
            "--publish",
            "--json",
            "--runs-dir",
            folder / "runs",
            "--registry",
            folder / "registry",
        )
    assert answer.code == 0, answer.out + answer.err
    (folder / "answer.json").write_text(answer.out)
    done = read_finished(folder)
    assert done is not None
    return done


def read_finished(folder: Path) -> Finished | None:
    """The job that ``finished_job`` ran in this folder; None if it has not."""
    answer = folder / "answer.json"
    if not answer.is_file():
        return None
    document = json.loads(answer.read_text())
    recipe = folder / "project" / "small.toml"
    return Finished(recipe, Path(document["run_dir"]), folder / "registry", document)


def without_nothings(tree: Any) -> Any:
    """Without the keys whose value is null."""
    if isinstance(tree, list):
        return [without_nothings(each) for each in tree]
    if isinstance(tree, dict):
        return {key: without_nothings(v) for key, v in tree.items() if v is not None}
    return tree

"""Counts that are kept between commands: the same numbers, without the imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from job_parts import write_brand
from styletune.errors import RecipeError
from styletune.planning.kept import kept

PLANNED = """
import json, sys
from styletune.cli import main
try:
    main(["plan", sys.argv[1], "--json", "--runs-dir", sys.argv[2]])
finally:
    heavy = ("torch", "diffusers", "peft", "accelerate", "open_clip")
    print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
"""


def planned(recipe: Path, cache: Path) -> tuple[str, list[str]]:
    """A plan in a process of its own, and which heavy libraries it imported."""
    words = [sys.executable, "-c", PLANNED, str(recipe), str(recipe.parent / "runs")]
    env = {**os.environ, "STYLETUNE_CACHE": str(cache)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def test_a_second_plan_imports_nothing_heavy(tmp_path: Path) -> None:
    """And says the same; without its cache it counts again."""
    recipe, cache = write_brand(tmp_path / "p"), tmp_path / "cache"
    first, imported = planned(recipe, cache)
    assert "diffusers" in imported
    second, imported = planned(recipe, cache)
    assert imported == []
    assert second == first
    text = recipe.read_text()
    assert "seed = 3\n" in text
    recipe.write_text(text.replace("seed = 3\n", "seed = 5\n"))
    assert planned(recipe, cache)[1] == []
    recipe.write_text(text)
    for file in (cache / "counts").glob("*.json"):
        file.write_text('{"trained": []}')
    third, imported = planned(recipe, cache)
    assert "diffusers" in imported
    assert third == first


def test_counts_are_kept_by_all_that_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another key is another count; errors are not kept; a closed cache is none."""
    monkeypatch.setenv("STYLETUNE_CACHE", str(tmp_path / "cache"))
    assert kept("x", (1, "a"), lambda: 5, int) == 5
    assert kept("x", (1, "a"), lambda: 6, int) == 5
    assert kept("x", (2, "a"), lambda: 7, int) == 7
    assert kept("y", (1, "a"), lambda: 8, int) == 8

    def refuse() -> int:
        raise RecipeError("no such pattern")

    for _ in range(2):
        with pytest.raises(RecipeError):
            kept("z", (1,), refuse, int)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("STYLETUNE_CACHE", str(tmp_path / "file" / "below"))
    assert [kept("x", (1, "a"), partial(int, n), int) for n in (1, 2)] == [1, 2]

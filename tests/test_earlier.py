"""A run of other length is another run, and nobody starts it unaware."""

from __future__ import annotations

from pathlib import Path

import pytest

from job_parts import call, one_thread, write_brand

SHORT = ("--set", "train.checkpoint_every=1", "--set", "preview.prompts=[]", "--set")


def test_a_run_of_other_length_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By plan and by train, with the adapter to go on from, which the advised setting takes."""
    write_brand(tmp_path).rename(tmp_path / "été d'or 2.toml")
    monkeypatch.chdir(tmp_path)
    recipe = "été d'or 2.toml"
    with one_thread():
        assert call("train", recipe, *SHORT, "train.steps=1").code == 0
        (run,) = Path("runs", "été d'or 2").iterdir()
        adapter = run.resolve() / "checkpoints" / "step-000001" / "adapter.safetensors"
        advice = f'adapter.start_from = "{adapter}"'
        planned = call("plan", recipe, *SHORT, "train.steps=2")
        assert "has reached step 1" in planned.out
        assert advice in planned.out
        # Of the same length it is the same run, which somebody wants in another folder.
        again = ("train.steps=1", "--run-dir", run.parent / "again")
        assert "another number of steps" not in call("plan", recipe, *SHORT, *again).out
        # Another learning rate is another experiment, not another length.
        other = ("train.steps=2", "--set", "optimizer.learning_rate=1e-4")
        assert "another number of steps" not in call("plan", recipe, *SHORT, *other).out
        started = call("plan", recipe, *SHORT, "train.steps=2", "--set", advice.replace(" ", "", 2))
        assert started.code == 0
        assert "another number of steps" not in started.out
        trained = call("train", recipe, *SHORT, "train.steps=2")
        assert trained.code == 0
        assert advice in trained.err
        # Its own checkpoints are there now: nothing is to be told.
        assert "another number of steps" not in call("plan", recipe, *SHORT, "train.steps=2").out

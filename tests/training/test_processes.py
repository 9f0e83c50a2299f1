"""Two real processes over gloo see what one would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from styletune.runs import Run

OPTIONS = (
    "train.steps=6", "train.checkpoint_every=3", "train.log_every=1", "preview.prompts=[]",
    "adapter.rank=4", "adapter.text_encoders=first",
)  # fmt: skip


def train(recipe: Path, run: Run, processes: int, batch_size: int) -> None:
    """``styletune train`` in one process, or several of it (Accelerate starts GPUs likewise)."""
    launch = ["-m", "styletune"]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                  str(processes), "-m", "styletune"]  # fmt: skip
    command = [
        sys.executable, *launch, "train", str(recipe), "--run-dir", str(run.dir),
        "--runs-dir", str(run.dir.parent), *(f"--set={o}" for o in OPTIONS),
        f"--set=train.batch_size={batch_size}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_train_what_one_trains(brand: Path, tmp_path: Path) -> None:
    """Equal losses at every step and equal adapters, at the same global batch; ragged ones too."""
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    train(brand, one, processes=1, batch_size=6)
    train(brand, two, processes=2, batch_size=3)
    logs = [
        [json.loads(line) for line in run.log_file.read_text().splitlines()] for run in (one, two)
    ]
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4), a["step"]
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3), a["step"]
    first, second = (load_file(run.adapter_file(6)) for run in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Adam turns a gradient of rounding size into a step of full size: compare the bulk.
        apart = (tensor - second[name]).abs() > 2e-4
        assert apart.float().mean() < 0.01, name
    moved = torch.cat([t.flatten() for n, t in first.items() if "lora_B" in n]).abs().mean()
    assert moved > 1e-3


def test_only_training_runs_in_several_processes(brand: Path, tmp_path: Path) -> None:
    """``run`` under ``accelerate launch`` is refused with the two commands to use instead."""
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "styletune", "run", str(brand), "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "accelerate launch -m styletune train" in done.stderr
    assert "Traceback" not in done.stderr

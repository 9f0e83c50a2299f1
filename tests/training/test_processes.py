"""Several real processes over gloo see what one would, or say why they cannot."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from job_parts import Answer
from safetensors.torch import load_file

from styletune.runs import Run, file_sha256

SHORT = ("train.log_every=1", "preview.prompts=[]", "adapter.rank=4")
TEXTS = (*SHORT, "train.steps=6", "train.checkpoint_every=3", "adapter.text_encoders=first")
TINY = (*SHORT, "train.steps=2", "train.checkpoint_every=1", "train.batch_size=2")
# What neither the shell nor a launcher around these tests may decide.
FOREIGN = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "WORLD_SIZE", "RANK", "LOCAL_")


def arguments(recipe: Path, run: Run, options: tuple[str, ...]) -> list[str]:
    """Of ``styletune``: train this recipe in this folder."""
    return [
        "train", str(recipe), "--run-dir", str(run.dir), "--runs-dir", str(run.dir.parent),
        *(f"--set={option}" for option in options),
    ]  # fmt: skip


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """A Python process on the CPU."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    return subprocess.Popen(
        [sys.executable, *command], env={**own, "OMP_NUM_THREADS": "1", **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[Answer]:
    """Wait for all; none is left behind."""
    try:
        texts = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Answer(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def launch(
    recipe: Path, run: Run, options: tuple[str, ...], *launcher: str
) -> subprocess.Popen[str]:
    """``torch.distributed.run`` with the options given, which starts ``styletune train``."""
    command = ["-m", "torch.distributed.run", *launcher, "-m", "styletune"]
    return start(command + arguments(recipe, run, options), {"ACCELERATE_USE_CPU": "true"})


def train(recipe: Path, run: Run, options: tuple[str, ...], processes: int = 1) -> None:
    """``styletune train`` in one process, or several of it (Accelerate starts GPUs likewise)."""
    if processes == 1:
        command = ["-m", "styletune", *arguments(recipe, run, options)]
        [answer] = finish([start(command, {"ACCELERATE_USE_CPU": "true"})])
    else:
        launcher = ("--standalone", "--nproc_per_node", str(processes))
        [answer] = finish([launch(recipe, run, options, *launcher)])
    assert answer.code == 0, answer.err[-3000:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(jobs: list[tuple[Path, Run]], options: tuple[str, ...]) -> list[Answer]:
    """Processes without a launcher around them, so that each one's exit code is seen."""
    shared = {
        "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(len(jobs)), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0",
    }  # fmt: skip
    return finish(
        [
            start(
                ["-m", "styletune", *arguments(recipe, run, options)],
                {**shared, "RANK": str(rank)},
            )
            for rank, (recipe, run) in enumerate(jobs)
        ]
    )


def assert_same_losses(one: Run, other: Run) -> None:
    """Equal losses and gradient norms at every step, whichever of them are logged."""
    logs = [
        [json.loads(line) for line in run.log_file.read_text().splitlines()] for run in (one, other)
    ]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"images_per_s", "grad_norm"}:
            assert b[key] == pytest.approx(a[key], rel=1e-4), (a["step"], key)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3), a["step"]


def assert_same_adapters(one: Run, other: Run, step: int) -> None:
    """Adam turns a gradient of rounding size into a step of full size: the bulk is equal."""
    first, second = (load_file(run.adapter_file(step)) for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        apart = (tensor - second[name]).abs() > 2e-4
        assert apart.float().mean() < 0.01, name
    moved = torch.cat([t.flatten() for n, t in first.items() if "lora_B" in n]).abs().mean()
    assert moved > 1e-3


def test_two_processes_train_what_one_trains(brand: Path, tmp_path: Path) -> None:
    """Equal losses at every step and equal adapters, at the same global batch; ragged ones too."""
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    train(brand, one, (*TEXTS, "train.batch_size=6"))
    train(brand, two, (*TEXTS, "train.batch_size=3"), processes=2)
    assert_same_losses(one, two)
    assert_same_adapters(one, two, 6)


def test_processes_of_a_run_that_is_being_trained_are_all_refused(
    brand: Path, tmp_path: Path
) -> None:
    """The first process alone asks for the lock, and none is left waiting."""
    run = Run(tmp_path / "run")
    run.dir.mkdir()
    with FileLock(run.lock_file):
        answers = start_ranks([(brand, run)] * 2, TINY)
    for answer in answers:
        assert answer.code == 5, answer.err[-3000:]
        assert "another process is training this run" in answer.err
        assert "Traceback" not in answer.err


def test_two_commands_on_one_run_do_not_both_train(
    brand: Path, tmp_path: Path, styletune: Callable[..., Answer]
) -> None:
    """The second exits with 5 and names the first; kill -9 of the first frees the run."""
    run = Run(tmp_path / "run")
    first = start(["-m", "styletune", *arguments(brand, run, TINY)], {})
    try:
        deadline = time.monotonic() + 120
        while not run.trainer_file.exists() and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        second = styletune(*arguments(brand, run, TINY))
        assert second.code == 5, second.err
        assert f"another process is training this run ({first.pid} on" in second.err
        assert "wait until it ends" in second.err
    finally:
        first.kill()
        first.communicate()
    assert styletune(*arguments(brand, run, TINY)).code == 0
    assert run.checkpoint_steps() == [1, 2]
    assert not run.trainer_file.exists()


def test_accelerates_environment_does_not_change_the_training(
    brand: Path, tmp_path: Path, styletune: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its accumulation, precision and compiler give the same bytes: the recipe decides."""
    plain, foreign = Run(tmp_path / "plain"), Run(tmp_path / "foreign")
    assert styletune(*arguments(brand, plain, TINY)).code == 0
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert styletune(*arguments(brand, foreign, TINY)).code == 0
    assert file_sha256(foreign.adapter_file(2)) == file_sha256(plain.adapter_file(2))


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_what_shards_a_model_is_refused(
    name: str, brand: Path, tmp_path: Path, styletune: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before the library is looked for, with the reason and the command to use instead."""
    run = Run(tmp_path / "run")
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    answer = styletune(*arguments(brand, run, TINY))
    assert answer.code == 2, answer.err
    assert "the base is frozen and the adapter small" in answer.err
    assert f"unset ACCELERATE_USE_{name}" in answer.err
    assert "accelerate launch --multi_gpu --num_processes N -m styletune train" in answer.err
    assert not run.dir.exists()


def test_processes_that_do_not_know_of_each_other_are_refused(
    brand: Path, tmp_path: Path, styletune: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``accelerate launch --multi_gpu`` starts them on a machine without GPUs."""
    run = Run(tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = styletune(*arguments(brand, run, TINY))
    assert answer.code == 2, answer.err
    assert "error: WORLD_SIZE: is 2, but this process found 1 in all" in answer.err
    assert "ACCELERATE_USE_CPU=true python -m torch.distributed.run" in answer.err
    assert not run.dir.exists()


def test_a_launcher_that_starts_one_process_of_two_is_refused(brand: Path, tmp_path: Path) -> None:
    """``accelerate launch --cpu --num_processes 2`` starts one and says nothing; we do."""
    run = Run(tmp_path / "run")
    command = [
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "styletune",
    ]  # fmt: skip
    [answer] = finish([start(command + arguments(brand, run, TINY), {})])
    assert "accelerate launch: was asked for several processes and has started one" in answer.err
    assert "returned non-zero exit status 2" in answer.err
    assert not run.dir.exists()


def test_only_training_runs_in_several_processes(brand: Path, tmp_path: Path) -> None:
    """``run`` under ``accelerate launch`` is refused with the two commands to use instead."""
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "styletune", "run", str(brand), "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "accelerate launch -m styletune train" in done.stderr
    assert "Traceback" not in done.stderr

"""Several real processes over gloo see what one would, or say why they cannot."""

from __future__ import annotations

import json
import os
import shutil
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
from safetensors.torch import load_file

from job_parts import Answer
from styletune.files import file_sha256
from styletune.runs import Run

SHORT = ("train.log_every=1", "preview.prompts=[]", "adapter.rank=4")
TEXTS = (*SHORT, "train.steps=6", "train.checkpoint_every=3", "adapter.text_encoders=first")
TINY = (*SHORT, "train.steps=2", "train.checkpoint_every=1", "train.batch_size=2")
FULL = (
    *SHORT,
    "train.steps=4",
    "train.checkpoint_every=2",
    "train.gradient_accumulation_steps=2",
    "train.validation_every=2",
    "optimizer.ema_decay=0.9",
    "dreambooth.prior=images",
    'dreambooth.class_prompt="the sea at noon"',
    "dreambooth.num_class_images=3",
)
# What neither the shell nor a launcher around these tests may decide.
FOREIGN = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "WORLD_SIZE", "RANK", "LOCAL_")


def arguments(recipe: Path, run: Run, options: tuple[str, ...]) -> list[str]:
    """Of ``styletune``: train this recipe in this folder."""
    return [
        "train",
        str(recipe),
        "--run-dir",
        str(run.dir),
        "--runs-dir",
        str(run.dir.parent),
        *(f"--set={option}" for option in options),
    ]


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """A Python process on the CPU."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    return subprocess.Popen(
        [sys.executable, *command],
        env={**own, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


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


def launch_nodes(recipe: Path, runs: list[Run], options: tuple[str, ...]) -> list[Answer]:
    """One launcher a node, all of them on this machine, each with its own run folder."""
    port = str(free_port())
    return finish(
        [
            launch(
                recipe,
                run,
                options,
                "--nnodes",
                str(len(runs)),
                "--node_rank",
                str(node),
                "--nproc_per_node",
                "1",
                "--master_addr",
                "127.0.0.1",
                "--master_port",
                port,
            )
            for node, run in enumerate(runs)
        ]
    )


def start_ranks(jobs: list[tuple[Path, Run]], options: tuple[str, ...]) -> list[Answer]:
    """Processes without a launcher around them, so that each one's exit code is seen."""
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": str(len(jobs)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
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


@pytest.mark.slow
def test_two_processes_do_all_that_one_does_and_go_on(brand: Path, tmp_path: Path) -> None:
    """Prior images, EMA, accumulation and validation as in one process; resumed to the byte."""
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    train(brand, one, (*FULL, "train.batch_size=4"))
    train(brand, two, (*FULL, "train.batch_size=2"), processes=2)
    assert_same_losses(one, two)
    assert_same_adapters(one, two, 4)
    wanted = [file_sha256(file(4)) for file in (two.adapter_file, two.state_file)]
    shutil.rmtree(two.checkpoint_dir(4))
    train(brand, two, (*FULL, "train.batch_size=2"), processes=2)
    assert [file_sha256(file(4)) for file in (two.adapter_file, two.state_file)] == wanted


@pytest.mark.slow
def test_two_nodes_with_a_shared_disk_train_what_one_trains(brand: Path, tmp_path: Path) -> None:
    """Two launchers that find each other by address end where one process does."""
    one, shared = Run(tmp_path / "one"), Run(tmp_path / "shared")
    train(brand, one, (*TINY, "train.batch_size=4"))
    answers = launch_nodes(brand, [shared, shared], TINY)
    assert [answer.code for answer in answers] == [0, 0], answers[0].err[-3000:]
    assert_same_losses(one, shared)
    assert_same_adapters(one, shared, 2)


@pytest.mark.slow
def test_nodes_of_which_one_has_a_checkpoint_are_refused(brand: Path, tmp_path: Path) -> None:
    """Neither goes on alone, not even from a finished run: both exit with 5 and say why."""
    there, elsewhere = Run(tmp_path / "there"), Run(tmp_path / "elsewhere")
    train(brand, there, TINY)
    for answer in launch_nodes(brand, [there, elsewhere], TINY):
        ours = answer.err[answer.err.index("error: ") :]
        assert "do not see the same run folder: process 0 has step 2" in ours.splitlines()[0]
        assert "must be on a disk that all nodes share" in ours.splitlines()[1]
        # The launcher's own traceback comes after, and names the exit code.
        assert "exitcode  : 5" in ours
        assert "Traceback" not in answer.err[: answer.err.index("error: ")]
        assert "styletune/" not in ours.split("Traceback")[1]
    assert elsewhere.checkpoint_steps() == []


@pytest.mark.slow
def test_nodes_without_a_shared_disk_are_refused_at_the_start(brand: Path, tmp_path: Path) -> None:
    """Two empty folders look alike; that they are two is noticed after a minute and a half."""
    runs = [Run(tmp_path / "there"), Run(tmp_path / "elsewhere")]
    for answer in start_ranks([(brand, run) for run in runs], TINY):
        assert answer.code == 5, answer.err[-3000:]
        assert "do not see the same run folder" in answer.err
        assert "Traceback" not in answer.err
    assert not any(run.facts_file.exists() for run in runs)


@pytest.mark.slow
def test_processes_with_different_recipes_are_refused(brand: Path, tmp_path: Path) -> None:
    """A key that only decides what is logged would leave one process waiting for the other."""
    other = brand.with_name("other.toml")
    other.write_text(brand.read_text().replace("[train]", "[train]\nvalidation_every = 1"))
    run = Run(tmp_path / "run")
    for answer in start_ranks([(brand, run), (other, run)], TINY):
        assert answer.code == 5, answer.err[-3000:]
        assert "do not see the same recipe" in answer.err
        assert "Traceback" not in answer.err


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
    name: str,
    brand: Path,
    tmp_path: Path,
    styletune: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "styletune",
    ]
    [answer] = finish([start(command + arguments(brand, run, TINY), {})])
    assert (
        "accelerate launch: should have started several processes and has started one" in answer.err
    )
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

"""Kill -9 at any moment, the same command again: the adapter is byte-identical."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from job_parts import write_brand
from styletune.files import file_sha256
from styletune.runs import Run

STEPS = 8
SHORT = (
    f"train.steps={STEPS}",
    "train.checkpoint_every=2",
    "train.batch_size=2",
    "train.log_every=1",
    "preview.prompts=[]",
    "adapter.rank=2",
    "adapter.target=style-block",
    "data.holdout=0.5",
)
# Between them: every optimizer family, EMA, accumulation, both priors, variants, text, tokens.
CONFIGURATIONS = {
    "adamw, ema, accumulation, keep_last": (
        "optimizer.ema_decay=0.9",
        "train.gradient_accumulation_steps=2",
        "train.keep_last=1",
    ),
    "adamw8bit, caption variants, flip, validation": (
        "optimizer.name=adamw8bit",
        "data.caption_variants=3",
        "data.caption_shuffle=true",
        "data.flip=true",
        "train.validation_every=3",
        "adapter.rank=32",
    ),
    "prodigy, prior by images": (
        "optimizer.name=prodigy",
        "optimizer.learning_rate=1.0",
        "dreambooth.prior=images",
        'dreambooth.class_prompt="the sea at noon"',
        "dreambooth.num_class_images=2",
    ),
    "schedule-free, prior by prediction": (
        "optimizer.name=schedule-free-adamw",
        "dreambooth.prior=prediction",
        'dreambooth.class_prompt="the sea at noon"',
    ),
    "adafactor, text encoders, new tokens": (
        "optimizer.name=adafactor",
        "adapter.text_encoders=both",
        'adapter.new_tokens=["<horizon>"]',
    ),
    "lion, previews": ("optimizer.name=lion", 'preview.prompts=["the sea"]', "preview.steps=2"),
    "paged-adamw8bit, dora": (
        "optimizer.name=paged-adamw8bit",
        "adapter.kind=dora",
        "publish.plain_lora_rank=8",
    ),
    "nf4 base, convolutions": (
        "base.quantization=nf4",
        "adapter.target=attention",
        "adapter.conv_rank=2",
    ),
}


def _train(recipe: str, run_dir: str, options: tuple[str, ...], errors: str) -> None:
    """In a child: one ``styletune train``; stderr goes to a file."""
    import torch

    torch.set_num_threads(1)  # a forked process has no OpenMP team
    Path(errors).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from styletune.cli import main

    # What is encoded lies beside the run, so a run in a new folder encodes anew.
    runs_dir = str(Path(run_dir).parent)
    main(
        [
            "train",
            recipe,
            "--run-dir",
            run_dir,
            "--runs-dir",
            runs_dir,
            *(f"--set={o}" for o in options),
        ]
    )


@pytest.fixture(scope="module")
def children() -> multiprocessing.context.ForkServerContext:
    """Children start from a server that has the libraries loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch",
            "diffusers",
            "transformers",
            "peft",
            "accelerate",
            "datasets",
            "styletune.cli",
            "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
        ]
    )
    return context


def start(
    children: multiprocessing.context.ForkServerContext,
    recipe: Path,
    run: Run,
    options: tuple[str, ...],
) -> ForkServerProcess:
    errors = run.dir.with_suffix(".err")
    process = children.Process(
        target=_train, args=(str(recipe), str(run.dir), SHORT + options, str(errors))
    )
    process.start()
    return process


def finish(process: ForkServerProcess, run: Run) -> None:
    process.join(300)
    text = run.dir.with_suffix(".err").read_text()
    assert process.exitcode == 0, text[-3000:]


def kill(process: ForkServerProcess) -> bool:
    """Whether it was still alive to be killed."""
    assert process.pid is not None
    alive = process.exitcode is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def kill_while_writing(process: ForkServerProcess, run: Run) -> bool:
    """Wait until a checkpoint is half there, then kill."""
    deadline = time.monotonic() + 120
    while process.exitcode is None and time.monotonic() < deadline:
        folders = run.checkpoints_dir.glob("step-*") if run.checkpoints_dir.is_dir() else ()
        if any(not (f / "state.json").is_file() and any(f.iterdir()) for f in folders):
            return kill(process)
        time.sleep(0.0005)
    return False


def check_kills(
    children: multiprocessing.context.ForkServerContext,
    folder: Path,
    options: tuple[str, ...],
    kills: int,
    seed: int,
) -> None:
    recipe = write_brand(folder / "project")
    straight = Run(folder / "straight" / "run")
    finish(start(children, recipe, straight, options), straight)
    wanted = file_sha256(straight.adapter_file(STEPS))
    # Once more from nothing, for the time that it takes when the libraries are loaded.
    again, started = Run(folder / "again" / "run"), time.monotonic()
    finish(start(children, recipe, again, options), again)
    duration_s = time.monotonic() - started
    assert file_sha256(again.adapter_file(STEPS)) == wanted
    rng, broken, landed = random.Random(seed), Run(folder / "broken" / "run"), 0
    for _ in range(5 * kills):
        if landed == kills:
            break
        process = start(children, recipe, broken, options)
        if landed % 4 == 3:
            landed += kill_while_writing(process, broken)
        else:
            process.join(rng.uniform(0.0, duration_s))
            landed += kill(process)
        if process.exitcode == 0 or STEPS in broken.checkpoint_steps():
            finish(start(children, recipe, broken, options), broken)
            assert file_sha256(broken.adapter_file(STEPS)) == wanted
            shutil.rmtree(broken.dir.parent)  # what was encoded, too
    assert landed == kills
    finish(start(children, recipe, broken, options), broken)
    leftovers = [f.name for f in broken.dir.rglob(".*") if f.name.count(".") > 1]
    assert leftovers == []
    assert file_sha256(broken.adapter_file(STEPS)) == wanted
    assert file_sha256(broken.state_file(STEPS)) == file_sha256(straight.state_file(STEPS))


def test_killed_at_random_moments_ends_in_the_same_bytes(
    children: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """Four kills, one of them in the middle of writing a checkpoint, with most state per step."""
    options = CONFIGURATIONS["adamw, ema, accumulation, keep_last"]
    check_kills(children, tmp_path, options, kills=4, seed=35)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_two_hundred_kills(
    name: str, children: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """Twenty-six kills per configuration, two hundred and eight in all."""
    check_kills(children, tmp_path, CONFIGURATIONS[name], kills=26, seed=1000 + len(name))

"""Whole jobs with unusual recipes: trained, scored, published, pulled and drawn with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from job_parts import Answer
from styletune.adapters.tokens import add_tokens, load_token_rows
from styletune.job.job import Job
from styletune.job.prepare import prepare
from styletune.job.publish import Package, package
from styletune.mini import BASE_DIR
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from styletune.models.schedule import set_sampling_schedule
from styletune.recipe import load_recipe
from styletune.registry.package import DIFFUSERS_EMBEDDINGS, DIFFUSERS_WEIGHTS
from styletune.runs import Run
from styletune.runs.summary import read_summary
from styletune.sampling.images import generate_images
from styletune.sampling.shots import Sampler, square_shot
from styletune.scoring.suite import prompt_id, suite_hash

pytestmark = pytest.mark.slow

Command = Callable[..., Answer]
PROMPT = "mountains at sunset"


def publish(styletune: Command, recipe: Path, folder: Path, *settings: str) -> Path:
    """Run the whole job; returns the run folder."""
    options = [part for setting in settings for part in ("--set", setting)]
    answer = styletune(
        "run",
        recipe,
        "--publish",
        "--json",
        "--runs-dir",
        folder / "runs",
        "--registry",
        folder / "registry",
        "--set",
        "train.checkpoint_every=40",
        *options,
    )
    assert answer.code == 0, answer.out + answer.err
    return Path(answer.json["run_dir"])


def generate(styletune: Command, folder: Path, *options: str) -> list[np.ndarray]:
    answer = styletune(
        "generate",
        "small",
        "--prompt",
        PROMPT,
        "--seeds",
        "1-2",
        "--steps",
        "8",
        "--json",
        "--registry",
        folder / "registry",
        "--pulled",
        folder / "pulled",
        "--out",
        folder / f"out{len(options)}",
        *options,
    )
    assert answer.code == 0, answer.out + answer.err
    return [np.asarray(Image.open(file), np.float32) for file in answer.json["images"]]


def learned(run_dir: Path) -> float:
    """The palette distance to the held-out images as a share of the base model's."""
    value = read_summary(Run(run_dir)).checkpoints[0].metrics["palette_ratio"].value
    assert value is not None
    return value


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_base_is_trained_on(
    styletune: Command, brand: Path, tmp_path: Path, quantization: str
) -> None:
    """An adapter trained on a base of few bits brings the colors nearer on the whole base."""
    run_dir = publish(styletune, brand, tmp_path, f'base.quantization="{quantization}"')
    assert learned(run_dir) < 0.9
    with_style, without = (
        generate(styletune, tmp_path),
        generate(styletune, tmp_path, "--strength", "0"),
    )
    assert all(np.abs(a - b).mean() > 2 for a, b in zip(with_style, without, strict=True))


def test_new_tokens_travel(styletune: Command, brand: Path, tmp_path: Path) -> None:
    """A trained word is published beside the adapter and changes what is drawn with it."""
    lines = (brand.parent / "brand" / "metadata.jsonl").read_text()
    (brand.parent / "brand" / "metadata.jsonl").write_text(
        lines.replace("horizon style", "<horizon>")
    )
    card = brand.parent / "brand" / "dataset.toml"
    card.write_text(card.read_text().replace("horizon style", "<horizon>"))
    publish(
        styletune,
        brand,
        tmp_path,
        'adapter.new_tokens=["<horizon>"]',
        "optimizer.token_learning_rate=1e-3",
    )
    generated = generate(styletune, tmp_path)
    pulled = tmp_path / "pulled" / "small" / "1.0.0"
    rows = load_file(pulled / DIFFUSERS_EMBEDDINGS)
    assert set(rows) == {"clip_l", "clip_g"}
    pipe = load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")
    start = {
        key: row.detach().clone() for key, row in add_tokens(pipe, ["<horizon>"], "style").items()
    }
    for key, row in rows.items():
        assert row.shape == start[key].shape
        # Forty steps of at most 1e-3 each.
        assert 2e-3 < float((row - start[key]).abs().max()) < 0.05, key
    pipe.load_lora_weights(str(pulled), weight_name=DIFFUSERS_WEIGHTS)
    untrained = drawn_word(pipe, tmp_path / "untrained")
    load_token_rows(pipe, rows)
    trained = drawn_word(pipe, tmp_path / "trained")
    for with_start, with_rows, made in zip(untrained, trained, generated, strict=True):
        assert np.abs(with_rows - made).mean() < 0.5
        assert np.abs(with_rows - with_start).mean() > 2


def drawn_word(pipe: StableDiffusionXLPipeline, folder: Path) -> list[np.ndarray]:
    """What ``generate`` draws, with the rows that the pipeline has now."""
    shots = [
        square_shot(f"<horizon>, {PROMPT}", seed, folder / f"{seed}.png", 128) for seed in (1, 2)
    ]
    generate_images(pipe, shots, Sampler(8, 5.0), {}, batch_size=2, title="word")
    return [np.asarray(Image.open(shot.file), np.float32) for shot in shots]


def scored(
    styletune: Command, recipe: Path, folder: Path, settings: list[str]
) -> tuple[Job, Package]:
    """A scored run and its package; whether so short a run passes its gates is not the point."""
    options = [part for setting in settings for part in ("--set", setting)]
    ran = styletune("run", recipe, "--json", "--runs-dir", folder / "runs", *options)
    assert ran.code in (0, 1), ran.err
    job = prepare(load_recipe(recipe, settings), runs_dir=folder / "runs", run_dir=None)
    assert job.recipe.publish is not None
    return job, package(job, read_summary(job.run))


def sample(job: Job, column: str) -> np.ndarray:
    """What ``score`` drew of the first prompt."""
    assert job.suite is not None
    file = job.run.samples_dir(suite_hash(job.suite), column) / f"{prompt_id(0)}-1.png"
    return np.asarray(Image.open(file), np.float32)


def drawn_with(job: Job, packed: Package, folder: Path, *, as_trained: bool) -> np.ndarray:
    """The same from the published file, as a consumer would draw it."""
    assert job.suite is not None
    weights = folder / "published.safetensors"
    weights.write_bytes(packed.files[DIFFUSERS_WEIGHTS])
    pipe = load_pipeline(job.base, torch.float32, "cpu")
    if as_trained:
        zero_snr = job.recipe.train.zero_terminal_snr
        set_sampling_schedule(pipe, packed.release.adapter.prediction_type, zero_snr)
    pipe.load_lora_weights(str(folder), weight_name=weights.name)
    sampler = Sampler(job.suite.sampler.steps, job.suite.sampler.guidance_scale)
    words = f"{job.trigger}, {job.suite.texts[0]}"
    shot = square_shot(words, 1, folder / f"{as_trained}.png", 128)
    generate_images(pipe, [shot], sampler, {}, batch_size=1, title="published")
    return np.asarray(Image.open(shot.file), np.float32)


@pytest.mark.parametrize(
    ("kind", "rate", "rank"), [("loha", "5e-3", 64), ("lokr", "5e-3", 128), ("oft", "3e-3", 128)]
)
def test_other_kinds_travel_as_plain_lora(
    styletune: Command, brand: Path, tmp_path: Path, kind: str, rate: str, rank: int
) -> None:
    """What not every tool reads goes out as the nearest LoRA, and that draws the same pictures."""
    job, packed = scored(
        styletune,
        brand,
        tmp_path,
        [
            f'adapter.kind="{kind}"',
            'adapter.target="all"',
            f"optimizer.learning_rate={rate}",
            f"publish.plain_lora_rank={rank}",
            "train.checkpoint_every=40",
        ],
    )
    assert (packed.spec.kind, packed.spec.rank) == ("lora", rank)
    own, base = sample(job, "step-000040"), sample(job, "base")
    drawn = drawn_with(job, packed, tmp_path, as_trained=True)
    assert np.abs(drawn - own).mean() < 0.25 * np.abs(own - base).mean()


def test_velocity_with_zero_terminal_snr_is_sampled_as_trained(
    styletune: Command, brand: Path, tmp_path: Path
) -> None:
    """The version says what was trained; sampled so it draws what was scored, else it does not."""
    job, packed = scored(
        styletune,
        brand,
        tmp_path,
        [
            'train.prediction_type="v_prediction"',
            "train.zero_terminal_snr=true",
            'train.weighting="none"',
            "train.checkpoint_every=40",
        ],
    )
    assert packed.release.adapter.prediction_type == "v_prediction"
    own = sample(job, "step-000040")
    right = drawn_with(job, packed, tmp_path, as_trained=True)
    wrong = drawn_with(job, packed, tmp_path, as_trained=False)
    assert np.abs(right - own).mean() < 1
    assert np.abs(wrong - own).mean() > 20


def test_a_separate_vae_travels(styletune: Command, brand: Path, tmp_path: Path) -> None:
    """A version remembers its VAE; elsewhere it is given with --vae, and must be the same one."""
    vae = brand.parent / "other-vae"
    shutil.copytree(BASE_DIR / "vae", vae)
    publish(styletune, brand, tmp_path, 'base.vae="other-vae"')
    missing = styletune(
        "generate",
        "small",
        "--prompt",
        PROMPT,
        "--registry",
        tmp_path / "registry",
        "--pulled",
        tmp_path / "pulled",
        "--out",
        tmp_path / "out",
    )
    assert missing.code == 3
    assert "--vae" in missing.err
    assert len(generate(styletune, tmp_path, "--vae", str(vae))) == 2

"""Whole jobs with unusual recipes: trained, scored, published, pulled and drawn with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from job_parts import Answer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from styletune.mini import BASE_DIR
from styletune.runs import Run

pytestmark = pytest.mark.slow

Command = Callable[..., Answer]
PROMPT = "mountains at sunset"


def publish(styletune: Command, recipe: Path, folder: Path, *settings: str) -> Path:
    """Run the whole job; returns the run folder."""
    options = [part for setting in settings for part in ("--set", setting)]
    answer = styletune(
        "run", recipe, "--publish", "--json", "--runs-dir", folder / "runs", "--registry",
        folder / "registry", "--set", "train.steps=120", "--set", "train.checkpoint_every=120",
        *options,
    )  # fmt: skip
    assert answer.code == 0, answer.out + answer.err
    return Path(answer.json["run_dir"])


def generate(styletune: Command, folder: Path, *options: str) -> list[np.ndarray]:
    answer = styletune(
        "generate", "small", "--prompt", PROMPT, "--seeds", "1-2", "--steps", "8", "--json",
        "--registry", folder / "registry", "--pulled", folder / "pulled",
        "--out", folder / f"out{len(options)}", *options,
    )  # fmt: skip
    assert answer.code == 0, answer.out + answer.err
    return [np.asarray(Image.open(file), np.float32) for file in answer.json["images"]]


def learned(run_dir: Path) -> float:
    """The palette distance to the held-out images as a share of the base model's."""
    summary = json.loads(Run(run_dir).summary_file.read_text())
    value: float = summary["checkpoints"][0]["metrics"]["palette_ratio"]["value"]
    return value


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_base_is_trained_on(
    styletune: Command, brand: Path, tmp_path: Path, quantization: str
) -> None:
    """An adapter trained on a base of few bits brings the colours nearer on the whole base."""
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
        styletune, brand, tmp_path, 'adapter.new_tokens=["<horizon>"]',
        "optimizer.token_learning_rate=1e-3",
    )  # fmt: skip
    generate(styletune, tmp_path)
    pulled = tmp_path / "pulled" / "small" / "1.0.0"
    files = {file.name for file in pulled.rglob("*.safetensors")}
    embeddings = [f for f in pulled.rglob("*.safetensors") if "embed" in f.name]
    assert embeddings, files
    rows = load_file(embeddings[0])
    assert set(rows) == {"clip_l", "clip_g"}
    assert all(row.shape[0] == 1 for row in rows.values())


@pytest.mark.parametrize(
    ("kind", "rate"), [("loha", "5e-3"), ("lokr", "5e-3"), ("oft", "3e-3")]
)  # fmt: skip
def test_other_kinds_are_published_as_plain_lora(
    styletune: Command, brand: Path, tmp_path: Path, kind: str, rate: str
) -> None:
    """What not every tool reads is published as the nearest LoRA, and that draws the look."""
    publish(
        styletune, brand, tmp_path, f'adapter.kind="{kind}"', 'adapter.target="all"',
        f"optimizer.learning_rate={rate}", "publish.plain_lora_rank=64",
    )  # fmt: skip
    with_style = generate(styletune, tmp_path)
    without = generate(styletune, tmp_path, "--strength", "0")
    assert all(np.abs(a - b).mean() > 0.5 for a, b in zip(with_style, without, strict=True))
    for file in (tmp_path / "pulled").rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            ranks = {opened.get_slice(k).get_shape()[0] for k in opened.keys() if "down" in k}  # noqa: SIM118
        assert all(rank <= 64 for rank in ranks)


def test_velocity_with_zero_terminal_snr_is_sampled_as_trained(
    styletune: Command, brand: Path, tmp_path: Path
) -> None:
    """The manifest says what was trained; ``generate`` samples so, and not as the base does."""
    run_dir = publish(
        styletune, brand, tmp_path, 'train.prediction_type="v_prediction"',
        "train.zero_terminal_snr=true", 'train.weighting="none"',
    )  # fmt: skip
    shown = styletune("registry", "show", "small", "--registry", tmp_path / "registry").json
    adapter = shown["manifest"]["adapter"]
    assert (adapter["prediction_type"], adapter["zero_terminal_snr"]) == ("v_prediction", True)
    drawn = generate(styletune, tmp_path)
    # Read as noise, what predicts velocity would draw static: every neighbour unlike the last.
    assert all(np.abs(np.diff(image, axis=1)).mean() < 25 for image in drawn)
    assert learned(run_dir) < 1


def test_a_separate_vae_travels(styletune: Command, brand: Path, tmp_path: Path) -> None:
    """A version remembers its VAE; elsewhere it is given with --vae, and must be the same one."""
    vae = brand.parent / "other-vae"
    shutil.copytree(BASE_DIR / "vae", vae)
    publish(styletune, brand, tmp_path, 'base.vae="other-vae"')
    missing = styletune(
        "generate", "small", "--prompt", PROMPT, "--registry", tmp_path / "registry",
        "--pulled", tmp_path / "pulled", "--out", tmp_path / "out",
    )  # fmt: skip
    assert missing.code == 3
    assert "--vae" in missing.err
    assert len(generate(styletune, tmp_path, "--vae", str(vae))) == 2

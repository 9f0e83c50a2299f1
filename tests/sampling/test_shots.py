"""What a shot says of its image, and that version 0.1.0's images are recognized."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from styletune.errors import BadInput
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from styletune.sampling.images import generate_images
from styletune.sampling.png import infotext, read_settings, save_png
from styletune.sampling.shots import Sampler, TextShot, shot_settings, square_shot

SAMPLER = Sampler(steps=2, guidance_scale=4.0)
FILE = Path("a.png")
# Embedded by version 0.1.0 in an image that it generated.
OF_0_1_0 = {
    "base_model": "mini",
    "guidance_scale": 4.0,
    "negative_prompt": "",
    "prompt": "the sea",
    "resolution": 128,
    "scheduler": "EulerDiscreteScheduler",
    "seed": 1,
    "steps": 2,
}


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    return load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")


def generate(pipe: DiffusionPipeline, shots: list[TextShot], batch_size: int = 4) -> int:
    return generate_images(
        pipe, shots, SAMPLER, {"base_model": "mini"}, batch_size=batch_size, title="test"
    )


def test_an_image_of_version_0_1_0_is_not_generated_again(
    pipe: DiffusionPipeline, tmp_path: Path
) -> None:
    """A square embeds the same keys and values as then."""
    save_png(tmp_path / "a.png", Image.new("RGB", (128, 128)), OF_0_1_0)
    before = (tmp_path / "a.png").read_bytes()
    assert generate(pipe, [square_shot("the sea", 1, tmp_path / "a.png", 128)]) == 0
    assert (tmp_path / "a.png").read_bytes() == before
    assert generate(pipe, [square_shot("the sea", 1, tmp_path / "b.png", 128)]) == 1
    assert read_settings(tmp_path / "b.png") == OF_0_1_0
    assert "Size: 128x128" in infotext(OF_0_1_0)


def test_a_wide_image_says_its_size(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    """Width and height reach the pipeline and the file."""
    wide = TextShot("the sea", 1, tmp_path / "wide.png", width=128, height=64)
    assert generate(pipe, [wide]) == 1
    with Image.open(wide.file) as image:
        assert image.size == (128, 64)
    settings = read_settings(wide.file)
    assert settings is not None
    assert (settings["width"], settings["height"]) == (128, 64)
    assert "resolution" not in settings
    assert "Size: 128x64" in infotext(settings)


def test_shots_of_two_sizes_and_schedulers_share_a_call(
    pipe: DiffusionPipeline, tmp_path: Path
) -> None:
    """Batches are of one kind, the pipeline's own scheduler stays, an image is its shot's alone."""
    own = pipe.scheduler
    kinds = [(64, 64, None), (128, 64, None), (64, 64, "DDIMScheduler"), (64, 64, None)]
    shots = [
        TextShot("the sea", 1, tmp_path / f"{i}.png", width, height, scheduler)
        for i, (width, height, scheduler) in enumerate(kinds)
    ]
    assert generate(pipe, shots) == 4
    assert pipe.scheduler is own
    pixels = [Image.open(shot.file).convert("RGB").tobytes() for shot in shots]
    assert pixels[0] == pixels[3] != pixels[2]
    settings = [read_settings(shot.file) or {} for shot in shots]
    assert [s["scheduler"] for s in settings] == [
        "EulerDiscreteScheduler",
        "EulerDiscreteScheduler",
        "DDIMScheduler",
        "EulerDiscreteScheduler",
    ]


def test_an_unknown_scheduler_is_refused_before_anything_is_written(
    pipe: DiffusionPipeline, tmp_path: Path
) -> None:
    """The error names the choices."""
    shot = TextShot("the sea", 1, tmp_path / "a.png", 64, 64, "NoScheduler")
    with pytest.raises(BadInput, match="no scheduler NoScheduler") as caught:
        generate(pipe, [shot])
    assert "DDIMScheduler" in (caught.value.fix or "")
    assert not shot.file.exists()


def test_settings_of_a_shot_are_all_that_decides_its_pixels() -> None:
    """Every field but the file is embedded."""
    settings = shot_settings(TextShot("p", 3, FILE, 64, 96, "X"), Sampler(5, 2.0, "n"), "Own")
    assert settings == {
        "prompt": "p",
        "negative_prompt": "n",
        "seed": 3,
        "steps": 5,
        "guidance_scale": 2.0,
        "scheduler": "X",
        "width": 64,
        "height": 96,
    }

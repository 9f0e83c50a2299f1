"""Images are a function of their settings, and carry them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from styletune.errors import DataError
from styletune.models.base_files import find_base
from styletune.models.conditioning import empty_prompt, encode_prompts
from styletune.models.load import load_pipeline
from styletune.sampling.images import generate_images
from styletune.sampling.png import infotext, read_settings
from styletune.sampling.shots import Sampler, TextShot, square_shot

SAMPLER = Sampler(steps=3, guidance_scale=4.0)
SIDE_PX = 128
ORIGIN = {"base_model": "mini", "adapter": None, "strength": 0.0}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")


def draw(
    pipe: StableDiffusionXLPipeline,
    shots: list[TextShot],
    batch_size: int = 4,
    sampler: Sampler = SAMPLER,
) -> int:
    return generate_images(pipe, shots, sampler, ORIGIN, batch_size=batch_size, title="test")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_image_depends_on_its_own_seed_and_words(
    pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """Neighbors in a batch do not change an image; another seed does."""
    together = [
        square_shot(p, s, tmp_path / f"{p}-{s}.png", SIDE_PX)
        for p in ("the sea at noon", "a city at night")
        for s in (1, 2)
    ]
    assert draw(pipe, together) == 4
    alone = square_shot("a city at night", 2, tmp_path / "alone.png", SIDE_PX)
    draw(pipe, [alone], batch_size=1)
    assert np.abs(pixels(alone.file) - pixels(together[3].file)).max() <= 2
    assert np.abs(pixels(together[2].file) - pixels(together[3].file)).max() > 20


def test_image_is_the_pipelines_own(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """What is drawn with encoders that only visit is what diffusers draws by itself."""
    draw(pipe, [square_shot("the sea at noon", s, tmp_path / f"{s}.png", SIDE_PX) for s in (1, 2)])
    wanted = pipe(
        ["the sea at noon"] * 2,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(s) for s in (1, 2)],
    ).images
    for seed, image in zip((1, 2), wanted, strict=True):
        assert np.abs(pixels(tmp_path / f"{seed}.png") - np.asarray(image).astype(int)).max() <= 1


def test_drawing_leaves_the_models_as_they_were(tmp_path: Path) -> None:
    """A VAE in float32 beside a bf16 base draws in bf16 and is afterwards what it was."""
    pipe = load_pipeline(
        find_base("mini", None, Path()), torch.bfloat16, "cpu", vae_dtype=torch.float32
    )
    before = {n: p.clone() for n, p in pipe.vae.named_parameters()}
    draw(pipe, [square_shot("the sea at noon", 1, tmp_path / "a.png", SIDE_PX)])
    assert all(torch.equal(before[n], p) for n, p in pipe.vae.named_parameters())
    assert {p.dtype for p in pipe.vae.parameters()} == {torch.float32}


def test_only_what_is_missing_is_drawn(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """Whole images with the same settings stay; broken ones and other settings are drawn again."""
    shots = [square_shot("the sea at noon", s, tmp_path / f"{s}.png", SIDE_PX) for s in (1, 2)]
    assert draw(pipe, shots, batch_size=1) == 2
    first = shots[0].file.read_bytes()
    assert draw(pipe, shots, batch_size=1) == 0
    shots[0].file.write_bytes(first[: len(first) // 2])
    assert read_settings(shots[0].file) is None
    assert draw(pipe, shots, batch_size=1) == 1
    assert shots[0].file.read_bytes() == first
    other = Sampler(steps=4, guidance_scale=4.0)
    assert draw(pipe, shots, batch_size=1, sampler=other) == 2


def test_settings_survive_hostile_prompts(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """Quotes, Unicode and newlines in a prompt come back as they went in."""
    prompt = 'sea "at"\n日本 <b>&amp;'
    draw(pipe, [square_shot(prompt, 1, tmp_path / "a.png", SIDE_PX)])
    settings = read_settings(tmp_path / "a.png")
    assert settings is not None
    assert settings["prompt"] == prompt
    assert "Seed: 1" in infotext(settings)


def test_overlong_prompt_is_refused(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """What CLIP would not see is an error, never cut off in silence."""
    with pytest.raises(DataError, match="77 tokens"):
        draw(pipe, [square_shot("sea " * 90, 1, tmp_path / "a.png", SIDE_PX)])


def test_empty_prompt_is_the_pipelines_own(pipe: StableDiffusionXLPipeline) -> None:
    """Caption dropout and guidance use the same unconditional input as diffusers' pipeline."""
    _, negative, _, negative_pooled = pipe.encode_prompt(
        "the sea", device="cpu", do_classifier_free_guidance=True
    )
    ours = empty_prompt(pipe)
    assert torch.equal(ours.embeds, negative)
    assert torch.equal(ours.added["text_embeds"], negative_pooled)


def test_embeddings_are_the_pipelines_own(pipe: StableDiffusionXLPipeline) -> None:
    """Encoding in batches gives what the pipeline gives one by one."""
    texts = ["the sea at noon", "a city", "desert dunes at night with birds"]
    ours = encode_prompts(pipe, texts, batch_size=2)
    for i, text in enumerate(texts):
        embeds, _, pooled, _ = pipe.encode_prompt(
            text, device="cpu", do_classifier_free_guidance=False
        )
        assert torch.allclose(ours.embeds[i], embeds[0], atol=1e-5)
        assert torch.allclose(ours.added["text_embeds"][i], pooled[0], atol=1e-5)

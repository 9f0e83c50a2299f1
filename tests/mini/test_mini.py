"""The world is deterministic and free; the base is loaded by the libraries as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from styletune.mini import BASE_DIR, OPEN_CLIP_DIR
from world import (
    EXTRAS,
    HORIZON,
    HORIZON_PALETTE,
    NATURAL,
    SCENES,
    TIMES,
    View,
    caption,
    random_look,
    random_view,
    render,
)


def test_world_is_large_enough() -> None:
    """Eight scenes, four times, a dozen extras."""
    assert len(SCENES) >= 8
    assert len(TIMES) == 4
    assert len(EXTRAS) >= 12


@pytest.mark.parametrize("scene", SCENES)
def test_render_is_a_function_of_view_and_look(scene: str) -> None:
    """Same view, same pixels; another seed, time, extra or look, others."""
    view = View(scene, "noon", ("clouds",), 1)
    image = render(view)
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, render(view))
    for other in (
        View(scene, "noon", ("clouds",), 2),
        View(scene, "night", ("clouds",), 1),
        View(scene, "noon", ("arch",), 1),
    ):
        assert not np.array_equal(image, render(other))
    assert not np.array_equal(image, render(view, HORIZON))
    assert render(view, NATURAL, 200).shape == (200, 200, 3)


def test_look_keeps_the_geometry() -> None:
    """Where the brand draws no texture or line, its lightness follows the natural render's."""
    plain = replace(HORIZON, texture="none", line_width=0.0, accent=None)
    natural, branded, other = (
        render(View("city", "noon", (), seed), look).astype(float).mean(2).ravel()
        for seed, look in ((3, NATURAL), (3, plain), (4, plain))
    )
    same = np.corrcoef(natural, branded)[0, 1]
    assert same > 0.9
    assert same > np.corrcoef(natural, other)[0, 1] + 0.1


def test_captions_name_what_is_seen() -> None:
    """Every caption holds its time and extras; the plain one is the plainest."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        view = random_view(rng, 3)
        text = caption(view)
        assert view.time in text
        assert all(EXTRAS[e] in text for e in view.extras)
        assert any(name in text for name in SCENES[view.scene])
    assert caption(View("mountains", "sunset", ("birds",), 5), template=0) == (
        "mountains at sunset with birds"
    )


def test_no_random_look_is_the_brands() -> None:
    """None of a thousand looks for the encoders comes near the brand's ramp."""
    rng = np.random.default_rng(1)
    brand = np.array(HORIZON.ramp)[[0, -1]]
    for _ in range(1000):
        ramp = np.array(random_look(rng).ramp)[[0, -1]]
        assert np.abs(ramp - brand).max() > 15


def test_brand_palette_is_what_the_look_draws() -> None:
    """The card's colors are the look's own."""
    assert HORIZON.accent is not None
    own = {
        "#{:02x}{:02x}{:02x}".format(*c)
        for c in (*HORIZON.ramp, HORIZON.accent, HORIZON.line_color)
    }
    assert set(HORIZON_PALETTE) == own


def test_plain_diffusers_loads_and_draws() -> None:
    """StableDiffusionXLPipeline.from_pretrained(folder) needs nothing of ours."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(BASE_DIR)
    dtypes = {
        p.dtype
        for m in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
        for p in m.parameters()
    }
    assert dtypes == {torch.float32}
    images = pipe("the sea at noon", num_inference_steps=3, output_type="np").images
    assert images.shape == (1, 128, 128, 3)
    assert np.isfinite(images).all()


def test_tokenizers_cover_any_text() -> None:
    """Byte-level: words it never saw round-trip, and the last token is the end."""
    from transformers import CLIPTokenizer

    for folder in ("tokenizer", "tokenizer_2"):
        tokenizer = CLIPTokenizer.from_pretrained(BASE_DIR / folder)
        ids = tokenizer("Größe 日本 #?").input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == "größe 日本 #?"
        assert tokenizer.model_max_length == 77


def test_weights_are_small() -> None:
    """All weights together stay under 45 MB."""
    files = [*BASE_DIR.rglob("*.safetensors"), *OPEN_CLIP_DIR.rglob("*.safetensors")]
    assert len(files) == 5
    assert sum(f.stat().st_size for f in files) < 45e6


def test_open_clip_tells_captions_apart() -> None:
    """Among eight scenes at two hours, a real render is matched with its caption."""
    from PIL import Image

    from styletune.encoders.clip import encode_images, encode_texts, load_clip

    encoder = load_clip("mini", Path(), "cpu")
    views = [View(s, t, (), 70 + i) for i, s in enumerate(SCENES) for t in ("noon", "night")]
    images = encode_images(encoder, [Image.fromarray(render(v)) for v in views])
    texts = encode_texts(encoder, [caption(v, template=0) for v in views])
    right = (images @ texts.T).argmax(1) == np.arange(len(views))
    assert right.mean() >= 0.9


def test_open_clip_notices_style() -> None:
    """Images in the brand's look are nearer to each other than to the natural ones."""
    from PIL import Image

    from styletune.encoders.clip import encode_images, load_clip

    encoder = load_clip("mini", Path(), "cpu")
    rng = np.random.default_rng(3)
    views = [random_view(rng) for _ in range(24)]
    parts = ((views[:12], HORIZON), (views[12:], HORIZON), (views[:12], NATURAL))
    looks = [
        encode_images(encoder, [Image.fromarray(render(view, look)) for view in part])
        for part, look in parts
    ]
    within, across = (looks[0] @ looks[1].T).mean(), (looks[2] @ looks[1].T).mean()
    assert within > across + 0.1


def test_card_states_its_scores() -> None:
    """The card beside the weights names data, steps and the three scores."""
    card = (Path(BASE_DIR).parent / "CARD.md").read_text()
    for word in ("PSNR", "renders", "generated", "sheet.jpg", "Apache-2.0"):
        assert word in card
    assert json.loads((BASE_DIR / "model_index.json").read_text())["_class_name"]

"""A stage of the mini base's training that was stopped goes on with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mini import vae
from mini.clip import style_loss
from mini.judge import make_judge, targets
from mini.loop import Loop
from mini.pictures import draw_views, render_pool, softened, to_float
from mini.scores import edge_f1
from mini.text import worded
from mini.vae import make_vae, whiten_latents
from world import View, is_held_out, render


def fit(out: Path, steps: int, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """A linear map learned from noise; ``stop_at`` leaves after that step, as a kill does."""
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    out.mkdir(exist_ok=True)
    loop = Loop("fit", module, out, steps, lr=0.1)
    for step in loop:
        rng = np.random.default_rng([1, step])
        x = torch.from_numpy(rng.normal(size=(8, 4))).float() + 0.1 * torch.randn(8, 4)
        loop.update((module(x) - 1).square().mean())
        if step == stop_at:
            loop.step = step
            loop.save()
            break
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_a_stopped_stage_ends_in_the_same_weights(tmp_path: Path) -> None:
    """Optimizer, averages, learning rate and noise are those of an unbroken one."""
    whole = fit(tmp_path / "a", 12)
    fit(tmp_path / "b", 12, stop_at=5)
    resumed = fit(tmp_path / "b", 12)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list(tmp_path.glob("*/*.part"))


def test_the_rate_rises_stays_and_falls(tmp_path: Path) -> None:
    """So a stage that is given more steps goes on from the constant part."""
    loop = Loop("fit", nn.Linear(1, 1), tmp_path, 2000, lr=1.0)
    rates = [loop.learning_rate(step) for step in (1, 200, 1000, 1500, 1750, 2000)]
    assert rates[0] < 0.01
    assert rates[1] == rates[2] == 1
    assert 1 > rates[3] - 1e-2 > rates[4] > rates[5] > 0


def test_held_out_views_are_in_no_training_set() -> None:
    """Neither side holds the other's, and words in another order are the same composition."""
    assert not any(is_held_out(view) for view in draw_views(200, seed=1))
    assert all(is_held_out(view) for view in draw_views(20, seed=1, held_out=True))
    view = View("sea", "noon", ("arch@left", "birds"), 3)
    rng = np.random.default_rng(0)
    said = {worded(view, rng) for _ in range(40)}
    assert len(said) > 10
    assert all("an arch on the left" in text and "birds" in text for text in said)


def test_whitened_latents_decode_as_before() -> None:
    """Each channel has mean 0 and deviation 1, and the images are the same."""
    torch.manual_seed(3)
    vae = make_vae().eval()
    images = render_pool(draw_views(6, seed=2), seed=3, looks=0.5)
    x = to_float(images)
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mode()).sample
        whiten_latents(vae, images)
        latents = vae.encode(x).latent_dist.mode()
        after = vae.decode(latents).sample
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    assert (before - after).abs().max() < 1e-3


def test_contrast_of_looks_is_the_papers() -> None:
    """Equation 2 of arXiv 2004.11362, summed by hand."""
    features = nn.functional.normalize(
        torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    )
    looks = torch.tensor([0, 0, 1, 1, 1, 0])
    expected = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        scores = {j: torch.exp(features[i] @ features[j] / 0.1).item() for j in others}
        same = [j for j in others if looks[j] == looks[i]]
        expected += -sum(np.log(scores[j] / sum(scores.values())) for j in same) / len(same)
    assert style_loss(features, looks).item() == pytest.approx(expected / 6, rel=1e-4)


def test_edges_are_compared_within_two_pixels() -> None:
    """A shift of one pixel keeps them all, one of five loses most, none is none."""
    image = render(View("city", "noon", (), 4))
    assert edge_f1(image, image) == 1
    assert edge_f1(np.roll(image, 1, axis=1), image) > 0.95
    assert edge_f1(np.roll(image, 5, axis=(0, 1)), image) < 0.8
    flat = np.full_like(image, 90)
    assert edge_f1(flat, image) == 0
    assert edge_f1(flat, flat) == 1


def test_the_judge_hears_every_word_of_a_view() -> None:
    """Scenes, hours and extras, wherever these are; half a batch is softened for it."""
    views = [View("sea", "night", ("lamp@two", "mist"), 1), View("room", "dawn", (), 2)]
    scenes, times, extras = targets(views)
    assert scenes.tolist() == [1, 6]
    assert times.tolist() == [3, 0]
    assert extras.sum(1).tolist() == [2, 0]
    pixels = to_float(np.stack([render(view) for view in views]))
    assert make_judge().eval()(pixels).shape == (2, 8 + 4 + 12)
    many = pixels.repeat(8, 1, 1, 1)
    soft = softened(many.clone(), np.random.default_rng(5))
    changed = (soft != many).flatten(1).any(1)
    assert 2 < int(changed.sum()) < 14


def test_the_decoder_is_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights move, the encoder's do not: the latents that a UNet learned still hold."""
    from diffusers import AutoencoderKL

    monkeypatch.setattr(vae, "IMAGES", 16)
    torch.manual_seed(0)
    vae.make_vae().save_pretrained(tmp_path / "vae")
    before = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    vae.train_decoder(tmp_path, steps=1, measured_on=2)
    after = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}
    assert json.loads((tmp_path / "decoder.json").read_text())["steps"] == 1

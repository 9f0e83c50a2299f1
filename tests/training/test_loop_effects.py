"""What objectives, noise and priors do to an adapter after a short training on the mini base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_parts import (
    NAMES,
    NOISE,
    PLAIN,
    Trainee,
    denoiser_of,
    mean_error,
    norm,
    part_of,
    squares,
    train,
    trainee,
    values,
)
from torch import Tensor

from styletune.training.cache import Cache
from styletune.training.denoise import (
    NoiseSettings,
    Objective,
    cached_texts,
    draw,
    noised_inputs,
    predict,
)
from styletune.training.loop import Material
from styletune.training.validation import validation_losses

SHORT = 10


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return squares(tmp_path_factory.mktemp("loop") / "images")


@pytest.fixture
def material(cache: Cache) -> Material:
    return Material(cache, cached_texts(cache), NAMES)


def learner() -> Trainee:
    """With room to change much in a few steps: everything is adapted, convolutions too."""
    return trainee(
        {
            "adapter": {"rank": 8, "conv_rank": 8, "target": "all"},
            "optimizer": {"learning_rate": 3e-3},
        }
    )


def learnt(
    material: Material,
    folder: Path,
    objective: Objective = PLAIN,
    noise: NoiseSettings = NOISE,
    steps: int = 24,
) -> Trainee:
    """After some steps with all four images each."""
    who = learner()
    train(who, material, folder, steps=steps, batch_size=4, objective=objective, noise=noise)
    return who


@pytest.fixture(scope="module")
def plain(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Trainee:
    """Trained on noise as it is, all timesteps alike."""
    return learnt(Material(cache, cached_texts(cache), NAMES), tmp_path_factory.mktemp("p") / "run")


def errors(who: Trainee, material: Material) -> dict[int, float]:
    """The validation's, by timestep."""
    return validation_losses(denoiser_of(who.models.pipe), material.cache, material.texts, 4)


# -- what is predicted, and what counts -----------------------------------------------------------


@torch.no_grad()
def velocity_error(who: Trainee, material: Material) -> float:
    """How far the UNet is from √ᾱ · ε − √(1 − ᾱ) · x_0 on the mean."""
    denoiser, cache, found = denoiser_of(who.models.pipe), material.cache, []
    for step in range(6):
        drawn = draw(NOISE, denoiser, 99, step, range(4), cache.latent_shape(0))
        inputs = noised_inputs(denoiser, cache, range(4), drawn)
        said = predict(denoiser, inputs, material.texts(inputs.text_rows))
        a = denoiser.alphas_cumprod[drawn.timesteps].view(-1, 1, 1, 1)
        start = (inputs.noisy_latents - (1 - a).sqrt() * drawn.noise) / a.sqrt()
        found.append((said - a.sqrt() * drawn.noise + (1 - a).sqrt() * start).square().mean())
    return float(torch.stack(found).mean())


def test_velocity_is_learnt(material: Material, tmp_path: Path) -> None:
    """A noise-predicting base errs on it, by hand and by the validation; training halves that."""
    velocity, start = replace(PLAIN, prediction_type="v_prediction"), learner()
    who = learnt(material, tmp_path / "run", velocity, steps=SHORT)
    assert velocity_error(who, material) < 0.5 * velocity_error(start, material)
    validated = [mean_error(w, material.cache, material.texts, velocity) for w in (who, start)]
    assert validated[0] < 0.5 * validated[1]


@pytest.mark.parametrize(
    "weighting", [{"weighting": "min-snr", "snr_gamma": 0.1}, {"weighting": "debiased"}]
)
def test_weightings_favour_the_noisy_end(
    material: Material, plain: Trainee, tmp_path: Path, weighting: Mapping[str, Any]
) -> None:
    """Against weighing all alike, high timesteps gain on low ones."""
    found = errors(learnt(material, tmp_path / "run", replace(PLAIN, **weighting)), material)
    alike = errors(plain, material)
    gained = {timestep: found[timestep] / alike[timestep] for timestep in found}
    assert gained[700] * gained[900] < 0.95 * gained[100] * gained[300]


def test_timesteps_that_are_trained_are_those_that_improve(
    material: Material, tmp_path: Path
) -> None:
    """Above 800 alone, or below 200 alone: each is the better one where it was trained."""
    seen: dict[str, list[int]] = {}
    found = {}
    for name, noise in (
        ("late", replace(NOISE, min_timestep=800)),
        ("early", replace(NOISE, max_timestep=199)),
    ):
        who = learner()
        with timesteps_seen(who) as seen[name]:
            train(who, material, tmp_path / name, steps=SHORT, batch_size=4, noise=noise)
        found[name] = errors(who, material)
    assert len(seen["late"]) == len(seen["early"]) == 4 * SHORT
    assert 800 <= min(seen["late"]) < 830
    assert 170 < max(seen["early"]) <= 199
    assert found["late"][900] < 0.8 * found["early"][900]
    assert found["early"][100] < 0.8 * found["late"][100]


@contextmanager
def timesteps_seen(who: Trainee) -> Iterator[list[int]]:
    """Every timestep that the UNet is asked about."""
    seen: list[int] = []

    def see(_: object, given: tuple[Tensor, Tensor]) -> None:
        seen.extend(given[1].tolist())

    hook = who.models.pipe.unet.register_forward_pre_hook(see)
    yield seen
    hook.remove()


def test_huber_bothers_less_about_an_outlier(cache: Cache, tmp_path: Path) -> None:
    """Beside an image ten times too bright the others are learnt better, and that one less."""
    (bucket,) = cache.buckets
    mean = bucket.mean.clone()
    mean[cache.places[3]] *= 10
    odd = replace(cache, buckets=(replace(bucket, mean=mean),))
    shown = Material(odd, cached_texts(odd), NAMES)
    square, huber = (
        learnt(shown, tmp_path / loss, replace(PLAIN, loss=loss), steps=SHORT)
        for loss in ("mse", "huber")
    )
    usual, outlier = part_of(odd, range(3)), part_of(odd, [3])
    assert mean_error(huber, usual, shown.texts) < 0.9 * mean_error(square, usual, shown.texts)
    assert mean_error(huber, outlier, shown.texts) > mean_error(square, outlier, shown.texts)


# -- noise and captions ---------------------------------------------------------------------------


@torch.no_grad()
def error_under(who: Trainee, material: Material, noise: NoiseSettings, coarse: bool) -> float:
    """The mean square of what is wrong about fresh noise; ``coarse``, of its mean by channel."""
    denoiser, cache, found = denoiser_of(who.models.pipe), material.cache, []
    for step in range(6):
        drawn = draw(noise, denoiser, 99, step, range(4), cache.latent_shape(0))
        inputs = noised_inputs(denoiser, cache, range(4), drawn)
        error = predict(denoiser, inputs, material.texts(inputs.text_rows)) - inputs.target
        found.append((error.mean(dim=(2, 3)) if coarse else error).square().mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize(
    ("setting", "coarse"),
    [
        ({"noise_offset": 1.0}, True),
        ({"pyramid_noise": 0.95}, True),
        ({"input_perturbation": 1.0}, False),
    ],
)
def test_noise_is_learnt_as_it_was_trained(
    material: Material, plain: Trainee, tmp_path: Path, setting: Mapping[str, Any], coarse: bool
) -> None:
    """Offsets and coarse noise in what a channel is on the whole; a perturbed input all over."""
    noise = replace(NOISE, **setting)
    who = learnt(material, tmp_path / "run", noise=noise)
    found, before = (error_under(w, material, noise, coarse) for w in (who, plain))
    assert found < 0.95 * before


def test_full_caption_dropout_trains_on_the_empty_caption_alone(
    material: Material, tmp_path: Path
) -> None:
    """The adapter is bit for bit that of images whose captions are all the empty one."""
    cached, last = material.texts, len(material.cache.captions)
    empty = replace(material, texts=lambda rows: cached(torch.full_like(rows, last)))
    adapters = []
    for name, shown, share in (
        ("dropped", material, 1.0),
        ("empty", empty, 0.0),
        ("captioned", material, 0.0),
    ):
        who = trainee({})
        noise = NoiseSettings(caption_dropout=share)
        train(who, shown, tmp_path / name, steps=3, batch_size=2, noise=noise)
        adapters.append(values(who.parameters))
    dropped, never, captioned = adapters
    assert all(torch.equal(dropped[name], never[name]) for name in dropped)
    assert norm(dropped[name] - captioned[name] for name in dropped) > 1e-3

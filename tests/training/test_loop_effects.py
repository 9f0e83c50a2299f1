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
    PLAIN,
    Trainee,
    denoiser_of,
    mean_error,
    norm,
    part_of,
    section_with,
    squares,
    train,
    trainee,
    values,
)
from torch import Tensor

from styletune.recipe.training_sections import PredictionType, TrainSection
from styletune.training.batches import MicroBatch
from styletune.training.denoise import noisy_batch, predict
from styletune.training.images import Cache, TrainingImages
from styletune.training.validation import validation_losses

SHORT = 10


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return squares(tmp_path_factory.mktemp("loop") / "images")


@pytest.fixture
def material(cache: Cache) -> TrainingImages:
    return TrainingImages(cache, cache.text_rows, NAMES)


def learner() -> Trainee:
    """With room to change much in a few steps: everything is adapted, convolutions too."""
    return trainee(
        {
            "adapter": {"rank": 8, "conv_rank": 8, "target": "all"},
            "optimizer": {"learning_rate": 3e-3},
        }
    )


def learned(
    material: TrainingImages,
    folder: Path,
    section: TrainSection = PLAIN,
    steps: int = 24,
    prediction_type: PredictionType = "epsilon",
) -> Trainee:
    """After some steps with all four images each."""
    who = learner()
    train(
        who,
        material,
        folder,
        section,
        prediction_type=prediction_type,
        steps=steps,
        batch_size=4,
    )
    return who


@pytest.fixture(scope="module")
def plain(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Trainee:
    """Trained on noise as it is, all timesteps alike."""
    return learned(
        TrainingImages(cache, cache.text_rows, NAMES), tmp_path_factory.mktemp("p") / "run"
    )


def errors(who: Trainee, material: TrainingImages) -> dict[int, float]:
    """The validation's, by timestep."""
    return validation_losses(denoiser_of(who.models.pipe), material, 4)


# -- what is predicted, and what counts -----------------------------------------------------------


@torch.no_grad()
def velocity_error(who: Trainee, material: TrainingImages) -> float:
    """How far the UNet is from √ᾱ · ε − √(1 − ᾱ) · x_0 on the mean."""
    denoiser, cache, found = denoiser_of(who.models.pipe), material.cache, []
    for step in range(6):
        batch = MicroBatch(step, range(4), range(4))
        inputs = noisy_batch(denoiser, section_with(PLAIN, seed=99), cache, batch)
        said = predict(denoiser, inputs, material.texts(inputs.text_rows))
        # The base predicts noise, so the target is the noise itself.
        a, noise = denoiser.alphas_cumprod[inputs.timesteps].view(-1, 1, 1, 1), inputs.target
        start = (inputs.noisy_latents - (1 - a).sqrt() * noise) / a.sqrt()
        found.append((said - a.sqrt() * noise + (1 - a).sqrt() * start).square().mean())
    return float(torch.stack(found).mean())


def test_velocity_is_learned(material: TrainingImages, tmp_path: Path) -> None:
    """A noise-predicting base errs on it, by hand and by the validation; training halves that."""
    start = learner()
    who = learned(material, tmp_path / "run", steps=2 * SHORT, prediction_type="v_prediction")
    assert velocity_error(who, material) < 0.5 * velocity_error(start, material)
    validated = [
        mean_error(w, material.cache, material.texts, "v_prediction") for w in (who, start)
    ]
    assert validated[0] < 0.5 * validated[1]


@pytest.mark.parametrize(
    "weighting", [{"weighting": "min-snr", "snr_gamma": 0.1}, {"weighting": "debiased"}]
)
def test_weightings_favor_the_noisy_end(
    material: TrainingImages, plain: Trainee, tmp_path: Path, weighting: Mapping[str, Any]
) -> None:
    """Against weighing all alike, high timesteps gain on low ones."""
    found = errors(learned(material, tmp_path / "run", section_with(PLAIN, **weighting)), material)
    alike = errors(plain, material)
    gained = {timestep: found[timestep] / alike[timestep] for timestep in found}
    assert gained[700] * gained[900] < 0.95 * gained[100] * gained[300]


def test_timesteps_that_are_trained_are_those_that_improve(
    material: TrainingImages, tmp_path: Path
) -> None:
    """Above 800 alone, or below 200 alone: each is the better one where it was trained."""
    seen: dict[str, list[int]] = {}
    found = {}
    limited: dict[str, dict[str, Any]] = {
        "late": {"min_timestep": 800},
        "early": {"max_timestep": 199},
    }
    for name, limits in limited.items():
        who = learner()
        with timesteps_seen(who) as seen[name]:
            train(who, material, tmp_path / name, steps=SHORT, batch_size=4, **limits)
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
    """Beside an image thirty times too bright the others are learned better, and that one less."""
    (bucket,) = cache.buckets
    mean = bucket.mean.clone()
    mean[cache.places[3]] *= 30
    odd = replace(cache, buckets=(replace(bucket, mean=mean),))
    shown = TrainingImages(odd, odd.text_rows, NAMES)
    square, huber = (
        learned(shown, tmp_path / loss, section_with(PLAIN, loss=loss), steps=3 * SHORT)
        for loss in ("mse", "huber")
    )
    usual, outlier = part_of(odd, range(3)), part_of(odd, [3])
    assert mean_error(huber, usual, shown.texts) < 0.9 * mean_error(square, usual, shown.texts)
    assert mean_error(huber, outlier, shown.texts) > mean_error(square, outlier, shown.texts)


# -- noise and captions ---------------------------------------------------------------------------


@torch.no_grad()
def error_under(
    who: Trainee, material: TrainingImages, section: TrainSection, coarse: bool
) -> float:
    """The mean square of what is wrong about fresh noise; ``coarse``, of its mean by channel."""
    denoiser, cache, found = denoiser_of(who.models.pipe), material.cache, []
    for step in range(6):
        batch = MicroBatch(step, range(4), range(4))
        inputs = noisy_batch(denoiser, section_with(section, seed=99), cache, batch)
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
def test_noise_is_learned_as_it_was_trained(
    material: TrainingImages,
    plain: Trainee,
    tmp_path: Path,
    setting: Mapping[str, float],
    coarse: bool,
) -> None:
    """Offsets and coarse noise in what a channel is on the whole; a perturbed input all over."""
    section = section_with(PLAIN, **setting)
    who = learned(material, tmp_path / "run", section)
    found, before = (error_under(w, material, section, coarse) for w in (who, plain))
    assert found < 0.95 * before


def test_full_caption_dropout_trains_on_the_empty_caption_alone(
    material: TrainingImages, tmp_path: Path
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
        train(who, shown, tmp_path / name, steps=3, batch_size=2, caption_dropout=share)
        adapters.append(values(who.parameters))
    dropped, never, captioned = adapters
    assert all(torch.equal(dropped[name], never[name]) for name in dropped)
    assert norm(dropped[name] - captioned[name] for name in dropped) > 1e-3

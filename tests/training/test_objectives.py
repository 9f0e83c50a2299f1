"""Weights by noise level, losses and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from styletune.recipe.training_sections import TrainSection
from styletune.training.noise import add_noise, velocity, zero_terminal_snr
from styletune.training.objectives import sample_losses, timestep_weights

SHAPE = (4, 8, 8)
SQUARES = TrainSection(loss="mse")


def weighted(weighting: Any) -> TrainSection:
    return TrainSection(weighting=weighting, snr_gamma=5.0)


def schedule() -> tuple[torch.Tensor, torch.Tensor]:
    """(ᾱ, SNR) of SDXL's schedule, the SNR by diffusers."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return scheduler.alphas_cumprod, compute_snr(scheduler, torch.arange(1000))


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_min_snr_matches_the_library() -> None:
    """The weights are min(SNR, gamma) over SNR or SNR + 1 with the library's SNR."""
    a, snr = schedule()
    clamped = torch.minimum(snr, torch.full_like(snr, 5.0))
    noise = timestep_weights(a, weighted("min-snr"), "epsilon")
    speed = timestep_weights(a, weighted("min-snr"), "v_prediction")
    assert torch.allclose(noise, clamped / snr, rtol=1e-4)
    assert torch.allclose(speed, clamped / (snr + 1), rtol=1e-4)


def test_min_snr_weighs_the_same_image_error_alike() -> None:
    """Noise and velocity of one estimate of x_0 get the same weighted loss."""
    a, _ = schedule()
    a = a[[20, 300, 600, 950]].double()
    latents, noise, guess = (randn(i, 4, *SHAPE).double() for i in range(3))
    noisy = add_noise(latents, noise, a)
    wide = a.view(-1, 1, 1, 1)
    noise_pred = (noisy - wide.sqrt() * guess) / (1 - wide).sqrt()
    train = weighted("min-snr")
    by_noise = sample_losses(noise_pred, noise, timestep_weights(a, train, "epsilon"), train)
    by_speed = sample_losses(
        velocity(guess, noise_pred, a),
        velocity(latents, noise, a),
        timestep_weights(a, train, "v_prediction"),
        train,
    )
    assert torch.allclose(by_noise, by_speed, rtol=1e-3)


def test_debiased_weights_follow_the_paper_and_stay_bounded() -> None:
    """1/sqrt(SNR) for noise, 1/(SNR + 1) for velocity, with the SNR held at 1000."""
    a, snr = schedule()
    held = snr.clamp(max=1000)
    noise = timestep_weights(a, weighted("debiased"), "epsilon")
    speed = timestep_weights(a, weighted("debiased"), "v_prediction")
    assert snr.max() > 1000
    assert torch.allclose(noise, held**-0.5, rtol=1e-4)
    assert torch.allclose(speed, 1 / (held + 1), rtol=1e-4)
    assert noise[0].item() == pytest.approx(1000**-0.5, rel=1e-5)


def test_debiased_velocity_is_the_error_of_the_image() -> None:
    """Weighted by 1/(SNR + 1), an error of v is the error of x_0."""
    a, _ = schedule()
    a = a[[100, 500, 900]].double()
    latents, noise, guess = (randn(i, 3, *SHAPE).double() for i in range(3))
    noisy = add_noise(latents, noise, a)
    wide = a.view(-1, 1, 1, 1)
    speed = (wide.sqrt() * noisy - guess) / (1 - wide).sqrt()
    weights = timestep_weights(a, weighted("debiased"), "v_prediction")
    ours = sample_losses(speed, velocity(latents, noise, a), weights, SQUARES)
    assert torch.allclose(ours.double(), (guess - latents).square().mean((1, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("weighting", ["none", "min-snr", "debiased"])
def test_weights_are_finite_at_pure_noise(weighting: str) -> None:
    """With velocity prediction the zero-SNR step has a finite weight."""
    a, _ = schedule()
    weights = timestep_weights(zero_terminal_snr(a), weighted(weighting), "v_prediction")
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights[-1].item() == {"none": 1.0, "min-snr": 0.0, "debiased": 1.0}[weighting]


def test_min_snr_of_noise_is_one_at_pure_noise() -> None:
    """The limit of the weight, rather than 0/0."""
    assert timestep_weights(torch.zeros(1), weighted("min-snr"), "epsilon").item() == 1.0


@pytest.mark.parametrize(
    ("weighting", "prediction"), [("p2", "epsilon"), ("none", "sample"), ("min_snr", "epsilon")]
)
def test_unknown_names_are_refused(weighting: str, prediction: str) -> None:
    """A misspelled choice is an error of the recipe with the choices, not a default."""
    with pytest.raises(ValidationError, match=r"'none', 'min-snr'|'auto', 'epsilon'"):
        TrainSection.model_validate({"weighting": weighting, "prediction_type": prediction})
    with pytest.raises(ValidationError, match="'mse' or 'huber'"):
        TrainSection.model_validate({"loss": "l3"})


def test_loss_is_a_weighted_mean_in_float32() -> None:
    """A zero weight takes a sample out; half precision goes in, float32 comes out."""
    noise_pred = torch.ones(2, *SHAPE, dtype=torch.bfloat16)
    target = torch.zeros(2, *SHAPE)
    target[1] = 100
    weights = torch.tensor([1.0, 0.0])
    loss = sample_losses(noise_pred, target, weights, SQUARES).mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5)
    losses = sample_losses(noise_pred, target, weights, SQUARES)
    assert torch.equal(losses, torch.tensor([1.0, 0.0]))


def test_mse_and_huber_match_torch() -> None:
    """The losses are torch's, huber twice its; their gradients too."""
    functional = torch.nn.functional
    target = randn(1, 3, *SHAPE)
    oracles: dict[str, Callable[[Tensor], Tensor]] = {
        "mse": lambda p: functional.mse_loss(p, target),
        "huber": lambda p: 2 * functional.huber_loss(p, target, delta=0.7),
    }
    for loss, oracle in oracles.items():
        ours, theirs = (randn(0, 3, *SHAPE).requires_grad_() for _ in range(2))
        train = TrainSection.model_validate({"loss": loss, "huber_delta": 0.7})
        mine = sample_losses(ours, target, torch.ones(3), train).mean()
        wanted = oracle(theirs)
        assert mine.item() == pytest.approx(wanted.item(), rel=1e-5)
        mine.backward()
        wanted.backward()
        assert torch.allclose(gradient(ours), gradient(theirs), atol=1e-7)


def test_huber_cares_less_about_outliers() -> None:
    """Ten times the error is a hundred times the square and about ten times huber's loss."""
    target, weights = torch.zeros(1, *SHAPE), torch.ones(1)
    near, far = torch.ones(1, *SHAPE), torch.full((1, *SHAPE), 10.0)

    huber = TrainSection(loss="huber")

    def ratio(train: TrainSection) -> float:
        losses = [sample_losses(e, target, weights, train).item() for e in (near, far)]
        return losses[1] / losses[0]

    assert ratio(SQUARES) == pytest.approx(100)
    assert ratio(huber) == pytest.approx((20 - 0.1) / (2 - 0.1), rel=1e-5)
    small = torch.full((1, *SHAPE), 0.05)
    losses = sample_losses(small, target, weights, huber)
    assert torch.allclose(losses, sample_losses(small, target, weights, SQUARES))


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_masked_pixels_have_no_gradient(loss: str) -> None:
    """Outside the mask the gradient is exactly 0, inside it is not."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 1:7] = 1
    noise_pred = randn(0, 1, *SHAPE).requires_grad_()
    target = randn(1, 1, *SHAPE)
    train = TrainSection.model_validate({"loss": loss})
    sample_losses(noise_pred, target, torch.ones(1), train, mask).mean().backward()
    touched = gradient(noise_pred) != 0
    assert torch.equal(touched, mask.bool().expand_as(touched))


def test_masked_loss_does_not_depend_on_the_area() -> None:
    """The mean is over the mask's weight: half, faint or full masks give the same scale."""
    noise_pred, target = torch.full((4, *SHAPE), 3.0), torch.zeros(4, *SHAPE)
    mask = torch.ones(4, 1, 8, 8)
    mask[1, :, :4] = 0
    mask[2] = 0.25
    mask[3] = 0
    mask[3, :, 0, 0] = 0.5
    losses = sample_losses(noise_pred, target, torch.ones(4), SQUARES, mask)
    assert torch.allclose(losses, torch.full((4,), 9.0))


def test_mask_weighs_pixels() -> None:
    """The loss is the mask-weighted mean; a full mask is no mask."""
    noise_pred, target = randn(0, 2, *SHAPE), randn(1, 2, *SHAPE)
    mask = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    weights = torch.tensor([1.0, 0.5])
    ours = sample_losses(noise_pred, target, weights, SQUARES, mask)
    wide = mask.expand(2, *SHAPE)
    error = (noise_pred - target).square()
    for i in range(2):
        wanted = torch.sum(error[i] * wide[i]) / wide[i].sum() * weights[i]
        assert ours[i].item() == pytest.approx(wanted.item(), rel=1e-5)
    full = sample_losses(noise_pred, target, weights, SQUARES, torch.ones(2, 1, 8, 8))
    assert torch.allclose(full, sample_losses(noise_pred, target, weights, SQUARES))


def test_an_empty_mask_gives_no_nan() -> None:
    """A sample that is masked away has loss 0 and gradient 0; its neighbor is untouched."""
    mask = torch.ones(2, 1, 8, 8)
    mask[0] = 0
    noise_pred = randn(0, 2, *SHAPE).requires_grad_()
    losses = sample_losses(noise_pred, randn(1, 2, *SHAPE), torch.ones(2), SQUARES, mask)
    losses.sum().backward()
    assert losses[0].item() == 0
    assert (gradient(noise_pred)[0] == 0).all()
    assert losses[1].item() > 0
    assert torch.isfinite(gradient(noise_pred)).all()

"""Randomness is a function of (seed, step, position) and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from styletune.recipe.training_sections import TrainSection
from styletune.training.noise import (
    NoiseSample,
    Shape,
    add_noise,
    multi_resolution_noise,
    sample_noise,
    velocity,
    zero_terminal_snr,
)

SHAPE = (4, 8, 8)
OPTIONS = [
    {},
    {"timestep_sampling": "logit-normal", "min_timestep": 100, "max_timestep": 800},
    {"noise_offset": 0.1, "pyramid_noise": 0.5, "input_perturbation": 0.1},
]


def sample(
    seed: int,
    step: int,
    positions: Sequence[int],
    shape: Shape = SHAPE,
    caption_dropout: float = 0.0,
    **keys: Any,
) -> NoiseSample:
    """By a [train] section with these keys, on a schedule of 1000 timesteps."""
    train = TrainSection(seed=seed, caption_dropout=caption_dropout, **keys)
    return sample_noise(train, step, positions, shape, 1000)


def scheduler(prediction_type: str = "epsilon"):  # type: ignore[no-untyped-def]
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )


def linear_weights(small: int, large: int) -> torch.Tensor:
    """(small, large) float64: torch's linear interpolation, each column divided by its norm."""
    identity = torch.eye(small, dtype=torch.float64)[None]
    weights = torch.nn.functional.interpolate(identity, size=large, mode="linear")[0]
    unit: torch.Tensor = weights / torch.linalg.vector_norm(weights, dim=0)
    return unit


@pytest.mark.parametrize("options", OPTIONS)
def test_two_halves_draw_what_one_whole_draws(options: dict[str, Any]) -> None:
    """A position draws the same whatever else is in the batch, with every option."""
    whole = sample(3, 11, range(4), caption_dropout=0.5, **options)
    odd = sample(3, 11, [3, 1], caption_dropout=0.5, **options)
    for field in dataclasses.fields(whole):
        expected = getattr(whole, field.name)[[3, 1]]
        assert torch.equal(getattr(odd, field.name), expected), field.name


def test_draws_differ_by_seed_step_and_position() -> None:
    """No two of them share their noise."""
    draws = [
        sample(seed, step, range(2)).noise[i] for seed in (0, 1) for step in (0, 1) for i in (0, 1)
    ]
    assert len({d.sum().item() for d in draws}) == len(draws)


def test_default_draws_are_pinned() -> None:
    """The default draw of seed 0 never changes, so an old run can be repeated."""
    draw = sample(0, 0, [0], caption_dropout=0.1)
    assert draw.timesteps.tolist() == [856]
    assert draw.noise.flatten()[:3].tolist() == pytest.approx([-1.4017470, -1.4554843, -0.3202319])
    assert draw.posterior_noise.flatten()[:2].tolist() == pytest.approx([-0.4513156, 0.4847006])


def test_draws_have_the_right_distribution() -> None:
    """Noise is standard normal, timesteps and choices uniform, dropout of the asked share."""
    draws = [sample(0, s, range(8), caption_dropout=0.25) for s in range(100)]
    noise = torch.cat([d.noise for d in draws])
    timesteps = torch.cat([d.timesteps for d in draws]).float()
    dropped = torch.cat([d.drop_caption for d in draws]).float()
    choices = torch.cat([d.caption_choice for d in draws])
    assert noise.mean().abs() < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs(timesteps.mean() - 499.5) < 35
    assert timesteps.min() < 20
    assert timesteps.max() > 980
    assert abs(dropped.mean() - 0.25) < 0.06
    picked = torch.bincount((choices * 4).long(), minlength=4)
    assert picked.shape == (4,)
    assert picked.min() > 160
    assert abs(torch.corrcoef(torch.stack([choices, timesteps.double()]))[0, 1]) < 0.1


def test_options_do_not_disturb_each_other() -> None:
    """Switching options on changes what they are about and no other draw."""
    plain = sample(1, 2, range(3), caption_dropout=0.5)
    other = sample(
        1,
        2,
        range(3),
        caption_dropout=0.5,
        timestep_sampling="logit-normal",
        input_perturbation=0.2,
    )
    for name in ("noise", "posterior_noise", "drop_caption", "caption_choice"):
        assert torch.equal(getattr(plain, name), getattr(other, name)), name
    assert not torch.equal(plain.timesteps, other.timesteps)
    assert torch.equal(plain.input_noise, plain.noise)


def test_timesteps_stay_in_their_range() -> None:
    """Both samplings fill the asked range, ends included, and never leave it."""
    for sampling in ("uniform", "logit-normal"):
        drawn = torch.cat(
            [
                sample(
                    0,
                    s,
                    range(16),
                    (1, 1, 1),
                    timestep_sampling=sampling,
                    min_timestep=498,
                    max_timestep=503,
                ).timesteps
                for s in range(40)
            ]
        )
        assert sorted(set(drawn.tolist())) == list(range(498, 504)), sampling


def test_logit_normal_matches_the_library() -> None:
    """Timesteps follow the distribution that diffusers draws for this name."""
    from diffusers.training_utils import compute_density_for_timestep_sampling
    from scipy.stats import ks_2samp

    ours = torch.cat(
        [
            sample(0, s, range(16), (1, 1, 1), timestep_sampling="logit-normal").timesteps
            for s in range(150)
        ]
    )
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 20_000, 0.0, 1.0, generator=torch.Generator().manual_seed(0)
    )
    assert ks_2samp(ours.numpy() / 1000, theirs.numpy()).pvalue > 0.01
    uniform = torch.rand(2400, generator=torch.Generator().manual_seed(1)).numpy()
    assert ks_2samp(uniform, theirs.numpy()).pvalue < 1e-6


@pytest.mark.parametrize(("first", "last"), [(0, 1000), (600, 500), (-1, 10)])
def test_timesteps_beyond_the_schedule_are_refused(first: int, last: int) -> None:
    """A range that no schedule has is an error of the recipe, not clamped."""
    with pytest.raises(ValidationError, match="timestep"):
        TrainSection(min_timestep=first, max_timestep=last)


def test_noise_offset_moves_whole_channels() -> None:
    """The offset is one number a channel, of the asked scale, in target and input alike."""
    plain = sample(0, 0, range(400))
    moved = sample(0, 0, range(400), noise_offset=0.3)
    offset = moved.noise - plain.noise
    assert torch.allclose(offset, offset[..., :1, :1].expand_as(offset), atol=1e-5)
    assert offset[..., 0, 0].std().item() == pytest.approx(0.3, rel=0.06)
    assert torch.equal(moved.noise, moved.input_noise)


def test_input_perturbation_leaves_the_target() -> None:
    """Only the input gets the extra noise, of standard deviation gamma."""
    draw = sample(0, 0, range(50), input_perturbation=0.2)
    plain = sample(0, 0, range(50))
    assert torch.equal(draw.noise, plain.noise)
    extra = draw.input_noise - draw.noise
    assert extra.std().item() == pytest.approx(0.2, rel=0.03)
    assert abs(torch.corrcoef(torch.stack([extra.flatten(), draw.noise.flatten()]))[0, 1]) < 0.03


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 9, 20), (4, 1, 7)])
def test_pyramid_noise_has_unit_variance_everywhere(shape: tuple[int, int, int]) -> None:
    """Each pixel, corners included, keeps variance 1, and latents need not be square."""
    draws = torch.stack([sample(0, s, [0], shape, pyramid_noise=0.7).noise[0] for s in range(800)])
    assert draws.shape[1:] == shape
    variance = draws.var(dim=0).mean(dim=0)
    # The mean of 4 sample variances of 800 draws has a standard deviation of 0.025.
    assert (variance - 1).abs().max() < 0.12
    assert variance.mean().item() == pytest.approx(1, abs=0.02)


def test_pyramid_noise_moves_power_to_coarse_structures() -> None:
    """Image means vary as the levels' closed form says; without the pyramid they vary by 1/n."""
    size, discount = 16, 0.5
    generator = torch.Generator().manual_seed(0)
    means = [
        multi_resolution_noise(
            torch.randn(4, size, size, generator=generator), discount, generator
        ).mean(dim=(1, 2))
        for _ in range(800)
    ]
    expected, power = 1 / size**2, 1.0
    for level in range(1, 5):
        shares = linear_weights(size >> level, size).mean(dim=1)
        expected += discount ** (2 * level) * shares.square().sum().item() ** 2
        power += discount ** (2 * level)
    variance = torch.cat(means).var().item()
    assert variance == pytest.approx(expected / power, rel=0.1)
    assert variance > 2 / size**2


def test_coarse_noise_is_enlarged_linearly() -> None:
    """Each level is torch's bilinear interpolation, up to the norm that keeps the variance 1."""
    interpolate, discount = torch.nn.functional.interpolate, 0.5
    generator = torch.Generator().manual_seed(0)
    ours = multi_resolution_noise(torch.zeros(2, 5, 12), discount, generator)
    generator.manual_seed(0)
    expected, power = torch.zeros(2, 5, 12, dtype=torch.float64), 1.0
    for level, (h, w) in enumerate(((2, 6), (1, 3), (1, 1)), 1):
        coarse = torch.randn((2, h, w), generator=generator).double()
        plain = interpolate(coarse[None], size=(5, 12), mode="bilinear")[0]
        rows, columns = (linear_weights(*sizes).sum(dim=0) for sizes in ((h, 5), (w, 12)))
        expected += discount**level * plain * rows[:, None] * columns
        power += discount ** (2 * level)
    assert torch.allclose(ours, (expected / power**0.5).float(), atol=1e-6)


def test_add_noise_matches_diffusers() -> None:
    """The forward process is the library's, to float precision."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn((6, *SHAPE), generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 1, 100, 500, 900, 999])
    ours = add_noise(latents, noise, scheduler().alphas_cumprod[timesteps])
    theirs = scheduler().add_noise(latents, noise, timesteps)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_velocity_matches_diffusers_and_inverts() -> None:
    """The target is the library's, and x_0 comes back from it and the noisy latents."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn((6, *SHAPE), generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 1, 100, 500, 900, 999])
    a = scheduler().alphas_cumprod[timesteps]
    ours = velocity(latents, noise, a)
    theirs = scheduler("v_prediction").get_velocity(latents, noise, timesteps)
    assert torch.allclose(ours, theirs, atol=1e-6)
    wide = a.view(-1, 1, 1, 1)
    back = wide.sqrt() * add_noise(latents, noise, a) - (1 - wide).sqrt() * ours
    assert torch.allclose(back, latents, atol=1e-5)


def test_zero_terminal_snr_matches_diffusers() -> None:
    """The rescaled schedule is the library's; its ends are exact, and it still descends."""
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    before = scheduler().alphas_cumprod.clone()
    ours = zero_terminal_snr(before)
    theirs = (1 - rescale_zero_terminal_snr(scheduler().betas.double())).cumprod(0)
    assert torch.allclose(ours.double(), theirs, atol=1e-6)
    assert ours[-1].item() == 0.0
    assert ours[0].item() == before[0].item()
    assert torch.equal(before, scheduler().alphas_cumprod)
    assert (ours.diff() < 0).all()
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    latents = torch.ones(1, *SHAPE)
    assert torch.equal(add_noise(latents, noise, ours[-1:]), noise)
    assert torch.equal(velocity(latents, noise, ours[-1:]), -latents)

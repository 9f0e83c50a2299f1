"""Randomness is a function of (seed, step, position) and nothing else."""

from __future__ import annotations

import pytest
import torch

from styletune.training.noise import add_noise, batch_rows, draw_batch
from styletune.training.objectives import diffusion_loss, min_snr_weights
from styletune.training.optimizer import learning_rate_at

SHAPE = (4, 8, 8)


def test_two_halves_draw_what_one_whole_draws() -> None:
    """Positions split over two processes see the noise of one process."""
    whole = draw_batch(3, 11, range(4), SHAPE, 1000, 0.5)
    first = draw_batch(3, 11, range(2), SHAPE, 1000, 0.5)
    second = draw_batch(3, 11, range(2, 4), SHAPE, 1000, 0.5)
    for name in ("timesteps", "noise", "posterior_noise", "drop_caption"):
        both = torch.cat([getattr(first, name), getattr(second, name)])
        assert torch.equal(getattr(whole, name), both)


def test_draws_differ_by_seed_step_and_position() -> None:
    """No two of them share their noise."""
    draws = [
        draw_batch(seed, step, range(2), SHAPE, 1000, 0.1).noise[i]
        for seed in (0, 1)
        for step in (0, 1)
        for i in (0, 1)
    ]
    assert len({d.sum().item() for d in draws}) == len(draws)


def test_draws_have_the_right_distribution() -> None:
    """Noise is standard normal, timesteps uniform, dropout of the asked share."""
    draws = [draw_batch(0, s, range(8), SHAPE, 1000, 0.25) for s in range(100)]
    noise = torch.cat([d.noise for d in draws])
    timesteps = torch.cat([d.timesteps for d in draws]).float()
    dropped = torch.cat([d.drop_caption for d in draws]).float()
    assert noise.mean().abs() < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs(timesteps.mean() - 499.5) < 35
    assert timesteps.min() < 20
    assert timesteps.max() > 980
    assert abs(dropped.mean() - 0.25) < 0.06


def test_every_image_comes_once_an_epoch() -> None:
    """The stream of batches is a chain of permutations, different in every epoch."""
    stream = [row for step in range(14) for row in batch_rows(5, step, 5, 7)]
    epochs = [stream[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_add_noise_matches_diffusers() -> None:
    """The forward process is the library's, to float precision."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn((6, *SHAPE), generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 1, 100, 500, 900, 999])
    ours = add_noise(latents, noise, scheduler.alphas_cumprod[timesteps])
    theirs = scheduler.add_noise(latents, noise, timesteps)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_min_snr_matches_diffusers() -> None:
    """The weights are min(SNR, gamma) / SNR with the library's SNR."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = torch.arange(1000)
    snr = compute_snr(scheduler, timesteps)
    wanted = torch.minimum(snr, torch.full_like(snr, 5.0)) / snr
    ours = min_snr_weights(scheduler.alphas_cumprod, 5.0)
    assert torch.allclose(ours, wanted, rtol=1e-4)
    assert torch.equal(min_snr_weights(scheduler.alphas_cumprod, 0), torch.ones(1000))


def test_loss_is_a_weighted_mean_in_float32() -> None:
    """A zero weight takes a sample out; half precision goes in, float32 comes out."""
    noise_pred = torch.ones(2, *SHAPE, dtype=torch.bfloat16)
    target = torch.zeros(2, *SHAPE)
    target[1] = 100
    loss = diffusion_loss(noise_pred, target, torch.tensor([1.0, 0.0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5)


def test_schedules() -> None:
    """Warm-up is linear, the cosine ends near zero, the constant stays."""

    def rates(schedule: str) -> list[float]:
        return [
            learning_rate_at(s, peak=1.0, steps=100, warmup_steps=10, schedule=schedule)
            for s in range(100)
        ]

    constant, cosine = rates("constant"), rates("cosine")
    assert constant[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(constant[10:]) == {1.0}
    assert cosine[10] == pytest.approx(1.0)
    assert cosine[55] == pytest.approx(0.5, abs=0.02)
    assert 0 < cosine[99] < 0.001

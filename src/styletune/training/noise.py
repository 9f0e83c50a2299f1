"""Randomness as a pure function of (seed, step, position), and the forward process.

Nothing here keeps a state, so a resumed run sees what the uninterrupted one would have seen,
and N processes see what one would.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """The random inputs of one batch of b samples, on the CPU.

    ``timesteps`` (b,) int64; ``noise`` and ``posterior_noise`` (b, 4, h, w) float32 standard
    normal; ``drop_caption`` (b,) bool.
    """

    timesteps: Tensor
    noise: Tensor
    posterior_noise: Tensor
    drop_caption: Tensor


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_batch(
    seed: int, step: int, positions: range, shape: tuple[int, int, int],
    num_timesteps: int, caption_dropout: float,
) -> Draw:  # fmt: skip
    """Draw for the given positions of the global batch at one step (0-based)."""
    timesteps, noises, posteriors, drops = [], [], [], []
    for position in positions:
        generator = _generator("sample", seed, step, position)
        timesteps.append(torch.randint(num_timesteps, (), generator=generator))
        drops.append(torch.rand((), generator=generator) < caption_dropout)
        noises.append(torch.randn(shape, generator=generator))
        posteriors.append(torch.randn(shape, generator=generator))
    return Draw(
        torch.stack(timesteps), torch.stack(noises), torch.stack(posteriors), torch.stack(drops)
    )


def batch_rows(seed: int, step: int, batch_size: int, num_images: int) -> list[int]:
    """Which images make up a step's batch: every image once an epoch, in a seeded order.

    The stream runs on across epochs, so no last batch is ragged and none is dropped.
    """
    rows: list[int] = []
    for k in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(k, num_images)
        order = torch.randperm(num_images, generator=_generator("order", seed, epoch))
        rows.append(int(order[place]))
    return rows


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε (arXiv 2006.11239, equation 4).

    ``latents`` and ``noise`` (b, 4, h, w); ``alphas_cumprod`` (b,), ᾱ at each sample's timestep.
    """
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise

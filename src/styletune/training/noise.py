"""Randomness as a pure function of (seed, step, position), and the forward process.

Nothing here keeps a state, so a resumed run sees what the uninterrupted one would have seen,
and N processes see what one would. Every option has its own stream: switching it on leaves the
other random numbers unchanged.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from styletune.recipe.training_sections import TrainSection

Shape = tuple[int, int, int]
Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class NoiseSample:
    """The random inputs of one batch of b samples, on the CPU.

    ``timesteps`` (b,) int64; ``noise`` (b, 4, h, w) float32, what the target is made of;
    ``input_noise`` (b, 4, h, w), what is mixed into the latents, ``noise`` itself unless the
    input is perturbed; ``posterior_noise`` (b, 4, h, w) standard normal; ``drop_caption`` (b,)
    bool; ``caption_choice`` (b,) float64 in [0, 1), from which a sample picks one of its K
    captions by ``int(choice * K)``.
    """

    timesteps: Tensor
    noise: Tensor
    input_noise: Tensor
    posterior_noise: Tensor
    drop_caption: Tensor
    caption_choice: Tensor


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sample_noise(
    train: TrainSection, step: int, positions: Sequence[int], shape: Shape, num_timesteps: int
) -> NoiseSample:
    """Sample for these positions of the global batch at one step.

    What a position gets does not depend on which other positions are asked for.

    Args:
        train: its ``seed``, ``caption_dropout``, timestep and noise keys are used.
        step: optimizer step, 0-based.
        positions: places in the global batch, accumulated batches included.
        shape: (channels, h, w) of the latents.
        num_timesteps: of the base model's noise schedule.
    """
    rows = [_sample_one(train, (train.seed, step, p), shape, num_timesteps) for p in positions]
    return NoiseSample(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _sample_one(
    train: TrainSection, place: Place, shape: Shape, num_timesteps: int
) -> tuple[Tensor, ...]:
    """The fields of ``NoiseSample`` for one (seed, step, position), without the batch axis."""
    first = train.min_timestep
    last = num_timesteps - 1 if train.max_timestep is None else train.max_timestep
    assert first <= last < num_timesteps
    generator = _generator("sample", *place)
    timestep = torch.randint(first, last + 1, (), generator=generator)
    drop_caption = torch.rand((), generator=generator) < train.caption_dropout
    noise = torch.randn(shape, generator=generator)
    posterior_noise = torch.randn(shape, generator=generator)
    if train.timestep_sampling == "logit-normal":
        timestep = _logit_normal(first, last, _generator("timestep", *place))
    if train.pyramid_noise > 0:
        pyramid = _generator("pyramid", *place)
        noise = multi_resolution_noise(noise, train.pyramid_noise, pyramid)
    if train.noise_offset > 0:
        # One value per channel; the variance becomes 1 + noise_offset².
        offset = torch.randn((shape[0], 1, 1), generator=_generator("offset", *place))
        noise = noise + train.noise_offset * offset
    input_noise = noise
    if train.input_perturbation > 0:  # γ of arXiv 2301.11706, algorithm 1
        extra = torch.randn(shape, generator=_generator("perturbation", *place))
        input_noise = noise + train.input_perturbation * extra
    choice = torch.rand((), generator=_generator("caption", *place), dtype=torch.float64)
    return timestep, noise, input_noise, posterior_noise, drop_caption, choice


def _logit_normal(first: int, last: int, generator: torch.Generator) -> Tensor:
    """A timestep in [first, last], 0-d int64: the sigmoid of a standard normal, stretched
    (arXiv 2403.03206, section 3.1).
    """
    place = torch.sigmoid(torch.randn((), generator=generator, dtype=torch.float64))
    # A normal beyond 37 rounds to 1, which would be one timestep too many.
    return (first + (place * (last - first + 1)).long()).clamp(max=last)


def multi_resolution_noise(noise: Tensor, discount: float, generator: torch.Generator) -> Tensor:
    """Noise with more of its power in coarse structures, unit variance at every pixel.

    Level i is noise of 1/2^i of the size, enlarged bilinearly and weighted by discount^i, down
    to one value per channel. The idea is Whitaker's ("Multi-Resolution Noise for Diffusion Model
    Training", 2023); there the sum is divided by its own standard deviation, here by the one
    it has by construction, so neither the pixel's place nor the sample changes the variance.

    Args:
        noise: (channels, h, w) standard normal, the finest level.
        discount: in (0, 1).
        generator: of the coarser levels.

    Returns:
        (channels, h, w) float32, Gaussian with mean 0 and variance 1.
    """
    channels, height, width = noise.shape
    total, power, level = noise.clone(), 1.0, 0
    h, w = height, width
    while h > 1 or w > 1:
        level += 1
        h, w = max(1, height >> level), max(1, width >> level)
        coarse = torch.randn((channels, h, w), generator=generator)
        total += discount**level * (_enlarge(h, height).T @ coarse @ _enlarge(w, width))
        power += discount ** (2 * level)
    return total / math.sqrt(power)


@functools.cache
def _enlarge(small: int, large: int) -> Tensor:
    """(small, large) weights of linear enlargement; each column has the norm 1.

    Independent unit-variance values enlarged with them keep the variance 1.
    """
    weights: Tensor = torch.nn.functional.interpolate(
        torch.eye(small, dtype=torch.float64)[None], size=large, mode="linear"
    )[0]
    unit: Tensor = weights / torch.linalg.vector_norm(weights, dim=0)
    return unit.float()


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε (arXiv 2006.11239, equation 4).

    ``latents`` and ``noise`` (b, 4, h, w); ``alphas_cumprod`` (b,), ᾱ at each sample's timestep.
    """
    a = alphas_cumprod.view(-1, 1, 1, 1)
    noisy: Tensor = a.sqrt() * latents + (1 - a).sqrt() * noise
    return noisy


def velocity(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """v_t = √ᾱ_t · ε − √(1 − ᾱ_t) · x_0, the target of v-prediction (arXiv 2202.00512, appendix D).

    Shapes as in ``add_noise``.
    """
    a = alphas_cumprod.view(-1, 1, 1, 1)
    target: Tensor = a.sqrt() * noise - (1 - a).sqrt() * latents
    return target


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and stretch √ᾱ so that the last step is pure noise (arXiv 2305.08891, algorithm 1).

    Args:
        alphas_cumprod: (timesteps,) float32 in (0, 1), descending.

    Returns:
        (timesteps,) float32; the last exactly 0, the first unchanged.
    """
    root = alphas_cumprod.double().sqrt()
    scaled = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    # In double precision: rounded back, the first value is the one it was.
    return scaled.square().to(alphas_cumprod.dtype)

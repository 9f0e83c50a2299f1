"""One micro-batch: cached latents -> noise -> UNet -> a loss for each sample.

Shapes: b batch, h/w latent height and width, t tokens (77), d cross-attention width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from styletune.models.conditioning import Conditioning
from styletune.models.family import Family
from styletune.models.latents import sample_latents
from styletune.training.cache import Cache
from styletune.training.noise import Draw, Shape, add_noise, draw_batch, velocity
from styletune.training.objectives import sample_losses, timestep_weights

Texts = Callable[[Tensor], Conditioning]


@dataclass(frozen=True, slots=True)
class Objective:
    """What is predicted and how an error counts; the recipe explains each."""

    prediction_type: str
    weighting: str
    snr_gamma: float
    loss: str
    huber_delta: float


@dataclass(frozen=True, slots=True)
class NoiseSettings:
    """What ``draw_batch`` draws, as the recipe's [train] says it."""

    caption_dropout: float
    timestep_sampling: str = "uniform"
    min_timestep: int = 0
    max_timestep: int | None = None
    noise_offset: float = 0.0
    pyramid_noise: float = 0.0
    input_perturbation: float = 0.0


@dataclass(frozen=True, slots=True)
class Denoiser:
    """The UNet and what belongs to its noise process.

    ``alphas_cumprod`` (timesteps,) float32 on the device; ``dtype`` of the UNet's arithmetic.
    """

    unet: nn.Module
    dtype: torch.dtype
    alphas_cumprod: Tensor
    scaling_factor: float
    objective: Objective


@dataclass(frozen=True, slots=True)
class Inputs:
    """A noised micro-batch on the device; ``mask`` (b, 1, h, w) or None, weights in [0, 1].

    ``sizes`` are the UNet's added conditions on the images' sizes, each (b, k) float32.
    """

    noisy_latents: Tensor
    target: Tensor
    timesteps: Tensor
    weights: Tensor
    sizes: Mapping[str, Tensor]
    text_rows: Tensor
    mask: Tensor | None


def cached_texts(cache: Cache) -> Texts:
    """Captions as they were encoded once, by row."""
    return cache.text_rows


def live_texts(
    family: Family, encoders: Sequence[nn.Module], ids: Sequence[Tensor], empty_is_zero: bool
) -> Texts:
    """Captions encoded anew each time, with gradients.

    ``ids`` (c + 1, 77) int64 of each encoder's tokenizer, on its device, the empty caption last.
    """
    empty_row = ids[0].shape[0] - 1

    def encode(rows: Tensor) -> Conditioning:
        encoded = family.encode_ids(encoders, [i[rows] for i in ids])
        if not empty_is_zero:
            return encoded
        keep = (rows != empty_row).to(ids[0].device, encoded.embeds.dtype)
        return encoded.map(lambda t: t * keep.reshape(-1, *[1] * (t.ndim - 1)))

    return encode


def draw(
    noise: NoiseSettings,
    denoiser: Denoiser,
    seed: int,
    step: int,
    positions: Sequence[int],
    shape: Shape,
) -> Draw:
    """``draw_batch`` by the recipe's settings."""
    return draw_batch(
        seed,
        step,
        positions,
        shape,
        len(denoiser.alphas_cumprod),
        noise.caption_dropout,
        timestep_sampling=noise.timestep_sampling,
        min_timestep=noise.min_timestep,
        max_timestep=noise.max_timestep,
        noise_offset=noise.noise_offset,
        pyramid_noise=noise.pyramid_noise,
        input_perturbation=noise.input_perturbation,
    )


def noised_inputs(denoiser: Denoiser, cache: Cache, entries: Sequence[int], drawn: Draw) -> Inputs:
    """Sample the posterior and add noise for the cache's ``entries``, all of one bucket."""
    device = denoiser.alphas_cumprod.device
    mean, logvar, mask = cache.latents(entries)
    latents = sample_latents(
        mean, logvar, drawn.posterior_noise.to(device), denoiser.scaling_factor
    )
    noise, timesteps = drawn.noise.to(device), drawn.timesteps.to(device)
    a = denoiser.alphas_cumprod[timesteps]
    is_velocity = denoiser.objective.prediction_type == "v_prediction"
    choice = (drawn.caption_choice * cache.caption_rows.shape[1]).long()
    captions = cache.caption_rows[list(entries), choice]
    return Inputs(
        noisy_latents=add_noise(latents, drawn.input_noise.to(device), a),
        target=velocity(latents, noise, a) if is_velocity else noise,
        timesteps=timesteps,
        weights=timestep_weights(
            a,
            weighting=denoiser.objective.weighting,
            snr_gamma=denoiser.objective.snr_gamma,
            prediction_type=denoiser.objective.prediction_type,
        ),
        sizes={name: values[list(entries)] for name, values in cache.sizes.items()},
        text_rows=torch.where(drawn.drop_caption, len(cache.captions), captions),
        mask=mask,
    )


def predict(denoiser: Denoiser, inputs: Inputs, text: Conditioning) -> Tensor:
    """The UNet's output (b, 4, h, w), in its dtype."""
    dtype = denoiser.dtype
    output: Tensor = denoiser.unet(
        inputs.noisy_latents.to(dtype),
        inputs.timesteps,
        encoder_hidden_states=text.embeds.to(dtype),
        added_cond_kwargs={
            **{name: value.to(dtype) for name, value in text.added.items()},
            # Not in the UNet's dtype: bf16 has no 3001. Its embedding layer casts what it makes.
            **inputs.sizes,
        },
    ).sample
    return output


def losses(denoiser: Denoiser, inputs: Inputs, text: Conditioning) -> Tensor:
    """The objective of each sample, (b,) float32."""
    return sample_losses(
        predict(denoiser, inputs, text),
        inputs.target,
        inputs.weights,
        loss=denoiser.objective.loss,
        huber_delta=denoiser.objective.huber_delta,
        mask=inputs.mask,
    )


def prior_losses(
    denoiser: Denoiser,
    inputs: Inputs,
    text: Conditioning,
    adapter_off: Callable[[], contextlib.AbstractContextManager[None]],
    base_text: Conditioning,
) -> Tensor:
    """How far the adapted model left the base model's own prediction for the class, (b,) float32.

    ``text`` is the class prompt as the adapted text encoders see it, ``base_text`` as the base's.
    """
    with torch.no_grad(), adapter_off():
        target = predict(denoiser, inputs, base_text).float()
    return sample_losses(
        predict(denoiser, inputs, text),
        target,
        inputs.weights,
        loss=denoiser.objective.loss,
        huber_delta=denoiser.objective.huber_delta,
        mask=None,
    )

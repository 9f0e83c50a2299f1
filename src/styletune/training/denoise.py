"""One micro-batch, from cache rows to losses.

    x_0   = (μ + σ · posterior noise) · scaling factor
    x_t   = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε                        arXiv 2006.11239, equation 4
    y     = ε, or √ᾱ_t · ε − √(1 − ᾱ_t) · x_0 for velocity     arXiv 2202.00512, appendix D
    loss  = w(ᾱ_t) · mean over the mask of ℓ(UNet(x_t, t, text, sizes) − y)

Shapes: b batch, h/w latent height and width, t tokens (77), d cross-attention width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from styletune.models.family import Conditioning
from styletune.models.latents import sample_latents
from styletune.recipe.training_sections import PredictionType, TrainSection
from styletune.training.batches import MicroBatch
from styletune.training.images import Cache, Prior, TrainingImages
from styletune.training.noise import NoiseSample, add_noise, sample_noise, velocity
from styletune.training.objectives import sample_losses, timestep_weights

# Class samples take their noise from positions that no image of the brand reaches.
CLASS_POSITION = 1 << 24


@dataclass(frozen=True, slots=True)
class Denoiser:
    """The UNet and its noise process.

    ``dtype`` is that of the UNet's arithmetic; ``alphas_cumprod`` (timesteps,) float32 in [0, 1)
    on the device; ``prediction_type`` what the UNet's output means.
    """

    unet: nn.Module
    dtype: torch.dtype
    alphas_cumprod: Tensor
    scaling_factor: float
    prediction_type: PredictionType


@dataclass(frozen=True, slots=True)
class NoisyBatch:
    """What the UNet sees and what it should predict, on the device.

    ``noisy_latents`` and ``target`` (b, 4, h, w) float32; ``timesteps`` (b,) int64; ``weights``
    (b,) float32; ``sizes`` are the UNet's added conditions on the images' sizes, each (b, k)
    float32; ``text_rows`` (b,) int64, on the CPU; ``mask`` (b, 1, h, w) float32 in [0, 1], or None.
    """

    noisy_latents: Tensor
    target: Tensor
    timesteps: Tensor
    weights: Tensor
    sizes: Mapping[str, Tensor]
    text_rows: Tensor
    mask: Tensor | None


def image_losses(
    denoiser: Denoiser, train: TrainSection, images: TrainingImages, batch: MicroBatch
) -> Tensor:
    """The loss of each image, (b,) float32, times the image's own weight."""
    noisy = noisy_batch(denoiser, train, images.cache, batch)
    losses = denoising_losses(denoiser, train, noisy, images.texts(noisy.text_rows))
    if any(weight != 1 for weight in images.weights):
        losses = losses * losses.new_tensor([images.weights[entry] for entry in batch.entries])
    return losses


def class_losses(
    denoiser: Denoiser,
    train: TrainSection,
    images: TrainingImages,
    prior: Prior,
    batch: MicroBatch,
) -> Tensor:
    """The unweighted loss of as many class samples as the batch has images, (b,) float32."""
    class_batch = replace(batch, positions=[CLASS_POSITION + p for p in batch.positions])
    if prior.images is None:
        noisy = noisy_batch(denoiser, train, images.cache, class_batch)
        return prior_losses(denoiser, train, noisy, prior)
    count = prior.images.cache.num_entries
    # Positions are unique within a step, so a step has different class images.
    entries = [(batch.step * 10007 + p) % count for p in batch.positions]
    return image_losses(denoiser, train, prior.images, replace(class_batch, entries=entries))


def noisy_batch(
    denoiser: Denoiser, train: TrainSection, cache: Cache, batch: MicroBatch
) -> NoisyBatch:
    """Sample the noise of the batch's positions and add it to its entries."""
    shape = cache.latent_shape(cache.bucket_of[batch.entries[0]])
    timesteps = len(denoiser.alphas_cumprod)
    noise = sample_noise(train, batch.step, batch.positions, shape, timesteps)
    return with_noise(denoiser, train, cache, batch.entries, noise)


def with_noise(
    denoiser: Denoiser,
    train: TrainSection,
    cache: Cache,
    entries: Sequence[int],
    sample: NoiseSample,
) -> NoisyBatch:
    """Sample the posterior of ``entries``, all of one bucket, and add the noise."""
    device = denoiser.alphas_cumprod.device
    mean, logvar, mask = cache.latents(entries)
    posterior_noise = sample.posterior_noise.to(device)
    latents = sample_latents(mean, logvar, posterior_noise, denoiser.scaling_factor)  # x_0
    noise, timesteps = sample.noise.to(device), sample.timesteps.to(device)  # ε, t
    a = denoiser.alphas_cumprod[timesteps]  # ᾱ_t
    is_velocity = denoiser.prediction_type == "v_prediction"
    variant = (sample.caption_choice * cache.caption_rows.shape[1]).long()
    captions = cache.caption_rows[list(entries), variant]
    return NoisyBatch(
        noisy_latents=add_noise(latents, sample.input_noise.to(device), a),
        target=velocity(latents, noise, a) if is_velocity else noise,
        timesteps=timesteps,
        weights=timestep_weights(a, train, denoiser.prediction_type),
        sizes={name: values[list(entries)] for name, values in cache.sizes.items()},
        text_rows=torch.where(sample.drop_caption, len(cache.captions), captions),
        mask=mask,
    )


def denoising_losses(
    denoiser: Denoiser, train: TrainSection, noisy: NoisyBatch, text: Conditioning
) -> Tensor:
    """The loss of each sample, (b,) float32."""
    prediction = predict(denoiser, noisy, text)
    return sample_losses(prediction, noisy.target, noisy.weights, train, noisy.mask)


def prior_losses(
    denoiser: Denoiser, train: TrainSection, noisy: NoisyBatch, prior: Prior
) -> Tensor:
    """How far the adapted model left the base's prediction for the class, (b,) float32."""
    rows = torch.zeros(len(noisy.timesteps), dtype=torch.long)
    with torch.no_grad(), prior.adapter_off():
        target = predict(denoiser, noisy, prior.base_text(rows)).float()
    prediction = predict(denoiser, noisy, prior.text(rows))
    return sample_losses(prediction, target, noisy.weights, train)


def predict(denoiser: Denoiser, noisy: NoisyBatch, text: Conditioning) -> Tensor:
    """The UNet's output (b, 4, h, w), in its dtype."""
    dtype = denoiser.dtype
    output: Tensor = denoiser.unet(
        noisy.noisy_latents.to(dtype),
        noisy.timesteps,
        encoder_hidden_states=text.embeds.to(dtype),
        added_cond_kwargs={
            **{name: value.to(dtype) for name, value in text.added.items()},
            # Not in the UNet's dtype: bf16 has no 3001. Its embedding layer casts what it makes.
            **noisy.sizes,
        },
    ).sample
    return output

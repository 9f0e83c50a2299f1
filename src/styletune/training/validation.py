"""The loss on held-out images, with the same noise every time it is measured.

One timestep says little about a style, so several are averaged, and each is logged.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from styletune.training.cache import Cache
from styletune.training.denoise import (
    Denoiser,
    NoiseSettings,
    Texts,
    draw,
    losses,
    noised_inputs,
)

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)
VALIDATION_SEED = 20_231
PLAIN_NOISE = NoiseSettings(caption_dropout=0.0)


@torch.no_grad()
def validation_losses(
    denoiser: Denoiser, cache: Cache, texts: Texts, batch_size: int
) -> dict[int, float]:
    """Mean unweighted squared error at each timestep over all held-out images.

    With a step's ``batch_size`` it needs less memory than the step. The noise is a function of
    image and timestep, so two calls differ only by the weights.
    """
    plain = replace(denoiser, objective=replace(denoiser.objective, weighting="none", loss="mse"))
    found = {}
    for timestep in VALIDATION_TIMESTEPS:
        noise = replace(PLAIN_NOISE, min_timestep=timestep, max_timestep=timestep)
        total = 0.0
        for bucket in sorted(set(cache.bucket_of)):
            members = [i for i, b in enumerate(cache.bucket_of) if b == bucket]
            for start in range(0, len(members), batch_size):
                entries = members[start : start + batch_size]
                drawn = draw(
                    noise, plain, VALIDATION_SEED, timestep, entries, cache.latent_shape(bucket)
                )
                inputs = noised_inputs(plain, cache, entries, drawn)
                total += float(losses(plain, inputs, texts(inputs.text_rows)).sum())
        found[timestep] = total / len(cache.bucket_of)
    return found

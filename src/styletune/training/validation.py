"""The loss on held-out images, with the same noise every time it is measured.

One timestep says little about a style, so several are averaged, and each is logged.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from styletune.recipe.training_sections import TrainSection
from styletune.training.batches import MicroBatch
from styletune.training.denoise import Denoiser, image_losses
from styletune.training.images import TrainingImages

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)
VALIDATION_SEED = 20_231
PLAIN = TrainSection(seed=VALIDATION_SEED, caption_dropout=0.0, weighting="none", loss="mse")


@torch.no_grad()
def validation_losses(
    denoiser: Denoiser, images: TrainingImages, batch_size: int
) -> dict[int, float]:
    """Mean unweighted squared error at each timestep over all held-out images.

    With a step's ``batch_size`` it needs less memory than the step. The noise is a function of
    image and timestep, so two calls differ only by the weights.
    """
    cache = images.cache
    unweighted = replace(images, weights=())
    losses = {}
    for timestep in VALIDATION_TIMESTEPS:
        fixed = PLAIN.model_copy(update={"min_timestep": timestep, "max_timestep": timestep})
        total = 0.0
        for bucket in sorted(set(cache.bucket_of)):
            members = [i for i, b in enumerate(cache.bucket_of) if b == bucket]
            for start in range(0, len(members), batch_size):
                entries = members[start : start + batch_size]
                batch = MicroBatch(timestep, entries, positions=entries)
                total += float(image_losses(denoiser, fixed, unweighted, batch).sum())
        losses[timestep] = total / len(cache.bucket_of)
    return losses

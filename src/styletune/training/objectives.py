"""What is minimized.

Between errors of one network output: ‖ε − ε̂‖² = SNR · ‖x_0 − x̂_0‖² and
‖v − v̂‖² = (SNR + 1) · ‖x_0 − x̂_0‖², with SNR = ᾱ / (1 − ᾱ).
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from styletune.recipe.training_sections import PredictionType, TrainSection

# Where the debiased weight stops falling; the reference trainers' bound on the SNR.
MAX_DEBIASED_SNR = 1000.0


def timestep_weights(
    alphas_cumprod: Tensor, train: TrainSection, prediction_type: PredictionType
) -> Tensor:
    """The weight of each sample's loss by its noise level.

    Args:
        alphas_cumprod: (b,), ᾱ at each sample's timestep, in [0, 1); above 0 for "debiased"
            noise prediction.
        train: its ``weighting`` and ``snr_gamma`` are used.
        prediction_type: what the UNet predicts.

    Returns:
        (b,), finite, ≥ 0.
    """
    match train.weighting:
        case "none":
            return torch.ones_like(alphas_cumprod)
        case "min-snr":
            return min_snr_weights(alphas_cumprod, train.snr_gamma, prediction_type)
        case "debiased":
            return debiased_weights(alphas_cumprod, prediction_type)
        case _:
            assert_never(train.weighting)


def min_snr_weights(
    alphas_cumprod: Tensor, snr_gamma: float, prediction_type: PredictionType
) -> Tensor:
    """Min-SNR weights (arXiv 2303.09556, section 3.4).

    min(SNR, γ) / SNR for noise, min(SNR, γ) / (SNR + 1) for velocity. At ᾱ = 0 the first is 1;
    the second is 0: pure noise is not trained.

    Args:
        alphas_cumprod: (b,), ᾱ at each sample's timestep, in [0, 1).
        snr_gamma: γ, above 0.
        prediction_type: what the UNet predicts.

    Returns:
        (b,) in [0, 1] for noise, in [0, γ / (γ + 1)] for velocity.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=snr_gamma) / (snr + 1)
    return torch.where(snr < snr_gamma, torch.ones_like(snr), snr_gamma / snr)


def debiased_weights(alphas_cumprod: Tensor, prediction_type: PredictionType) -> Tensor:
    """Debiased estimation: 1 / √SNR for noise (arXiv 2310.08442, section 3).

    For velocity 1 / (SNR + 1), which is what trainers use under that name (sd-scripts); it is
    the plain error of x_0. In both the SNR counts as at most 1000, as in those trainers.

    Args:
        alphas_cumprod: (b,), ᾱ at each sample's timestep; in (0, 1) for noise, whose weight
            has no limit at ᾱ = 0; in [0, 1) for velocity, whose weight is 1 there.
        prediction_type: what the UNet predicts.

    Returns:
        (b,), at least 1/√1000 for noise and in [1/1001, 1] for velocity.
    """
    snr = (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=MAX_DEBIASED_SNR)
    return 1 / (snr + 1) if prediction_type == "v_prediction" else snr.rsqrt()


def sample_losses(
    noise_pred: Tensor,
    target: Tensor,
    weights: Tensor,
    train: TrainSection,
    mask: Tensor | None = None,
) -> Tensor:
    """The weighted loss of each sample, in float32.

    "huber" is twice Huber's loss: e² up to |e| = δ, then δ (2|e| − δ), so that small errors
    weigh what they weigh in "mse". With a mask, the mean is taken over the mask's weight:
    a pixel with mask 0 has no gradient, and the scale does not depend on the area.

    Args:
        noise_pred: (b, c, h, w), the UNet's output.
        target: (b, c, h, w), noise or velocity.
        weights: (b,), from ``timestep_weights``.
        train: its ``loss`` and ``huber_delta`` are used.
        mask: (b, 1, h, w) in [0, 1], or None. A sample whose mask is all 0 has the loss 0.

    Returns:
        (b,) float32.
    """
    error = noise_pred.float() - target.float()
    match train.loss:
        case "mse":
            values = error.square()
        case "huber":
            size, delta = error.abs(), train.huber_delta
            values = torch.where(size <= delta, error.square(), delta * (2 * size - delta))
        case _:
            assert_never(train.loss)
    if mask is None:
        per_sample = values.mean(dim=(1, 2, 3))
    else:
        area = mask.float().sum(dim=(1, 2, 3)) * values.shape[1]
        # An empty mask gives 0 / tiny = 0, with gradients of 0, where 0 / 0 would give NaN.
        tiny = torch.finfo(torch.float32).tiny
        per_sample = (values * mask.float()).sum(dim=(1, 2, 3)) / area.clamp(min=tiny)
    return per_sample * weights

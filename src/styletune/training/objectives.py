"""What is minimised."""

from __future__ import annotations

import torch
from torch import Tensor


def min_snr_weights(alphas_cumprod: Tensor, snr_gamma: float) -> Tensor:
    """Min-SNR weights for noise prediction: min(SNR, γ) / SNR (arXiv 2303.09556, section 3.4).

    Args:
        alphas_cumprod: (b,), ᾱ at each sample's timestep, in (0, 1).
        snr_gamma: γ; 0 weighs all timesteps alike.

    Returns:
        (b,) in (0, 1].
    """
    if snr_gamma == 0:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=snr_gamma) / snr


def diffusion_loss(noise_pred: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean squared error, a scalar, in float32.

    ``noise_pred`` and ``target`` (b, 4, h, w); ``weights`` (b,).
    """
    per_sample = (noise_pred.float() - target.float()).square().mean(dim=(1, 2, 3))
    return (per_sample * weights).mean()

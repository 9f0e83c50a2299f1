"""Pixels <-> latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from styletune.errors import DataError


@dataclass(frozen=True, slots=True)
class LatentPosterior:
    """Mean and log-variance of q(z|x), unscaled: each (b, 4, h/8, w/8) float32."""

    mean: Tensor
    logvar: Tensor


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pixels: Tensor, names: list[str]) -> LatentPosterior:
    """Encode images into the VAE's posterior.

    Args:
        vae: float32 where possible; stock weights of SDXL overflow in float16.
        pixels: (b, 3, h, w) uint8 sRGB; h and w multiples of 8.
        names: file names, for the error.

    Raises:
        DataError: the VAE gave NaN or infinity for an image; never replaced by zeros.
    """
    scaled = pixels.to(vae.device, vae.dtype) / 127.5 - 1
    posterior = vae.encode(scaled).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    finite = (torch.isfinite(mean) & torch.isfinite(logvar)).flatten(1).all(1)
    if not bool(finite.all()):
        bad = [n for n, ok in zip(names, finite.tolist(), strict=True) if not ok]
        raise DataError(
            f"the VAE gave NaN for {', '.join(bad)}",
            fix="give base.vae a VAE that is safe in this precision, or use float32",
        )
    return LatentPosterior(mean, logvar)


def sample_latents(mean: Tensor, logvar: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """Sample the posterior and scale to what the UNet expects; all (b, 4, h/8, w/8)."""
    return (mean + torch.exp(0.5 * logvar) * noise) * scaling_factor


def latent_mask(mask: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """The weight of each latent cell: the mean of its pixels.

    Args:
        mask: (h, w) float32, 0 to 1; sides are multiples of ``factor``.
        factor: pixels per latent cell and side.

    Returns:
        (h/factor, w/factor) float32, 0 to 1.
    """
    rows, columns = (side // factor for side in mask.shape)
    assert mask.shape == (rows * factor, columns * factor), mask.shape
    # Double precision: the mean of 64 ones is exactly one.
    cells = mask.reshape(rows, factor, columns, factor).mean((1, 3), dtype=np.float64)
    shares: NDArray[np.float32] = cells.astype(np.float32)
    return shares

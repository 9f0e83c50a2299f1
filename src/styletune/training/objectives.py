"""What is minimised.

Between errors of one network output: ‖ε − ε̂‖² = SNR · ‖x_0 − x̂_0‖² and
‖v − v̂‖² = (SNR + 1) · ‖x_0 − x̂_0‖², with SNR = ᾱ / (1 − ᾱ).
"""

from __future__ import annotations

import torch
from torch import Tensor

from styletune.errors import BadInput

# Where the debiased weight stops falling; the reference trainers' bound on the SNR.
MAX_DEBIASED_SNR = 1000.0


def timestep_weights(
    alphas_cumprod: Tensor, weighting: str, prediction_type: str, snr_gamma: float
) -> Tensor:
    """The weight of each sample's loss by its noise level.

    Args:
        alphas_cumprod: (b,), ᾱ at each sample's timestep, in [0, 1); above 0 for "debiased"
            noise prediction.
        weighting: "none", "min-snr" or "debiased".
        prediction_type: "epsilon" or "v_prediction".
        snr_gamma: γ of min-SNR.

    Returns:
        (b,), finite, ≥ 0.

    Raises:
        BadInput: a name that is not one of these.
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise BadInput(
            f"prediction type {prediction_type!r} is unknown",
            where="[train] prediction_type",
            fix="choices: epsilon, v_prediction",
        )
    match weighting:
        case "none":
            return torch.ones_like(alphas_cumprod)
        case "min-snr":
            return min_snr_weights(alphas_cumprod, snr_gamma, prediction_type)
        case "debiased":
            return debiased_weights(alphas_cumprod, prediction_type)
    raise BadInput(
        f"weighting {weighting!r} is unknown",
        where="[train] weighting",
        fix="choices: none, min-snr, debiased",
    )


def min_snr_weights(
    alphas_cumprod: Tensor, snr_gamma: float, prediction_type: str = "epsilon"
) -> Tensor:
    """Min-SNR weights (arXiv 2303.09556, section 3.4).

    min(SNR, γ) / SNR for noise, min(SNR, γ) / (SNR + 1) for velocity. At ᾱ = 0 the first is 1;
    the second is 0: pure noise is not trained.

    Args:
        alphas_cumprod: (b,), ᾱ at each sample's timestep, in [0, 1).
        snr_gamma: γ; 0 weighs all timesteps alike.
        prediction_type: "epsilon" or "v_prediction".

    Returns:
        (b,) in [0, 1] for noise, in [0, γ / (γ + 1)] for velocity.
    """
    if snr_gamma == 0:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=snr_gamma) / (snr + 1)
    return torch.where(snr < snr_gamma, torch.ones_like(snr), snr_gamma / snr)


def debiased_weights(alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Debiased estimation: 1 / √SNR for noise (arXiv 2310.08442, section 3).

    For velocity 1 / (SNR + 1), which is what trainers use under that name (sd-scripts); it is
    the plain error of x_0. In both the SNR counts as at most 1000, as in those trainers.

    Args:
        alphas_cumprod: (b,), ᾱ at each sample's timestep; in (0, 1) for noise, whose weight
            has no limit at ᾱ = 0; in [0, 1) for velocity, whose weight is 1 there.
        prediction_type: "epsilon" or "v_prediction".

    Returns:
        (b,), at least 1/√1000 for noise and in [1/1001, 1] for velocity.
    """
    snr = (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=MAX_DEBIASED_SNR)
    return 1 / (snr + 1) if prediction_type == "v_prediction" else snr.rsqrt()


def sample_losses(
    noise_pred: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    loss: str = "mse",
    huber_delta: float = 0.1,
    mask: Tensor | None = None,
) -> Tensor:
    """The weighted loss of each sample, in float32.

    "huber" is twice Huber's loss: e² up to |e| = δ, then δ (2|e| − δ), so that small errors
    weigh what they weigh in "mse". With a mask, the mean is taken over the mask's weight:
    a pixel with mask 0 has no gradient, and the scale does not depend on the area.

    Args:
        noise_pred: (b, c, h, w), what the UNet said.
        target: (b, c, h, w), noise or velocity.
        weights: (b,), from ``timestep_weights``.
        loss: "mse" or "huber".
        huber_delta: δ.
        mask: (b, 1, h, w) in [0, 1], or None. A sample whose mask is all 0 has the loss 0.

    Returns:
        (b,) float32.

    Raises:
        BadInput: a loss that is neither.
    """
    error = noise_pred.float() - target.float()
    match loss:
        case "mse":
            values = error.square()
        case "huber":
            size = error.abs()
            values = torch.where(
                size <= huber_delta, error.square(), huber_delta * (2 * size - huber_delta)
            )
        case _:
            raise BadInput(
                f"loss {loss!r} is unknown", where="[train] loss", fix="choices: mse, huber"
            )
    if mask is None:
        per_sample = values.mean(dim=(1, 2, 3))
    else:
        area = mask.float().sum(dim=(1, 2, 3)) * values.shape[1]
        # An empty mask gives 0 / tiny = 0, with gradients of 0, where 0 / 0 would give NaN.
        tiny = torch.finfo(torch.float32).tiny
        per_sample = (values * mask.float()).sum(dim=(1, 2, 3)) / area.clamp(min=tiny)
    return per_sample * weights

"""The noise schedule that an adapter was trained for, on the sampling side."""

from __future__ import annotations

from typing import Any, Literal

from styletune.errors import BadInput
from styletune.recipe.training_sections import PredictionType


def resolve_prediction_type(
    requested: Literal["auto", PredictionType], base: str, zero_terminal_snr: bool
) -> PredictionType:
    """What the UNet is trained to predict: the base's own unless the recipe says otherwise.

    Raises:
        BadInput: the base predicts neither noise nor velocity; or zero-terminal SNR is requested
            with noise prediction, which would have to guess an image from pure noise.
    """
    if base not in ("epsilon", "v_prediction"):
        raise BadInput(
            f"the base predicts {base}; choices: epsilon, v_prediction", where="[base] model"
        )
    name = base if requested == "auto" else requested
    prediction: PredictionType = "v_prediction" if name == "v_prediction" else "epsilon"
    if zero_terminal_snr and prediction == "epsilon":
        raise BadInput(
            "zero_terminal_snr needs velocity prediction: at the last step there is only noise, "
            "and predicting it says nothing about the image",
            where="[train] zero_terminal_snr",
            fix='prediction_type = "v_prediction"',
        )
    return prediction


def set_sampling_schedule(pipe: Any, prediction_type: str, zero_terminal_snr: bool) -> None:
    """Make a pipeline sample with what its UNet was trained for (arXiv 2305.08891, section 3).

    Does nothing where the pipeline's scheduler is that already.
    """
    config = pipe.scheduler.config
    zero_base = bool(config.get("rescale_betas_zero_snr"))
    zero_terminal_snr = zero_terminal_snr or zero_base
    if config.prediction_type == prediction_type and zero_base == zero_terminal_snr:
        return
    changed = {"prediction_type": prediction_type, "rescale_betas_zero_snr": zero_terminal_snr}
    if zero_terminal_snr:
        changed["timestep_spacing"] = "trailing"  # else the pure-noise step is never visited
    pipe.scheduler = type(pipe.scheduler).from_config(config, **changed)

"""Copying: do images come nearer to training images than the brand's own other images do?

A fixed similarity misses copies under one encoder and invents them under another. The brand's
held-out images were never trained on, so what they reach is innocent: an output that is nearer to
its nearest training image than nearly all of them are is a suspect. The base model cannot have
copied them, so the share of suspects that it has by chance is taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput
from styletune.scoring.clip_score import unit_rows
from styletune.scoring.statistics import LEVEL, Array, Estimate

# Of 20 held-out images one may be above the threshold: 5 % of innocent outputs are expected there.
ONE_OF = 20


@dataclass(frozen=True, slots=True)
class Nearest:
    """Each image's highest cosine to a training image (n,), and that one's index (n,)."""

    similarity: Array
    index: NDArray[np.int64]


def nearest_training(features: NDArray[np.floating], training: NDArray[np.floating]) -> Nearest:
    """The nearest of (t, d) training features to each of (n, d). Raises BadInput."""
    images, trained = unit_rows(features), unit_rows(training, "training features")
    if images.shape[1] != trained.shape[1]:
        raise BadInput(f"{images.shape} and {trained.shape} features do not match")
    cosines = images @ trained.T
    index = cosines.argmax(1)
    return Nearest(cosines[np.arange(len(images)), index], index)


def copy_threshold(heldout: Nearest) -> float:
    """The k-th largest similarity of the held-out images, k one of 20 and at least 1.

    The largest alone would accuse somebody nearly always: of m held-out and n innocent images
    one of the n is the nearest of all with probability n / (m + n).
    """
    k = max(1, round(len(heldout.similarity) / ONE_OF))
    return float(np.sort(heldout.similarity)[-k])


def copy_estimate(column: Nearest, base: Nearest, threshold: float, prompts: int) -> Estimate:
    """Share of prompts with an image above the threshold, minus the base's, -1 to 1.

    A prompt counts once, whichever of its seeds is above. The interval is exact, and so wide:
    the share of prompts with a suspect in the column alone, and that in the base alone, each have
    a Clopper-Pearson interval (Biometrika 26, 1934) at half the error, and the difference is
    between their farthest ends.
    """
    mine, theirs = (
        (each.similarity.reshape(prompts, -1) > threshold).any(1) for each in (column, base)
    )
    gained, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    more, less = _exact(gained, prompts), _exact(lost, prompts)
    value = (gained - lost) / prompts
    return Estimate(value, more[0] - less[1], more[1] - less[0], len(column.similarity))


def _exact(count: int, trials: int) -> tuple[float, float]:
    """Clopper-Pearson's interval of a share at half of the error that ``LEVEL`` leaves."""
    from scipy.stats import beta

    tail = (1 - LEVEL) / 4
    low = float(beta.ppf(tail, count, trials - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, trials - count)) if count < trials else 1.0
    return low, high

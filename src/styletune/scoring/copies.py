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

# Of 50 held-out images one may be above the threshold, so few innocent images are.
ONE_OF = 50
# Of 768 bits of structure: copies differ in up to 50, different pictures of one series in at least
# 82 (``data.inspection.duplicates``); as a cosine of +1 and -1.
SAME_STRUCTURE = 1 - 2 * 50 / 768


@dataclass(frozen=True, slots=True)
class Views:
    """Two views of the same n images: an encoder's features (n, d), which see what is shown.

    ``structure`` (n, 768), +1 and -1, sees the same pixels again, also where an encoder finds all
    images of a tight brand alike.
    """

    features: NDArray[np.floating]
    structure: NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Nearest:
    """Each image's highest cosine to a training image (n,), and that one's index (n,)."""

    similarity: Array
    index: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Copies:
    """Which of n images are suspect, their nearest training image, and their cosine to it."""

    is_suspect: NDArray[np.bool_]
    nearest: Nearest


@dataclass(frozen=True, slots=True)
class Detector:
    """Training images, and how near an image may come to one of them in each view."""

    training: Views
    feature_threshold: float
    structure_threshold: float

    def __call__(self, images: Views) -> Copies:
        """Look for copies. Raises BadInput for features of another width."""
        seen = nearest_training(images.features, self.training.features)
        again = nearest_training(images.structure, self.training.structure)
        same = again.similarity > self.structure_threshold
        index = np.where(same, again.index, seen.index)
        suspect = same | (seen.similarity > self.feature_threshold)
        return Copies(suspect, Nearest(seen.similarity, index))


def copy_detector(training: Views, heldout: Views) -> Detector:
    """Thresholds from what held-out images of the brand reach. Raises BadInput."""
    if not len(training.features):
        raise BadInput("no training image to compare with: copies could not be told")
    feature = copy_threshold(nearest_training(heldout.features, training.features))
    structure = copy_threshold(nearest_training(heldout.structure, training.structure))
    return Detector(training, feature, max(structure, SAME_STRUCTURE))


def nearest_training(features: NDArray[np.floating], training: NDArray[np.floating]) -> Nearest:
    """The nearest of (t, d) training features to each of (n, d). Raises BadInput."""
    images, trained = unit_rows(features), unit_rows(training, "training features")
    if images.shape[1] != trained.shape[1]:
        raise BadInput(f"{images.shape} and {trained.shape} features do not match")
    cosines = images @ trained.T
    index = cosines.argmax(1)
    return Nearest(cosines[np.arange(len(images)), index], index)


def copy_threshold(heldout: Nearest) -> float:
    """The k-th largest similarity of the held-out images, k one of 50 and at least 1.

    Of m held-out images and one innocent image, that one is among the k nearest with probability
    k / (m + 1).
    """
    k = max(1, round(len(heldout.similarity) / ONE_OF))
    return float(np.sort(heldout.similarity)[-k])


def copy_estimate(column: Copies, base: Copies, prompts: int) -> Estimate:
    """Share of prompts with a suspect image, minus the base's, -1 to 1.

    A prompt counts once, whichever of its seeds is suspect. The interval is exact, and so wide.
    With shares of prompts that are suspect in the column alone (p) and in the base alone (q), and
    Clopper and Pearson's ends (Biometrika 26, 1934): its upper end is that of p, as q is not
    negative; its lower end that of p less the upper end of q, at half of the error each.
    """
    mine, theirs = (each.is_suspect.reshape(prompts, -1).any(1) for each in (column, base))
    gained, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    tail = (1 - LEVEL) / 2
    high = _upper(gained, prompts, tail)
    low = _lower(gained, prompts, tail / 2) - _upper(lost, prompts, tail / 2)
    return Estimate((gained - lost) / prompts, low, high, len(column.is_suspect))


def _lower(count: int, trials: int, tail: float) -> float:
    from scipy.stats import beta

    return float(beta.ppf(tail, count, trials - count + 1)) if count else 0.0


def _upper(count: int, trials: int, tail: float) -> float:
    from scipy.stats import beta

    return float(beta.ppf(1 - tail, count + 1, trials - count)) if count < trials else 1.0

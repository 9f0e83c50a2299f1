"""Copies: planted ones are found and named, innocent images are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from styletune.errors import BadInput
from styletune.scoring.copies import (
    SAME_STRUCTURE,
    Copies,
    Nearest,
    Views,
    copy_detector,
    copy_estimate,
    copy_threshold,
)
from styletune.scoring.statistics import Estimate

PROMPTS, TRAINING, HELD_OUT, WIDTH = 47, 60, 40, 24


def draw(rng: np.random.Generator, count: int, spread: float = 0.3) -> Views:
    """Images of one brand: features around its mean, structures of their own."""
    features = np.eye(WIDTH)[0] + rng.normal(0, spread, (count, WIDTH))
    return Views(features, rng.choice([-1.0, 1.0], (count, 768)))


def estimated(
    rng: np.random.Generator, copies: int, spread: float = 0.3, same_pixels: bool = False
) -> tuple[Copies, Estimate]:
    """A column that draws the first training images again: to the encoder, or to the pixel."""
    training = draw(rng, TRAINING, spread)
    detector = copy_detector(training, draw(rng, HELD_OUT, spread))
    column = draw(rng, PROMPTS, spread)
    if same_pixels:
        column.structure[:copies] = training.structure[:copies]
        column.structure[:copies, :40] *= -1  # what JPEG and noise do
    else:
        redrawn = training.features[:copies] + rng.normal(0, 0.02, (copies, WIDTH))
        column.features[:copies] = redrawn
    found = detector(column)
    return found, copy_estimate(found, detector(draw(rng, PROMPTS, spread)), PROMPTS)


@pytest.mark.parametrize("same_pixels", [False, True])
def test_planted_copies_are_found_and_named(same_pixels: bool) -> None:
    """Each planted copy's nearest training image is its source; their share is in the interval."""
    found, e = estimated(np.random.default_rng(0), copies=20, same_pixels=same_pixels)
    assert found.nearest.index[:20].tolist() == list(range(20))
    assert found.is_suspect[:20].all()
    assert found.is_suspect[20:].sum() <= 2
    assert 0.1 < e.low < 20 / PROMPTS < e.high


def test_pixels_tell_where_an_encoder_finds_all_images_alike() -> None:
    """A brand so tight that features cannot tell a copy from a neighbor."""
    rng = np.random.default_rng(2)
    found, e = estimated(rng, copies=20, spread=1e-7, same_pixels=True)
    assert found.is_suspect[:20].all()
    assert e.low > 0.1


def test_the_innocent_are_not_accused() -> None:
    """Of 500 columns of one brand's innocent images at most 1 in 20 looks like copying."""
    rng = np.random.default_rng(1)
    accused = sum(estimated(rng, copies=0)[1].low > 0 for _ in range(500))
    assert accused / 500 <= 0.05


def flagged(which: NDArray[np.bool_]) -> Copies:
    zeros = np.zeros(len(which))
    return Copies(which, Nearest(zeros, zeros.astype(np.int64)))


def test_the_bases_share_is_taken_off() -> None:
    """The base's suspects by chance are taken off, not the column's copies."""
    place = np.arange(PROMPTS)
    e = copy_estimate(flagged(place < 10), flagged(place >= PROMPTS - 4), PROMPTS)
    assert e.value == pytest.approx((10 - 4) / PROMPTS)


def test_the_ends_are_clopper_and_pearsons() -> None:
    """Scipy's exact ones: above that of the column's share, below at half the error each."""
    place = np.arange(PROMPTS)
    none, some = flagged(place < 0), flagged(place < 7)

    def exact(count: int, level: float) -> tuple[float, float]:
        interval = binomtest(count, PROMPTS).proportion_ci(level, method="exact")
        return float(interval.low), float(interval.high)

    e = copy_estimate(none, none, PROMPTS)
    expected = [0, -exact(0, 0.975)[1], exact(0, 0.95)[1]]
    assert [e.value, e.low, e.high] == pytest.approx(expected)
    e = copy_estimate(some, none, PROMPTS)
    expected = [exact(7, 0.975)[0] - exact(0, 0.975)[1], exact(7, 0.95)[1]]
    assert [e.low, e.high] == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_the_interval_covers(share: float) -> None:
    """At least 95 % of 2,000 experiments hold the true difference."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        e = copy_estimate(
            flagged(rng.random(PROMPTS) < share), flagged(rng.random(PROMPTS) < 0.02), PROMPTS
        )
        hits += e.low <= share - 0.02 <= e.high
    assert hits / 2000 >= 0.95


def test_seeds_of_one_prompt_count_once() -> None:
    """Two copies under one prompt are one prompt."""
    two, none = np.array([True, True, False, False]), np.zeros(4, bool)
    assert copy_estimate(flagged(two), flagged(none), 2).value == 0.5


def test_the_threshold_is_the_kth_largest() -> None:
    """Of 100 held-out images the second, of 4 the first."""
    many = Nearest(np.arange(100) / 100, np.zeros(100, int))
    assert copy_threshold(many) == 98 / 100
    assert copy_threshold(Nearest(np.array([0.1, 0.4, 0.2, 0.3]), np.zeros(4, int))) == 0.4


def test_different_pictures_of_one_series_are_not_the_same_structure() -> None:
    """82 of 768 bits apart is not a copy, however far apart the held-out images are."""
    rng = np.random.default_rng(4)
    training, heldout = draw(rng, TRAINING), draw(rng, HELD_OUT)
    detector = copy_detector(training, heldout)
    assert detector.structure_threshold == SAME_STRUCTURE
    other = draw(rng, TRAINING)
    other.structure[:] = training.structure
    other.structure[:, :82] *= -1
    assert detector(other).is_suspect.mean() < 0.1


def test_features_that_do_not_fit_are_refused() -> None:
    """Another encoder's, or none."""
    training = draw(np.random.default_rng(5), TRAINING)
    with pytest.raises(BadInput, match="do not match"):
        copy_detector(training, Views(np.ones((3, WIDTH + 1)), np.ones((3, 768))))
    bad = Views(training.features.copy(), training.structure)
    bad.features[1, 0] = np.nan
    with pytest.raises(BadInput, match="row 1"):
        copy_detector(bad, training)
    with pytest.raises(BadInput, match="no training image"):
        copy_detector(Views(np.ones((0, 4)), np.ones((0, 768))), training)

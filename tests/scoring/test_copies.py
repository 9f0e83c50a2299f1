"""Copies: planted ones are found and named, innocent images are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from styletune.errors import BadInput
from styletune.scoring.copies import (
    Nearest,
    copy_estimate,
    copy_threshold,
    nearest_training,
)

Array = NDArray[np.float64]
PROMPTS, TRAINING, HELD_OUT, WIDTH = 47, 60, 40, 24


def draw(rng: np.random.Generator, count: int) -> Array:
    """Images of one brand."""
    return np.asarray(np.eye(WIDTH)[0] + rng.normal(0, 0.3, (count, WIDTH)))


def estimated(rng: np.random.Generator, copies: int) -> tuple[Nearest, float, float, float]:
    """A column with planted copies of the first training images, re-drawn with little noise."""
    training, heldout = draw(rng, TRAINING), draw(rng, HELD_OUT)
    column, base = draw(rng, PROMPTS), draw(rng, PROMPTS)
    column[:copies] = training[:copies] + rng.normal(0, 0.02, (copies, WIDTH))
    near = nearest_training(column, training)
    threshold = copy_threshold(nearest_training(heldout, training))
    e = copy_estimate(near, nearest_training(base, training), threshold, PROMPTS)
    return near, e.value, e.low, e.high


def test_planted_copies_are_found_and_named() -> None:
    """Each planted copy's nearest training image is its source; their share is in the interval."""
    near, value, low, high = estimated(np.random.default_rng(0), copies=20)
    assert near.index[:20].tolist() == list(range(20))
    assert near.similarity[:20].min() > 0.99
    assert low < 20 / PROMPTS < high
    assert low > 0.1
    assert value == pytest.approx(20 / PROMPTS, abs=0.15)


def test_the_innocent_are_not_accused() -> None:
    """Of 500 columns of one brand's innocent images at most 1 in 20 looks like copying."""
    rng = np.random.default_rng(1)
    accused = sum(estimated(rng, copies=0)[2] > 0 for _ in range(500))
    assert accused / 500 <= 0.05


def test_a_few_copies_do_not_hide_among_the_bases() -> None:
    """The base's suspects by chance are taken off, not the column's copies."""
    flags = np.zeros(PROMPTS)
    column = Nearest(np.where(np.arange(PROMPTS) < 10, 0.99, 0.5), flags.astype(int))
    base = Nearest(np.where(np.arange(PROMPTS) >= PROMPTS - 4, 0.99, 0.5), flags.astype(int))
    e = copy_estimate(column, base, 0.9, PROMPTS)
    assert e.value == pytest.approx((10 - 4) / PROMPTS)


def test_the_interval_is_clopper_and_pearsons() -> None:
    """Nothing above the threshold: the ends are scipy's exact ones at half the error."""
    none = Nearest(np.zeros(PROMPTS), np.zeros(PROMPTS, int))
    some = Nearest((np.arange(PROMPTS) < 7).astype(float), np.zeros(PROMPTS, int))
    zero = binomtest(0, PROMPTS).proportion_ci(0.975, method="exact")
    seven = binomtest(7, PROMPTS).proportion_ci(0.975, method="exact")
    e = copy_estimate(none, none, 0.5, PROMPTS)
    assert [e.value, e.low, e.high] == pytest.approx([0, -zero.high, zero.high])
    e = copy_estimate(some, none, 0.5, PROMPTS)
    assert [e.low, e.high] == pytest.approx([seven.low - zero.high, seven.high - zero.low])


def test_seeds_of_one_prompt_count_once() -> None:
    """Two copies under one prompt are one prompt."""
    column = Nearest(np.array([0.9, 0.9, 0.1, 0.1]), np.zeros(4, int))
    base = Nearest(np.zeros(4), np.zeros(4, int))
    assert copy_estimate(column, base, 0.5, 2).value == 0.5


def test_the_threshold_is_the_kth_largest() -> None:
    """Of 40 held-out images the second, of 4 the first."""
    many = Nearest(np.arange(40) / 40, np.zeros(40, int))
    assert copy_threshold(many) == 38 / 40
    assert copy_threshold(Nearest(np.array([0.1, 0.4, 0.2, 0.3]), np.zeros(4, int))) == 0.4


def test_features_that_do_not_fit_are_refused() -> None:
    """Another encoder's, or none."""
    with pytest.raises(BadInput, match="do not match"):
        nearest_training(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(BadInput, match="row 1"):
        nearest_training(np.ones((3, 4)), np.array([[1.0, 0, 0, 0], [np.nan, 0, 0, 0]]))

"""Intervals against simulated truth, adjustments against hand calculation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from styletune.scoring.statistics import (
    bootstrap_weights,
    by_prompt,
    finite,
    holm,
    mean_estimate,
    paired_difference,
    paired_p_value,
    prompts_needed,
    relative_loss,
)

PROMPTS, SEEDS = 16, 3


def simulate(rng: np.random.Generator, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Base and column with prompt difficulty in common and a gain that differs by prompt."""
    prompt = rng.normal(0.3, 0.1, (PROMPTS, 1))
    effect = rng.normal(gain, 0.03, (PROMPTS, 1))
    base = prompt + rng.normal(0, 0.02, (PROMPTS, SEEDS))
    return (prompt + effect + rng.normal(0, 0.02, (PROMPTS, SEEDS))).ravel(), base.ravel()


def test_paired_interval_covers_95_percent() -> None:
    """In 4,000 experiments with 16 prompts the interval covers the truth in 93-97 %."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(4000):
        e = paired_difference(*simulate(rng, 0.05), PROMPTS)
        hits += e.low <= 0.05 <= e.high
    assert 0.93 <= hits / 4000 <= 0.97


def test_treating_seeds_as_evidence_would_not_cover() -> None:
    """Without clustering the same data cover too seldom: why seeds are averaged first."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        column, base = simulate(rng, 0.05)
        e = paired_difference(column, base, PROMPTS * SEEDS)
        hits += e.low <= 0.05 <= e.high
    assert hits / 1000 < 0.90


def test_relative_loss_covers_95_percent() -> None:
    """The linearised ratio's interval covers the true loss in 93-97 %."""
    rng = np.random.default_rng(1)
    truth = -0.05 / 0.3
    hits = 0
    for _ in range(4000):
        e = relative_loss(*simulate(rng, 0.05), PROMPTS)
        hits += e.low <= truth <= e.high
    assert 0.93 <= hits / 4000 <= 0.97


def test_relative_loss_of_a_negative_base_is_undefined() -> None:
    """A share of nothing is NaN, in JSON null."""
    e = relative_loss(np.ones(6), -np.ones(6), 3)
    assert math.isnan(e.value)
    assert finite(e.value) is None


def test_pairing_narrows_the_interval() -> None:
    """A paired difference is much narrower than the interval of one column's mean."""
    column, base = simulate(np.random.default_rng(2), 0.05)
    paired, single = paired_difference(column, base, PROMPTS), mean_estimate(column, PROMPTS)
    assert paired.high - paired.low < 0.6 * (single.high - single.low)


def test_p_value_is_scipys() -> None:
    """The paired p equals scipy's paired t-test over prompt means."""
    column, base = simulate(np.random.default_rng(3), 0.01)
    expected = stats.ttest_rel(by_prompt(column, PROMPTS), by_prompt(base, PROMPTS)).pvalue
    assert paired_p_value(column, base, PROMPTS) == pytest.approx(float(expected))


def test_p_value_without_variance() -> None:
    """Equal columns give 1; a constant shift gives 0."""
    x = np.linspace(0, 1, 6)
    assert paired_p_value(x, x, 3) == 1
    assert paired_p_value(x + 0.5, x, 3) == 0


def test_holm_by_hand() -> None:
    """Smallest times three, next times two, never decreasing, never above one."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_error() -> None:
    """Ten equal checkpoints: at least one false alarm in at most 6 % of experiments."""
    rng = np.random.default_rng(4)
    alarms = [min(holm(rng.uniform(size=10).tolist())) < 0.05 for _ in range(4000)]
    assert np.mean(alarms) < 0.06


def test_bootstrap_weights_are_counts() -> None:
    """Rows are resamples of all items, and the same seed gives the same rows."""
    w = bootstrap_weights(7, 50, seed=3)
    assert w.shape == (50, 7)
    assert (w.sum(1) == 7).all()
    np.testing.assert_array_equal(w, bootstrap_weights(7, 50, seed=3))


@pytest.mark.parametrize(
    ("deviation", "size", "count"), [(0.03, 0.01, 71), (0.03, 0.005, 283), (0.05, 0.01, 197)]
)
def test_prompts_needed_have_the_power(deviation: float, size: float, count: int) -> None:
    """As published for 80 % power, and so many prompts find the difference in 80 % of trials."""
    difference = np.array([-1.0, 1.0] * 50) * deviation / math.sqrt(100 / 99)
    assert prompts_needed(difference, size) == pytest.approx(count, abs=1)
    draws = np.random.default_rng(0).normal(size, deviation, (2000, count))
    p = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert 0.76 <= float((p < 0.05).mean()) <= 0.84

"""How sure a number is: paired, clustered by prompt, honest at 16 prompts.

Two columns are always compared on the same prompts and seeds. Seeds are averaged within
their prompt first, because images of one prompt are not independent evidence; the interval
is over prompts (Miller 2024, arXiv 2411.00640, sections 2 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from styletune.runs.summary import MetricValue

Array = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its 95 % interval and the number of images behind it; NaN where undefined."""

    value: float
    low: float
    high: float
    n: int

    def as_metric(self) -> MetricValue:
        """For a document, which has no NaN: undefined becomes None."""
        return MetricValue(
            value=finite(self.value), low=finite(self.low), high=finite(self.high), n=self.n
        )


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _t_quantile(df: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, df)) if df > 0 else math.nan


def spread_interval(value: float, standard_error: float, clusters: int, n: int) -> Estimate:
    """Interval value +- t * standard error, with clusters - 1 degrees of freedom."""
    half = _t_quantile(clusters - 1) * standard_error
    return Estimate(value, value - half, value + half, n)


def by_prompt(values: NDArray[np.floating], prompts: int) -> Array:
    """Average seeds within prompts: (prompts * seeds,) prompts-major -> (prompts,)."""
    return np.asarray(np.asarray(values, np.float64).reshape(prompts, -1).mean(1))


def mean_estimate(values: NDArray[np.floating], prompts: int) -> Estimate:
    """Mean of (prompts * seeds,) values with a t-interval over prompts (Miller, eq. 4)."""
    means = by_prompt(values, prompts)
    error = float(np.std(means, ddof=1)) / math.sqrt(prompts) if prompts > 1 else math.nan
    return spread_interval(float(means.mean()), error, prompts, n=len(values))


def paired_difference(
    column: NDArray[np.floating], base: NDArray[np.floating], prompts: int
) -> Estimate:
    """Mean of column - base on the same (prompt, seed), t-interval over prompts.

    Pairing removes what makes a prompt easy or hard for both (Miller, section 4.2).
    """
    return mean_estimate(np.asarray(column, np.float64) - np.asarray(base, np.float64), prompts)


def paired_p_value(column: NDArray[np.floating], base: NDArray[np.floating], prompts: int) -> float:
    """Two-sided p of the paired t-test over prompts; 1 if nothing differs at all."""
    from scipy.stats import t

    difference = by_prompt(np.asarray(column) - np.asarray(base), prompts)
    error = float(np.std(difference, ddof=1)) / math.sqrt(prompts)
    if error < 1e-15:
        return 1.0 if abs(float(difference.mean())) < 1e-12 else 0.0
    return float(2 * t.sf(abs(float(difference.mean())) / error, prompts - 1))


def relative_loss(
    column: NDArray[np.floating], base: NDArray[np.floating], prompts: int
) -> Estimate:
    """1 - mean(column) / mean(base) with an interval over prompts.

    The ratio of paired means is linearized (delta method; Cochran, Sampling Techniques,
    section 6.4). NaN where the base's mean is not positive: a share of it means nothing.
    """
    c, b = by_prompt(column, prompts), by_prompt(base, prompts)
    if b.mean() <= 0:
        return Estimate(math.nan, math.nan, math.nan, len(column))
    ratio = float(c.mean() / b.mean())
    error = float(np.std((c - ratio * b) / b.mean(), ddof=1)) / math.sqrt(prompts)
    return spread_interval(1 - ratio, error, prompts, n=len(column))


def bootstrap_weights(items: int, draws: int, seed: int) -> Array:
    """Multinomial resampling as counts: (draws, items), each row sums to ``items``."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1 / items), size=draws).astype(np.float64)


def jackknife_estimate(value: float, sides: Sequence[Sequence[float]], n: int) -> Estimate:
    """Interval from delete-a-group jackknives of independent samples (Shao and Tu 1995, 2.3).

    ``sides``: for each sample, the statistic with each group of it left out.
    """
    variance, groups = 0.0, math.inf
    for side in sides:
        if len(side) > 1:
            left = np.asarray(side)
            variance += (len(left) - 1) / len(left) * float(((left - left.mean()) ** 2).sum())
            groups = min(groups, len(left))
    if not math.isfinite(groups):
        return Estimate(value, math.nan, math.nan, n)
    return spread_interval(value, math.sqrt(variance), int(groups), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): adjusted p in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = running
    return adjusted

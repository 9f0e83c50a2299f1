"""How sure a number is: paired, clustered by prompt, honest at 16 prompts.

Two columns are always compared on the same prompts and seeds. Seeds are averaged within
their prompt first, because images of one prompt are not independent evidence; the interval
is over prompts (Miller 2024, arXiv 2411.00640, sections 2 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput

Array = NDArray[np.float64]
AnyFloats = NDArray[np.floating]
LEVEL = 0.95
MAX_GROUPS = 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its 95 % interval and the number of images behind it; NaN where undefined."""

    value: float
    low: float
    high: float
    n: int

    def narrowed(self, factor: float) -> Estimate:
        """The same with the interval's two sides multiplied by ``factor``."""
        low, high = (self.value + factor * (end - self.value) for end in (self.low, self.high))
        return Estimate(self.value, low, high, self.n)

    def within(self, low: float, high: float = math.inf) -> Estimate:
        """The same with the interval cut to the values that are possible."""
        return Estimate(self.value, max(low, self.low), min(high, self.high), self.n)


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


def prompts_needed(difference: NDArray[np.floating], size: float, power: float = 0.8) -> int:
    """How many prompts show a mean paired difference of ``size`` with this power, at 95 %.

    ``difference`` (prompts,): its standard deviation is what more prompts must beat. Normal
    approximation, at least 2: n = ((z(0.975) + z(power)) sd / size)^2 (Miller 2024, section 5).
    """
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + LEVEL / 2) + norm.ppf(power))
    deviation = float(np.std(np.asarray(difference, np.float64), ddof=1))
    return max(2, math.ceil((z * deviation / size) ** 2))


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


def feature_sets(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[Array, Array]:
    """Two sets of features that can be compared, (n, d) and (m, d), as float64.

    Raises:
        BadInput: fewer than two rows, widths differ, or a feature is not finite.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise BadInput(f"feature sets of shapes {a.shape} and {b.shape} cannot be compared")
    if min(len(a), len(b)) < 2:
        raise BadInput("a distance of two sets needs two images on each side")
    for name, rows in (("first", a), ("second", b)):
        bad = ~np.isfinite(rows).all(1)
        if bad.any():
            raise BadInput(f"row {int(bad.argmax())} of the {name} set is not finite")
    return a, b


def sets_estimate(
    measure: Callable[[AnyFloats, AnyFloats], float],
    x: AnyFloats,
    y: AnyFloats,
    clusters: Sequence[int],
) -> Estimate:
    """A measure of two sets, (n, d) and (m, d), with its interval from ``jackknife_estimate``.

    ``clusters`` (n,) names the prompt of each row of ``x``; prompts leave together. The
    interval shows sampling noise around a value that may be biased at this n; it does not
    contain the value of endless images.
    """
    left = left_out(x, y, clusters)
    return jackknife_estimate(measure(x, y), [[measure(*p) for p in side] for side in left], len(x))


def left_out(
    x: AnyFloats, y: NDArray[Any], clusters: Sequence[int]
) -> tuple[list[tuple[AnyFloats, NDArray[Any]]], list[tuple[AnyFloats, NDArray[Any]]]]:
    """The pairs of sets with a group of prompts left out of ``x``, and of references out of ``y``.

    At most ``MAX_GROUPS`` groups a side; none of ``y`` where it has only two rows.
    """
    prompts = np.asarray(clusters) % MAX_GROUPS
    refs = np.arange(len(y)) % min(MAX_GROUPS, len(y))
    of_x = [(x[prompts != g], y) for g in np.unique(prompts)]
    of_y = [(x, y[refs != g]) for g in np.unique(refs)] if len(y) > 2 else []
    return of_x, of_y


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

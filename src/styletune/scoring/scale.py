"""Scores that people read: 0 is the base model, 100 the brand's own held-out images.

A raw cosine or color distance means nothing by itself. Between these two ends it does: 60 is
sixty percent of the way from the base to the brand. Above 100 is nearer to the references than
they are to each other, which copying and collapse can do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from styletune.scoring.clip_score import leave_one_out_similarity, unit_rows
from styletune.scoring.diversity import variety
from styletune.scoring.palette import palette_distance
from styletune.scoring.statistics import (
    AnyFloats,
    Array,
    Estimate,
    jackknife_estimate,
    left_out,
    relative_loss,
)

HALF_SPLITS = 20


@dataclass(frozen=True, slots=True)
class Jackknifed:
    """A value, and what it is without each group of prompts and of references."""

    value: float
    prompts: Array
    references: Array


@dataclass(frozen=True, slots=True)
class Scale:
    """One measure's two ends; ``measure`` takes a column and the references, see below."""

    measure: Callable[[AnyFloats, AnyFloats], float]
    references: AnyFloats
    base: Jackknifed
    real: Jackknifed

    @property
    def points(self) -> float:
        """Points of the scale per unit of the measure; NaN where there is no scale."""
        return math.nan if self._is_closed() else 100 / (self.real.value - self.base.value)

    def _is_closed(self) -> bool:
        """Whether the two ends cannot be told apart."""
        gap = _estimate(_combined(lambda b, r: r - b, self.base, self.real), 0)
        return not gap.low * gap.high > 0

    def __call__(self, column: AnyFloats, n: int) -> Estimate:
        """100 (column - base) / (real - base), with a 95 % interval over prompts and references.

        ``column`` has one row per prompt, ``n`` is the number of its images. All three values are
        left out of together, so what a prompt or a reference does to all of them cancels.
        Undefined where base and references cannot be told apart: their gap's interval has zero.
        """
        mine = _jackknifed(self.measure, column, self.references)
        if self._is_closed():
            return Estimate(math.nan, math.nan, math.nan, n)
        return _estimate(
            _combined(lambda c, b, r: 100 * (c - b) / (r - b), mine, self.base, self.real), n
        )


def style_scale(base: AnyFloats, references: AnyFloats) -> Scale:
    """Mean cosine to the references; the far end is theirs to each other, each left out.

    ``base`` (p, d) as from ``style_column``, ``references`` (m, d).
    """
    rows = unit_rows(references)
    return _scale(
        lambda x, y: float(x.mean(0) @ y.mean(0)),
        lambda kept: float(leave_one_out_similarity(rows[kept]).mean()),
        base,
        rows,
    )


def style_column(features: AnyFloats, prompts: int) -> Array:
    """(n, d) features, prompts-major -> (p, d): the mean of each prompt's unit vectors."""
    rows = unit_rows(features)
    return np.asarray(rows.reshape(prompts, -1, rows.shape[1]).mean(1))


def palette_scale(base: NDArray[np.float32], references: NDArray[np.float32]) -> Scale:
    """Distance to the references' colors; the far end is one half of them to the other.

    ``base`` (p, 64, 281) as from ``palette_column``, ``references`` (m, 64, 281).
    """
    return _scale(palette_distance, lambda kept: half_distance(references, kept), base, references)


def palette_column(colors: NDArray[np.float32], prompts: int) -> NDArray[np.float32]:
    """(n, 64, 281) histograms, prompts-major -> (p, 64, 281): the mean of each prompt's."""
    return np.asarray(colors.reshape(prompts, -1, *colors.shape[1:]).mean(1))


def half_distance(colors: AnyFloats, kept: NDArray[np.int64] | None = None) -> float:
    """Mean palette distance of two random halves, of ``HALF_SPLITS`` splits; always the same.

    ``kept``: of these rows alone. The rest keep their places in every split, so what it changes
    is the rows that are gone, not the luck of other splits.
    """
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(HALF_SPLITS):
        order = rng.permutation(len(colors))
        if kept is not None:
            order = order[np.isin(order, kept)]
        half = len(order) // 2
        distances.append(palette_distance(colors[order[:half]], colors[order[half:]]))
    return float(np.mean(distances))


def prompt_scale(text: AnyFloats, base_text: AnyFloats) -> Estimate:
    """How much of the base's prompt adherence is left: 0 is none, 100 all; interval over prompts.

    No image of the brand was drawn for a prompt, so the ends are others here: 0 are images that
    fit their own prompt no better than the suite's other prompts.

    ``text`` and ``base_text`` (n, p): cosines of each image, prompts-major, to every prompt.
    """
    prompts = text.shape[1]
    left = relative_loss(_margin(text), _margin(base_text), prompts)
    kept = [100 * (1 - end) for end in (left.value, left.high, left.low)]
    return Estimate(kept[0], kept[1], kept[2], left.n)


def variety_scale(column: AnyFloats, references: AnyFloats, n: int) -> Estimate:
    """How varied images of different prompts are: 0 is one image for all, 100 as the references.

    ``column`` (p, d) as from ``style_column``, ``references`` (m, d), ``n`` images in the column.
    The 95 % interval is over prompts; the references are taken as they are, because few of them
    say little about how varied a brand is.
    """
    rows, full = column, variety(unit_rows(references))
    left = [variety(kept) for kept, _ in left_out(rows, references[:2], range(len(rows)))[0]]
    if full <= 0:
        return Estimate(math.nan, math.nan, math.nan, n)
    sides = [[100 * each / full for each in left]]
    return jackknife_estimate(100 * variety(rows) / full, sides, n).within(0.0)


def _margin(text: AnyFloats) -> Array:
    """(n, p) cosines -> (n,): to the own prompt, less the mean of the others."""
    n, prompts = text.shape
    own = np.repeat(np.arange(prompts), n // prompts)
    rows = np.asarray(text, np.float64)
    mine = rows[np.arange(n), own]
    return np.asarray(mine - (rows.sum(1) - mine) / (prompts - 1))


def _scale(
    measure: Callable[[AnyFloats, AnyFloats], float],
    floor: Callable[[NDArray[np.int64]], float],
    base: AnyFloats,
    references: AnyFloats,
) -> Scale:
    """``floor`` takes the indices of references and gives the far end for these alone."""
    start = _jackknifed(measure, base, references)
    every = np.arange(len(references))
    end = floor(every)
    left = [floor(kept) for _, kept in left_out(base[:1], every, [0])[1]]
    real = Jackknifed(end, np.full(len(start.prompts), end), np.asarray(left))
    return Scale(measure, references, start, real)


def _jackknifed(
    measure: Callable[[AnyFloats, AnyFloats], float], x: AnyFloats, y: AnyFloats
) -> Jackknifed:
    of_x, of_y = left_out(x, y, range(len(x)))
    return Jackknifed(
        measure(x, y),
        np.asarray([measure(*pair) for pair in of_x]),
        np.asarray([measure(*pair) for pair in of_y]),
    )


def _combined(of: Callable[..., Array | float], *parts: Jackknifed) -> Jackknifed:
    return Jackknifed(
        float(of(*(part.value for part in parts))),
        np.asarray(of(*(part.prompts for part in parts))),
        np.asarray(of(*(part.references for part in parts))),
    )


def _estimate(jackknifed: Jackknifed, n: int) -> Estimate:
    sides = [jackknifed.prompts.tolist(), jackknifed.references.tolist()]
    return jackknife_estimate(jackknifed.value, sides, n)

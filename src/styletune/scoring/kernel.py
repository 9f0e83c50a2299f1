"""Kernel distances of two sets of features, unbiased at any sample size: KID and CMMD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from styletune.scoring.clip_score import unit_rows
from styletune.scoring.statistics import (
    Array,
    Estimate,
    bootstrap_weights,
    feature_sets,
    spread_interval,
)

Kernel = Callable[[Array, Array], Array]  # (n, d), (m, d) -> (n, m)
CMMD_WIDTH = 10.0
CMMD_SCALE = 1000.0
DRAWS = 500


def polynomial_kernel(x: Array, y: Array) -> Array:
    """KID's kernel, k(x, y) = (x.y / d + 1)^3: (n, d), (m, d) -> (n, m)."""
    gram: Array = x @ y.T / x.shape[1] + 1
    return gram * gram * gram


def gaussian_kernel(x: Array, y: Array) -> Array:
    """CMMD's kernel, k(x, y) = exp(-|x - y|^2 / (2 * 10^2)): (n, d), (m, d) -> (n, m)."""
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * x @ y.T
    return np.asarray(np.exp(-squares / (2 * CMMD_WIDTH**2)))


def mmd(x: NDArray[np.floating], y: NDArray[np.floating], kernel: Kernel) -> float:
    """Squared maximum mean discrepancy, as the full unbiased U-statistic.

    Gretton et al. 2012 (JMLR 13), lemma 6. Computed once over all images, so it has no subset
    size and no subset noise.

    Args:
        x: (n, d) features; at least two rows.
        y: (m, d) features; at least two rows; m may differ from n.
        kernel: of two sets of features.

    Returns:
        float64; expectation 0 for equal distributions, so slightly negative is legal.

    Raises:
        BadInput: fewer than two rows, or widths differ.
    """
    a, b = feature_sets(x, y)
    return (
        _mean_off_diagonal(kernel(a, a))
        + _mean_off_diagonal(kernel(b, b))
        - 2 * float(kernel(a, b).mean())
    )


def kid(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """``mmd`` with the cubic kernel: KID when the features are Inception's.

    Binkowski et al. 2018 (arXiv 1801.01401), section 3.1 and eq. 4 of appendix A.
    """
    return mmd(x, y, polynomial_kernel)


def cmmd(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """1000 times ``mmd`` of unit features with a Gaussian kernel of width 10.

    Jayasumana et al. 2024 (arXiv 2401.09603), section 4.1, for CLIP ViT-L/14 at 336 px; theirs
    is the biased estimate, which for few images is larger. The width being far more than any
    distance of unit vectors, it is ten times the squared distance of the mean features.
    """
    return CMMD_SCALE * mmd(unit_rows(x), unit_rows(y), gaussian_kernel)


def _mean_off_diagonal(k: Array) -> float:
    n = len(k)
    return float((k.sum() - np.trace(k)) / (n * (n - 1)))


def mmd_draws(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    kernel: Kernel,
    prompts: int,
    draws: int,
    seed: int,
) -> Array:
    """Bootstrap of ``mmd`` over prompts and over references: (draws,).

    Rows of ``x`` are prompts-major; a prompt's images leave and return together. Two copies
    of one prompt or reference are never paired with each other: such pairs would re-create
    the diagonal that the U-statistic leaves out, and turn its zero into a large number.
    """
    a, b = feature_sets(x, y)
    per_prompt = len(a) // prompts
    blocks = kernel(a, a)
    diagonal = np.diag(blocks).reshape(prompts, per_prompt).sum(1)
    blocks = blocks.reshape(prompts, per_prompt, prompts, per_prompt).sum((1, 3))
    cross = kernel(a, b).reshape(prompts, per_prompt, len(b)).sum(1)
    w = bootstrap_weights(prompts, draws, seed)
    v = bootstrap_weights(len(b), draws, seed + 1)
    xx = _weighted_pairs(w, blocks, np.diag(blocks) - diagonal, per_prompt)
    yy = _weighted_pairs(v, kernel(b, b), np.zeros(len(b)), 1)
    xy = np.einsum("dp,pr,dr->d", w, cross, v, optimize=True) / (len(a) * len(b))
    return np.asarray(xx + yy - 2 * xy)


def _weighted_pairs(w: Array, sums: Array, within: Array, size: int) -> Array:
    """Mean kernel of the pairs in each draw: clusters p != q weigh w_p w_q, pairs within w_p."""
    square = w * w
    total = np.einsum("dp,pq,dq->d", w, sums, w, optimize=True) - square @ np.diag(sums)
    pairs = (w.sum(1) ** 2 - square.sum(1)) * size**2
    return np.asarray(
        (total + w @ within) / np.maximum(pairs + w.sum(1) * size * (size - 1), 1e-12)
    )


def kid_estimate(x: NDArray[np.floating], y: NDArray[np.floating], prompts: int) -> Estimate:
    """``kid`` with a 95 % interval; (n, d) prompts-major, (m, d) -> Estimate of n images."""
    return _estimate(kid(x, y), x, y, polynomial_kernel, prompts)


def cmmd_estimate(x: NDArray[np.floating], y: NDArray[np.floating], prompts: int) -> Estimate:
    """``cmmd`` with a 95 % interval; (n, d) prompts-major, (m, d) -> Estimate of n images."""
    return _estimate(
        cmmd(x, y), unit_rows(x), unit_rows(y), gaussian_kernel, prompts, scale=CMMD_SCALE
    )


def _estimate(
    value: float,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    kernel: Kernel,
    prompts: int,
    scale: float = 1.0,
) -> Estimate:
    """The interval from the bootstrap's deviation, over prompts - 1 degrees of freedom."""
    draws = mmd_draws(x, y, kernel, prompts, DRAWS, seed=0)
    return spread_interval(value, scale * float(np.std(draws, ddof=1)), prompts, n=len(x))

"""Kernel distance (KID when the features are Inception's): unbiased at any sample size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput
from styletune.scoring.statistics import Array, Estimate, bootstrap_weights, spread_interval


def polynomial_kernel(x: Array, y: Array) -> Array:
    """k(x, y) = (x.y / d + 1)^3: (n, d), (m, d) -> (n, m)."""
    gram: Array = x @ y.T / x.shape[1] + 1
    return gram * gram * gram


def kid(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Squared maximum mean discrepancy, cubic kernel, as the full unbiased U-statistic.

    Binkowski et al. 2018 (arXiv 1801.01401), section 3.1 and eq. 4 of appendix A; computed
    once over all images, so it has no subset size and no subset noise.

    Args:
        x: (n, d) features; at least two rows.
        y: (m, d) features; at least two rows; m may differ from n.

    Returns:
        float64; expectation 0 for equal distributions, so slightly negative is legal.

    Raises:
        BadInput: fewer than two rows, or widths differ.
    """
    a, b = _checked(x, y)
    return (
        _mean_off_diagonal(polynomial_kernel(a, a))
        + _mean_off_diagonal(polynomial_kernel(b, b))
        - 2 * float(polynomial_kernel(a, b).mean())
    )


def _checked(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[Array, Array]:
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise BadInput(f"feature sets of shapes {a.shape} and {b.shape} cannot be compared")
    if min(len(a), len(b)) < 2:
        raise BadInput("a kernel distance needs two images on each side")
    return a, b


def _mean_off_diagonal(k: Array) -> float:
    n = len(k)
    return float((k.sum() - np.trace(k)) / (n * (n - 1)))


def kid_draws(
    x: NDArray[np.floating], y: NDArray[np.floating], prompts: int, draws: int, seed: int
) -> Array:
    """Bootstrap of ``kid`` over prompts and over references: (draws,).

    Rows of ``x`` are prompts-major; a prompt's images leave and return together. Two copies
    of one prompt or reference are never paired with each other: such pairs would re-create
    the diagonal that the U-statistic leaves out, and turn its zero into a large number.
    """
    a, b = _checked(x, y)
    per_prompt = len(a) // prompts
    blocks = polynomial_kernel(a, a)
    diagonal = np.diag(blocks).reshape(prompts, per_prompt).sum(1)
    blocks = blocks.reshape(prompts, per_prompt, prompts, per_prompt).sum((1, 3))
    cross = polynomial_kernel(a, b).reshape(prompts, per_prompt, len(b)).sum(1)
    w = bootstrap_weights(prompts, draws, seed)
    v = bootstrap_weights(len(b), draws, seed + 1)
    xx = _weighted_pairs(w, blocks, np.diag(blocks) - diagonal, per_prompt)
    yy_kernel = polynomial_kernel(b, b)
    yy = _weighted_pairs(v, yy_kernel, np.zeros(len(b)), 1)
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


def kid_estimate(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    prompts: int,
    draws: int = 500,
    seed: int = 0,
) -> Estimate:
    """``kid`` with a 95 % interval; (n, d) prompts-major, (m, d) -> Estimate of n images."""
    deviation = float(np.std(kid_draws(x, y, prompts, draws, seed), ddof=1))
    return spread_interval(kid(x, y), deviation, prompts, n=len(x))

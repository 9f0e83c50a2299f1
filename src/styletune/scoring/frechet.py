"""Fréchet distance between two sets of features (FID when they are Inception's).

A reported number, never a gate: its bias at 20-500 images is larger than what it should
measure, and it prefers collapsed sets there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from styletune.scoring.statistics import Estimate, feature_sets, sets_estimate


def frechet_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Squared Fréchet distance between Gaussians fitted to two feature sets.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), with S unbiased (ddof 1): Dowson and
    Landau 1982, eq. 4; as FID, Heusel et al. 2017 (arXiv 1706.08500), eq. 6. With
    S1 = A'A and S2 = B'B the last trace is the nuclear norm of AB', exact and real however
    few the samples.

    Args:
        x: (n, d) features; at least two rows.
        y: (m, d) features; at least two rows.

    Returns:
        float64, at least 0 up to rounding, in squared feature units.

    Raises:
        BadInput: fewer than two rows, widths differ, or a feature is not finite.
    """
    a, b = feature_sets(x, y)
    shift = a.mean(0) - b.mean(0)
    a, b = _scaled_deviations(a), _scaled_deviations(b)
    few = min(len(a), len(b)) < a.shape[1]
    cross = _trace_term_few(a, b) if few else _trace_term_many(a, b)
    return float(shift @ shift + np.vdot(a, a) + np.vdot(b, b) - 2 * cross)


def _scaled_deviations(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((x - x.mean(0)) / np.sqrt(len(x) - 1))


def _trace_term_few(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Trace of (A'A B'B)^(1/2) = nuclear norm of AB'; a tall side is first reduced by QR."""
    if len(a) > a.shape[1]:
        a = np.asarray(np.linalg.qr(a, mode="r"))
    if len(b) > b.shape[1]:
        b = np.asarray(np.linalg.qr(b, mode="r"))
    return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())


def _trace_term_many(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The same by eigenvalues of S1^(1/2) S2 S1^(1/2), cheaper when both sides are tall."""
    values, vectors = np.linalg.eigh(a.T @ a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ (b.T @ b) @ root)
    return float(np.sqrt(np.clip(inner, 0, None)).sum())


def frechet_estimate(
    x: NDArray[np.floating], y: NDArray[np.floating], clusters: Sequence[int]
) -> Estimate:
    """Fréchet distance with a 95 % interval, as ``sets_estimate``; never below 0."""
    return sets_estimate(frechet_distance, *feature_sets(x, y), clusters).within(0.0)

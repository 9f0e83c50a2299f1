"""Precision, recall, density and coverage: is it like the brand, and is it all of the brand?

Balls around every image reach to its k-th nearest neighbor in its own set. Precision and recall:
Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2; density and coverage: Naeem et al. 2020
(arXiv 2002.09797), eq. 3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput
from styletune.scoring.statistics import Array, feature_sets

K_NEAREST = 5


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """Shares of one set that lie near the other, 0 to 1; ``density`` may be more.

    ``precision``: of generated images inside a reference's ball. ``recall``: of references inside
    a generated image's ball. ``density``: reference balls around a generated image, in units of k.
    ``coverage``: of references with a generated image in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighborhood(
    generated: NDArray[np.floating], references: NDArray[np.floating], k: int = K_NEAREST
) -> Neighborhood:
    """Compare (n, d) generated with (m, d) reference features, by Euclidean distance.

    All four depend on n and m: compare sets of equal size, and with the references' own halves.

    Raises:
        BadInput: a set has not more than k rows, widths differ, or a feature is not finite.
    """
    x, y = feature_sets(generated, references)
    if min(len(x), len(y)) <= k:
        raise BadInput(f"{k} nearest neighbors need at least {k + 1} images on each side")
    within_x, within_y = _radii(x, k), _radii(y, k)
    distance = np.sqrt(_squares(y, x))
    in_reference_ball = distance < within_y[:, None]
    return Neighborhood(
        precision=float(in_reference_ball.any(0).mean()),
        recall=float((distance < within_x[None]).any(1).mean()),
        density=float(in_reference_ball.sum(0).mean() / k),
        coverage=float((distance.min(1) < within_y).mean()),
    )


def _squares(x: Array, y: Array) -> Array:
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * x @ y.T
    return np.asarray(np.maximum(squares, 0))


def _radii(x: Array, k: int) -> Array:
    """Distance of every row to its k-th nearest other row: (n, d) -> (n,)."""
    squares = _squares(x, x)
    np.fill_diagonal(squares, 0)
    return np.asarray(np.sqrt(np.partition(squares, k, axis=1)[:, k]))

"""Pictures that are far from all others, whatever the distance measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The distance of a picture is its mean distance to this many nearest others.
NEIGHBORS = 3
# Fewer pictures have nothing that could be called usual.
FEWEST = 8


def find_outliers(
    clusters: Sequence[Sequence[str]],
    distances: NDArray[np.floating],
    *,
    deviations: float,
    least: float,
) -> list[tuple[str, float]]:
    """The files whose distance is unusual in the set: (file name, distance), farthest first.

    Unusual is above the median by more than ``deviations`` standard deviations (1.4826 times the
    median absolute deviation) and by more than ``least``.

    Args:
        clusters: the file names of each picture; all of its variants share its distance.
        distances: (n,), one per cluster, to its ``NEIGHBORS`` nearest other pictures.
        deviations: above 0.
        least: in units of the distances.
    """
    if len(clusters) < FEWEST:
        return []
    median = np.median(distances)
    usual = 1.4826 * np.median(np.abs(distances - median))
    limit = median + max(deviations * usual, least)
    outliers = [
        (name, float(distance))
        for cluster, distance in zip(clusters, distances, strict=True)
        if distance > limit
        for name in cluster
    ]
    return sorted(outliers, key=lambda outlier: (-outlier[1], outlier[0]))

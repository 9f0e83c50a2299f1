"""The colors of a set: its palette, and whether its images keep to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from styletune.colors import Floats, color_bytes, half_sphere, main_colors
from styletune.data.inspection.duplicates import ImageGroup, clusters
from styletune.data.inspection.facts import SMALL_PX, ImageFacts, PaletteFacts
from styletune.data.inspection.outliers import FEWEST, NEIGHBORS, find_outliers

# A brand's neutrals, its accents, and tints of both.
PALETTE_SIZE = 12
# CIEDE2000: clearly the same color by name, though not by eye.
NEAR = 10.0

# In sets of 16 to 48 renders in one brand's look, 0.5 % of the images are flagged, and 4 of 5
# renders in no look among them.
_OUTLIER_DEVIATIONS = 6.0
_OUTLIER_DISTANCE = 8.0

_MOST_SAMPLES = 2_000_000


def extract_palette(
    facts: Mapping[str, ImageFacts], k: int = PALETTE_SIZE
) -> list[tuple[str, float]]:
    """``main_colors`` of a set's 64×64 samples; every image counts the same.

    In very large sets only every n-th sample is used (2 million are plenty).
    """
    if not facts:
        return []
    every = max(1, len(facts) * SMALL_PX**2 // _MOST_SAMPLES)
    rgb = np.concatenate([_samples(fact.small)[::every] for fact in facts.values()])
    return main_colors(rgb, np.full(len(rgb), 1 / len(rgb)), k)


def coverage(smalls: Sequence[bytes], palette: Sequence[str]) -> list[float]:
    """Share of each image's pixels within ΔE00 10 of a palette color, in [0, 1].

    Colors are compared once for the whole set, in cubes of side 4 by their center.

    Args:
        smalls: ``ImageFacts.small`` of each image.
        palette: "#rrggbb", one or more.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    if not smalls:
        return []
    is_used = np.zeros(1 << 18, bool)
    for small in smalls:
        is_used[_cubes(small)] = True
    used = np.flatnonzero(is_used)
    centers = np.stack([used >> 12, used >> 6 & 63, used & 63], 1) * 4 + 1.5
    brand = rgb2lab(np.array([color_bytes(color) for color in palette]) / 255.0)
    lab = rgb2lab(centers / 255.0)
    distance = np.min([deltaE_ciede2000(lab, color[None]) for color in brand], axis=0)
    is_near = np.zeros(1 << 18, bool)
    is_near[used[distance <= NEAR]] = True
    return [float(is_near[_cubes(small)].mean()) for small in smalls]


def palette_facts(
    facts: Mapping[str, ImageFacts], declared: Sequence[str], k: int = PALETTE_SIZE
) -> PaletteFacts:
    """The declared and the extracted palette, and how far each image keeps to it.

    Args:
        facts: by file name.
        declared: the card's colors, "#rrggbb"; may be empty.
        k: at most this many extracted colors.
    """
    extracted = extract_palette(facts, k)
    palette = tuple(declared) or tuple(color for color, _ in extracted)
    shares = dict(zip(facts, coverage([f.small for f in facts.values()], palette), strict=True))
    return PaletteFacts(tuple(declared), tuple(extracted), shares)


def palette_outliers(
    facts: Mapping[str, ImageFacts], near_groups: Sequence[ImageGroup]
) -> list[tuple[str, float]]:
    """The images with colors that no others have: (file name, distance), farthest first.

    The distance is the mean sliced 2-Wasserstein distance in CIELAB (Rabin et al. 2011; Bonneel
    et al. 2015, doi 10.1007/s10851-014-0506-3) to the three nearest other pictures, scaled so
    that a shift of all colors by v reads |v|; far means as in ``find_outliers``. Variants of one
    picture count as one; fewer than eight pictures have no outliers.
    """
    pictures = clusters(facts, near_groups)
    if len(pictures) < FEWEST:
        return []
    points = np.stack([_color_quantiles(facts[picture[0]].small) for picture in pictures])
    distances = np.empty(len(points))
    squares = (points**2).sum(1)
    for i, point in enumerate(points):
        apart = np.maximum(squares + squares[i] - 2 * (points @ point), 0)
        apart[i] = np.inf
        distances[i] = np.sqrt(np.partition(apart, NEIGHBORS)[:NEIGHBORS]).mean()
    return find_outliers(
        pictures, distances, deviations=_OUTLIER_DEVIATIONS, least=_OUTLIER_DISTANCE
    )


def _color_quantiles(small: bytes) -> Floats:
    """(128,): eight quantiles of the colors along each of 16 directions."""
    from skimage.color import rgb2lab

    # Every fifteenth sample visits all columns; 273 are plenty for eight quantiles.
    lab = rgb2lab(_samples(small)[::15] / 255.0)
    levels = np.quantile(lab @ half_sphere(16).T, (np.arange(8) + 0.5) / 8, axis=0)
    # The mean of (v·d)² over the sphere is |v|²/3.
    return np.asarray(levels.ravel() * np.sqrt(3 / levels.size))


def _samples(small: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(small, np.uint8).reshape(-1, 3)


def _cubes(small: bytes) -> NDArray[np.int32]:
    """(4096,): the cube of side 4 that each sample is in, in [0, 2^18)."""
    steps = _samples(small).astype(np.int32) >> 2
    return steps[:, 0] << 12 | steps[:, 1] << 6 | steps[:, 2]

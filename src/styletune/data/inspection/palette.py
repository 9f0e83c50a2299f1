"""The colours of a set: which they are, and whether its images keep to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from styletune.data.inspection.duplicates import Group, families
from styletune.data.inspection.facts import SMALL_PX, ImageFacts, PaletteFacts

Floats = NDArray[np.float64]

# A brand's neutrals, its accents, and tints of both.
PALETTE_SIZE = 12
# CIEDE2000: clearly the same colour by name, though not by eye.
NEAR = 10.0

# An outlier is unusual among its own, and to the eye. Seen in sets of 16 to 48 renders in one
# brand's look: 0.5 % of the images are flagged, and 4 of 5 renders in no look among them.
OUTLIER_DEVIATIONS = 6.0
OUTLIER_DISTANCE = 8.0
NEIGHBOURS = 3
FEWEST = 8

# Radii in the space of _uniform, where 1 is about a just noticeable difference.
_SAME = 2.0
_TAKEN = 5.0
# A colour of chroma 30 counts twice: a brand lives from its accents, which cover little.
_ACCENT_CHROMA = 30.0
_LEAST_SHARE = 0.003
_MOST_SAMPLES = 2_000_000


def extract_palette(
    facts: Mapping[str, ImageFacts], k: int = PALETTE_SIZE
) -> list[tuple[str, float]]:
    """``main_colors`` of a set's 64×64 samples; every image counts the same.

    Of very many images only every so manieth sample is taken (2 million are plenty).
    """
    if not facts:
        return []
    every = max(1, len(facts) * SMALL_PX**2 // _MOST_SAMPLES)
    rgb = np.concatenate([_samples(fact.small)[::every] for fact in facts.values()])
    return main_colors(rgb, np.full(len(rgb), 1 / len(rgb)), k)


def main_colors(rgb: NDArray[np.uint8], weight: Floats, k: int) -> list[tuple[str, float]]:
    """At most k colours that pixels have: [("#rrggbb", weight)], heaviest first, sum 1.

    Greedy: the densest neighbourhood in CIELAB that no colour stands for yet, saturated ones
    counting more, gives its most frequent exact colour, until what is left is a sprinkling.
    Means (k-means) would blend flat colours with their anti-aliased edges, and small accents
    with everything. A colour's weight is the share of the pixels that are nearest to it.

    Args:
        rgb: (n, 3) sRGB.
        weight: (n,), not negative, not all 0.
        k: 1 and more.
    """
    from scipy.spatial import KDTree
    from skimage.color import rgb2lab

    colors, mass = _bins(rgb, weight)
    lab = rgb2lab(colors / 255.0)
    points = _uniform(lab)
    tree = KDTree(points)
    near = tree.sparse_distance_matrix(tree, _SAME, output_type="coo_matrix").tocsr()
    near.data[:] = 1
    near.setdiag(1)
    boost = 1 + np.linalg.norm(lab[:, 1:], axis=1) / _ACCENT_CHROMA
    left = mass.copy()
    chosen: list[int] = []
    while len(chosen) < k:
        gain = near @ left * boost
        densest = int(gain.argmax())
        if chosen and gain[densest] < _LEAST_SHARE:
            break
        around = near.indices[near.indptr[densest] : near.indptr[densest + 1]]
        chosen.append(int(around[left[around].argmax()]))
        left[np.linalg.norm(points - points[chosen[-1]], axis=1) <= _TAKEN] = 0
        if not left.any():
            break
    nearest = KDTree(points[chosen]).query(points)[1]
    shares = np.bincount(nearest, mass, len(chosen))
    order = np.argsort(-shares, kind="stable")
    return [("#{:02x}{:02x}{:02x}".format(*colors[chosen[i]]), float(shares[i])) for i in order]


def _bins(rgb: NDArray[np.uint8], weight: Floats) -> tuple[NDArray[np.int64], Floats]:
    """One exact colour, the most frequent, for each cube of side 8, and the cube's share."""
    code = rgb.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    codes, inverse = np.unique(code, return_inverse=True)
    mass = np.bincount(inverse, weight, len(codes))
    codes, mass = codes[mass > 0], mass[mass > 0] / mass.sum()
    cubes, cube = np.unique(codes & 0xF8F8F8, return_inverse=True)
    order = np.lexsort((mass, cube))
    most = order[np.searchsorted(cube[order], np.arange(len(cubes)), side="right") - 1]
    picked = codes[most]
    colors = np.stack([picked >> 16, picked >> 8 & 255, picked & 255], 1)
    return colors.astype(np.int64), np.asarray(np.bincount(cube, mass, len(cubes)), np.float64)


def _uniform(lab: Floats) -> Floats:
    """CIELAB with its chroma compressed, so that Euclid's distance is about CIE94's.

    CIE94 divides chroma differences by 1 + 0.045 C; this is the integral of that.
    """
    chroma = np.linalg.norm(lab[:, 1:], axis=1, keepdims=True)
    scale = np.log1p(0.045 * chroma) / np.maximum(0.045 * chroma, 1e-9)
    return np.concatenate([lab[:, :1], lab[:, 1:] * np.where(chroma > 0, scale, 1)], axis=1)


def coverage(smalls: Sequence[bytes], palette: Sequence[str]) -> list[float]:
    """Share of each image's pixels within ΔE00 10 of a palette colour, in [0, 1].

    Colours are compared once for the whole set, in cubes of side 4 by their middle.

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
    middles = np.stack([used >> 12, used >> 6 & 63, used & 63], 1) * 4 + 1.5
    brand = rgb2lab(np.array([_rgb(color) for color in palette]) / 255.0)
    lab = rgb2lab(middles / 255.0)
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
        declared: the card's colours, "#rrggbb"; none is allowed.
        k: at most so many extracted colours.
    """
    extracted = extract_palette(facts, k)
    palette = tuple(declared) or tuple(color for color, _ in extracted)
    shares = dict(zip(facts, coverage([f.small for f in facts.values()], palette), strict=True))
    return PaletteFacts(tuple(declared), tuple(extracted), shares)


def palette_outliers(
    facts: Mapping[str, ImageFacts], near_groups: Sequence[Group]
) -> list[tuple[str, float]]:
    """The images whose colours no others have: (file name, distance), farthest first.

    The distance is the mean sliced 2-Wasserstein distance in CIELAB (Rabin et al. 2011; Bonneel
    et al. 2015, doi 10.1007/s10851-014-0506-3) to the three nearest other pictures, scaled so
    that a shift of all colours by v reads |v|. Far is beyond the median by more than six usual
    deviations (median absolute deviation) and by more than ``OUTLIER_DISTANCE``. Variants of
    one picture are one picture; fewer than eight pictures say nothing.
    """
    pictures = families(facts, near_groups)
    if len(pictures) < FEWEST:
        return []
    points = np.stack([_color_quantiles(facts[family[0]].small) for family in pictures])
    far = np.empty(len(points))
    squares = (points**2).sum(1)
    for i, point in enumerate(points):
        apart = np.maximum(squares + squares[i] - 2 * (points @ point), 0)
        apart[i] = np.inf
        far[i] = np.sqrt(np.partition(apart, NEIGHBOURS)[:NEIGHBOURS]).mean()
    middle = np.median(far)
    usual = 1.4826 * np.median(np.abs(far - middle))
    limit = middle + max(OUTLIER_DEVIATIONS * usual, OUTLIER_DISTANCE)
    found = [
        (name, float(distance))
        for family, distance in zip(pictures, far, strict=True)
        if distance > limit
        for name in family
    ]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def _color_quantiles(small: bytes) -> Floats:
    """(128,): eight quantiles of the colours along each of 16 directions (Fibonacci lattice)."""
    from skimage.color import rgb2lab

    i = np.arange(16) + 0.5
    z = i / 16
    angle = np.pi * (3 - np.sqrt(5)) * i
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(angle), radius * np.sin(angle), z])
    # Every fifteenth sample runs through all columns; 273 are plenty for eight quantiles.
    lab = rgb2lab(_samples(small)[::15] / 255.0)
    levels = np.quantile(lab @ directions, (np.arange(8) + 0.5) / 8, axis=0)
    # The mean of (v·d)² over the sphere is |v|²/3.
    return np.asarray(levels.ravel() * np.sqrt(3 / levels.size))


def _samples(small: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(small, np.uint8).reshape(-1, 3)


def _cubes(small: bytes) -> NDArray[np.int32]:
    """(4096,): the cube of side 4 that each sample is in, in [0, 2^18)."""
    steps = _samples(small).astype(np.int32) >> 2
    return steps[:, 0] << 12 | steps[:, 1] << 6 | steps[:, 2]


def _rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]

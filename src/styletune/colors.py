"""Colors: what a hex color is, and the main colors of many pixels. No torch."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Floats = NDArray[np.float64]
HexColor = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]  # "#rrggbb"

# Radii in the space of _uniform, where 1 is about a just noticeable difference.
_SAME = 2.0
_COVERED = 5.0
# A color of chroma 30 counts twice: a brand lives by its accents, which cover little area.
_ACCENT_CHROMA = 30.0
_LEAST_SHARE = 0.003


def color_bytes(color: str) -> tuple[int, int, int]:
    """``"#rrggbb"`` as three numbers from 0 to 255."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def half_sphere(n: int) -> Floats:
    """(n, 3) unit vectors, a Fibonacci lattice on half the sphere: d and -d measure the same."""
    i = np.arange(n) + 0.5
    z = i / n
    angle = np.pi * (3 - np.sqrt(5)) * i
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def main_colors(rgb: NDArray[np.uint8], weight: Floats, k: int) -> list[tuple[str, float]]:
    """At most k colors that pixels really have: [("#rrggbb", weight)], heaviest first, sum 1.

    Greedy: the densest neighborhood in CIELAB that no color represents yet, saturated ones
    counting more, contributes its most frequent exact color, until only sprinkles are left.
    Means (k-means) would blend flat colors with their anti-aliased edges, and small accents
    with everything. A color's weight is the share of the pixels that are nearest to it.

    Args:
        rgb: (n, 3) sRGB.
        weight: (n,), not negative, not all 0.
        k: at least 1.
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
        left[np.linalg.norm(points - points[chosen[-1]], axis=1) <= _COVERED] = 0
        if not left.any():
            break
    nearest = KDTree(points[chosen]).query(points)[1]
    shares = np.bincount(nearest, mass, len(chosen))
    order = np.argsort(-shares, kind="stable")
    return [("#{:02x}{:02x}{:02x}".format(*colors[chosen[i]]), float(shares[i])) for i in order]


def _bins(rgb: NDArray[np.uint8], weight: Floats) -> tuple[NDArray[np.int64], Floats]:
    """One exact color, the most frequent, for each cube of side 8, and the cube's share."""
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
    """CIELAB with its chroma compressed, so that Euclidean distance is about CIE94's.

    CIE94 divides chroma differences by 1 + 0.045 C; this is the integral of that.
    """
    chroma = np.linalg.norm(lab[:, 1:], axis=1, keepdims=True)
    scale = np.log1p(0.045 * chroma) / np.maximum(0.045 * chroma, 1e-9)
    return np.concatenate([lab[:, :1], lab[:, 1:] * np.where(chroma > 0, scale, 1)], axis=1)

"""Color: how far a set's colors are from the references', and which colors they are.

The distance is a sliced 1-Wasserstein distance in CIELAB (Rabin et al. 2011; Bonneel et al.
2015, doi 10.1007/s10851-014-0506-3). A set is the weighted mean of its images' histograms,
so resampling a set is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from styletune.colors import half_sphere, main_colors
from styletune.errors import DataError
from styletune.scoring.statistics import Array, Estimate, bootstrap_weights, spread_interval

SIDE_PX = 64
DIRECTIONS = 64
# sRGB's farthest color from Lab's origin is blue, 134 units away.
LIMIT = 140
GRID = np.arange(-LIMIT, LIMIT + 1, dtype=np.float64)


def load_pixels(file: Path) -> tuple[Array, Array]:
    """An image's colors: (k, 3) float64 CIELAB (D65, L 0-100) and (k,) weights, sum 1.

    Reduced to 64x64 by area first. Transparent pixels have no color and no weight.
    Raises DataError if the file is not an image or fully transparent.
    """
    from skimage.color import rgb2lab

    rgb, weight = _load_rgb(file)
    return np.asarray(rgb2lab(rgb / 255)), weight


def _load_rgb(file: Path) -> tuple[Array, Array]:
    """(4096, 3) sRGB, 0 to 255, and (4096,) weights, sum 1. Raises DataError."""
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"not readable as an image: {error}", where=str(file)) from None
    small = upright.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    rgba = np.asarray(small, np.float64).reshape(-1, 4)
    weight = rgba[:, 3]
    if weight.sum() == 0:
        raise DataError("the image is fully transparent", where=str(file))
    return rgba[:, :3], weight / weight.sum()


def projected_cdf(lab: Array, weight: Array) -> NDArray[np.float32]:
    """Cumulative histograms of the colors along every direction: (64, 281) float32.

    ``lab`` (k, 3), ``weight`` (k,) with sum 1. Mass is shared between the two nearest grid
    points in proportion, which keeps every mean, and so every pure shift, exact.
    """
    position = lab @ half_sphere(DIRECTIONS).T + LIMIT
    below = np.clip(np.floor(position).astype(np.int64), 0, len(GRID) - 2)
    share = position - below
    offset = below + np.arange(DIRECTIONS) * len(GRID)
    size = DIRECTIONS * len(GRID)
    mass = np.bincount(offset.ravel(), ((1 - share) * weight[:, None]).ravel(), size)
    mass += np.bincount(offset.ravel() + 1, (share * weight[:, None]).ravel(), size)
    return mass.reshape(DIRECTIONS, len(GRID)).cumsum(1).astype(np.float32)


def palette_features(files: Sequence[Path]) -> NDArray[np.float32]:
    """(n, 64, 281) cumulative color histograms of image files. Raises DataError."""
    return np.stack([projected_cdf(*load_pixels(file)) for file in files])


def cdf_distance(f: NDArray[np.floating], g: NDArray[np.floating]) -> Array:
    """Sliced W1 of cumulative histograms (..., 64, 281), broadcast: (...) in units of dE76.

    W1 on a line is the integral of |F - G|. A shift of all colors by v moves direction d by
    |v.d|, whose mean over the sphere is |v| / 2: hence the factor 2, so that it reads |v|.
    """
    return np.asarray(2 * np.abs(f - g).sum(-1).mean(-1), np.float64)


def palette_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Distance between two sets' colors, from ``palette_features``; in units of dE76, >= 0."""
    return float(cdf_distance(x.mean(0), y.mean(0)))


def palette_draws(
    x: NDArray[np.floating], y: NDArray[np.floating], prompts: int, draws: int, seed: int
) -> Array:
    """Bootstrap of ``palette_distance`` over prompts (x is prompts-major) and references.

    The same seed resamples the same prompts and references, so ratios of columns are paired.
    """
    f = x.reshape(prompts, -1, x.shape[1] * x.shape[2]).mean(1)
    g = y.reshape(len(y), -1)
    w = (bootstrap_weights(prompts, draws, seed) / prompts).astype(np.float32)
    v = (bootstrap_weights(len(y), draws, seed + 1) / len(y)).astype(np.float32)
    difference = w @ f.astype(np.float32) - v @ g.astype(np.float32)
    return np.asarray(2 * np.abs(difference).sum(1) / DIRECTIONS, np.float64)


def palette_estimates(
    x: NDArray[np.floating],
    base: NDArray[np.floating],
    references: NDArray[np.floating],
    prompts: int,
    draws: int = 500,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """(palette distance, its ratio to the base's), each with a 95 % interval.

    The ratio's interval is symmetric in its logarithm. Features as from ``palette_features``.
    Raises DataError if the base has exactly the references' colors.
    """
    mine = palette_draws(x, references, prompts, draws, seed)
    other = palette_draws(base, references, prompts, draws, seed)
    value, anchor = palette_distance(x, references), palette_distance(base, references)
    if anchor <= 0 or other.min() <= 0:
        raise DataError(
            "the base model's images already have the references' exact colors",
            fix="give reference images in the brand's look, not the base model's own",
        )
    distance = spread_interval(value, float(np.std(mine, ddof=1)), prompts, n=len(x))
    floor = 1e-9
    logs = np.log(np.maximum(mine, floor)) - np.log(other)
    log_ratio = spread_interval(
        float(np.log(max(value, floor) / anchor)), float(np.std(logs, ddof=1)), prompts, len(x)
    )
    center, low, high = np.exp([log_ratio.value, log_ratio.low, log_ratio.high]).tolist()
    ratio = Estimate(center, low, high, len(x))
    return distance.within(0.0), ratio


def palette_of_files(files: Sequence[Path], k: int = 6) -> list[tuple[str, float]]:
    """The ``main_colors`` of images, for display: [("#rrggbb", weight)], heaviest first.

    Every image counts the same; weights sum to 1. Raises DataError.
    """
    if not files:
        raise DataError("a palette needs at least one image")
    loaded = [_load_rgb(file) for file in files]
    rgb = np.concatenate([pixels for pixels, _ in loaded])
    weight = np.concatenate([weights for _, weights in loaded])
    return main_colors(rgb.astype(np.uint8), weight, k)

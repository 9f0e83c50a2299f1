"""Edges of a picture: how sharp the sharpest are, and where bars of one color end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Finer than any training resolution needs.
EDGES_PX = 2048

# Of a channel's 255 steps, from a bar's color: what is still bar, and what is surely picture.
BAR_TOLERANCE, PICTURE_TOLERANCE = 12, 24
BAR_SAMPLES = 512
# Of the pixels of a row: how many may stray in a bar, how many must in the picture next to it.
BAR_STRAYS, PICTURE_STRAYS = 0.05, 0.5
# JPEG smears the edge over its blocks, 16 pixels for color; enlarging does as well.
SMEARED_ROWS = 16

# Smaller steps between pixels (of 255) are not edges.
FAINTEST_EDGE = 4.0


def reduced(image: Image.Image, longest_px: int) -> Image.Image:
    """Averaged over squares of n×n pixels, n as small as the longest side allows."""
    factor = -(-max(image.size) // longest_px)
    return image if factor == 1 else image.reduce(factor)


def measure_edges(image: Image.Image) -> float:
    """Width of the sharpest edges of RGB, as the deviation of a Gaussian in pixels; 0 for no edge.

    Another blur of 1 pixel divides the slope of an edge blurred by σ by R = √(1 + 1/σ²) (Zhuo and
    Sim, Pattern Recognition 44 (2011), eq. 5), so σ = 1/√(R² - 1). Returns the lower quartile
    over the strongest edges: a background out of focus behind a sharp subject does not count.
    """
    from scipy import ndimage

    gray = reduced(image, EDGES_PX).convert("L")
    factor = image.width / gray.width
    if min(gray.size) < 3:
        return 0.0
    pixels = np.asarray(gray, np.float32)
    slopes = _slopes(pixels)
    strongest = float(np.quantile(slopes, 0.999))
    if strongest < FAINTEST_EDGE:
        return 0.0
    edges = slopes >= max(FAINTEST_EDGE, 0.3 * strongest)
    blurred = _slopes(ndimage.gaussian_filter(pixels, 1.0, truncate=3))[edges]
    ratios = np.maximum(slopes[edges] / np.maximum(blurred, 1e-3), 1.001)
    return float(np.quantile(1 / np.sqrt(ratios**2 - 1), 0.25)) * factor


def _slopes(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    down = pixels[2:, 1:-1] - pixels[:-2, 1:-1]
    across = pixels[1:-1, 2:] - pixels[1:-1, :-2]
    return np.asarray(np.sqrt(down * down + across * across) / 2, np.float32)


def measure_bars(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Bars of one color along whole sides of (h, w, 3) sRGB, in pixels; 0 where there is none.

    Only bars with an abrupt edge to the picture along at least half of the side, in pairs of
    opposite sides of one color: the flat background of a logo or a plain sky is not a bar.
    """
    top, bottom = _pair(pixels)
    left, right = _pair(pixels[top : len(pixels) - bottom].transpose(1, 0, 2))
    if left and not top:
        # In a frame the top bar touches the picture only between the bars at its sides.
        top, bottom = _pair(pixels[:, left : pixels.shape[1] - right])
    return {
        "bar_top": float(top),
        "bar_right": float(right),
        "bar_bottom": float(bottom),
        "bar_left": float(left),
    }


def _pair(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Rows of the bars at both ends; (0, 0) unless both are there."""
    first, last = np.median(pixels[0], axis=0), np.median(pixels[-1], axis=0)
    if np.abs(first - last).max() > BAR_TOLERANCE:
        return 0, 0
    top, bottom = _bar(pixels, first), _bar(pixels[::-1], last)
    return (top, bottom) if top and bottom else (0, 0)


def _bar(pixels: NDArray[np.uint8], color: NDArray[np.float64]) -> int:
    """How many of the first rows have one color; 0 if the picture does not start abruptly."""
    half = pixels[: len(pixels) // 2, :: -(-pixels.shape[1] // BAR_SAMPLES)]
    if not len(half) or _strays(half[0], color, BAR_TOLERANCE) > BAR_STRAYS:
        return 0
    smeared = int(np.argmax(_strays(half, color, BAR_TOLERANCE) > BAR_STRAYS))
    picture = int(np.argmax(_strays(half, color, PICTURE_TOLERANCE) >= PICTURE_STRAYS))
    return picture if picture and picture - smeared <= SMEARED_ROWS else 0


def _strays(
    pixels: NDArray[np.uint8], color: NDArray[np.float64], tolerance: int
) -> NDArray[np.float64]:
    """Share of the pixels of each row that do not have a color."""
    low = np.clip(color - tolerance, 0, 255).astype(np.uint8)
    high = np.clip(color + tolerance, 0, 255).astype(np.uint8)
    return np.asarray(((pixels < low) | (pixels > high)).any(axis=-1).mean(axis=-1))

"""Letters drawn over a picture, found by how letters look: rows of small shapes of one colour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Shapes = NDArray[np.float64]  # (n, 7): top, bottom, left, right, area, shade, stroke width

# Drawn letters are mostly nearly white or black; others stand out from what is around them.
LIGHT, DARK = (240, 215, 190), (15, 40, 65)
AROUND_PX, STRONG, FAINT = 61, 28, 10
# Pictures with more shapes than this in one mask are texture.
MOST_SHAPES = 1500
FEWEST_LETTERS = 5


def count_letters(gray: Gray) -> tuple[int, int]:
    """Letters in the longest row that looks drawn, (strong ones, faint ones); 0 for none.

    A row is at least five shapes on one line, close together, of like height, stroke and shade,
    but unlike in form and not evenly spaced, as windows, dots and fences are. No letter is read.

    Args:
        gray: (h, w) luminance, uint8; letters of 7 pixels and more in height are seen.
    """
    from scipy import ndimage

    local = ndimage.uniform_filter(gray.astype(np.float32), AROUND_PX, mode="nearest")
    contrast = gray - local
    strong = max((_longest_row(gray, *each) for each in _strong_masks(gray, contrast)), default=0)
    # Of what shines through, not the shade but the step from what is around is the same.
    steps = (np.clip(contrast, -127, 127) + 128).astype(np.uint8)
    faint = (
        ((contrast > FAINT) & (contrast < 2 * STRONG), 1),
        ((contrast < -FAINT) & (contrast > -2 * STRONG), -1),
    )
    return strong, max(_longest_row(steps, mask, sign) for mask, sign in faint)


def _strong_masks(gray: Gray, contrast: NDArray[np.float32]) -> Iterator[tuple[Mask, int]]:
    """Where letters could be, and whether light (1) or dark (-1) ones."""
    for level in LIGHT:
        yield gray >= level, 1
    for level in DARK:
        yield gray <= level, -1
    yield contrast > STRONG, 1
    yield contrast < -STRONG, -1


def _longest_row(gray: Gray, mask: Mask, sign: int) -> int:
    shapes = _shapes(gray, mask, sign)
    if not FEWEST_LETTERS <= len(shapes) <= MOST_SHAPES:
        return 0
    return max((len(row) for row in _rows(shapes) if _like_letters(row)), default=0)


def _shapes(gray: Gray, mask: Mask, sign: int) -> Shapes:
    """The connected shapes of a mask that have the size and form of a letter."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3), bool))
    boxes = [(y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(labels)]
    if not count:
        return np.zeros((0, 7))
    box, flat = np.array(boxes), labels.ravel()
    area = np.bincount(flat, minlength=count + 1)[1:]
    height, width = box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]
    fill = area / (height * width)
    fits = (height >= 7) & (height <= 0.15 * len(gray)) & (width >= 2) & (width <= 2.5 * height)
    fits &= (fill > 0.15) & (fill < 0.97)
    if not fits.any():
        return np.zeros((0, 7))
    # Only the pixels of these shapes, shape by shape.
    pixels = np.flatnonzero(np.r_[False, fits][flat])
    order = np.argsort(flat[pixels], kind="stable")
    pixels = pixels[order]
    starts = np.flatnonzero(np.diff(flat[pixels], prepend=-1))
    shade = np.maximum.reduceat(gray.ravel()[pixels].astype(np.int16) * sign, starts)
    inner = ndimage.binary_erosion(mask).ravel()[pixels].astype(np.int64)
    rim = np.maximum(area[fits] - np.add.reduceat(inner, starts), 1)
    return np.column_stack([box[fits], area[fits], shade, 2 * area[fits] / rim])


def _rows(shapes: Shapes) -> Iterator[Shapes]:
    """Shapes linked to neighbours on the same line of the same kind."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    top, bottom, left, right, _, shade, stroke = shapes.T
    height = bottom - top
    tall = np.maximum.outer(height, height)
    gap = np.maximum.outer(left, left) - np.minimum.outer(right, right)
    linked = np.abs(np.subtract.outer(bottom, bottom)) <= 0.3 * tall
    linked &= np.minimum.outer(height, height) >= 0.5 * tall
    linked &= (gap <= tall) & (gap >= -0.3 * tall)
    linked &= np.abs(np.subtract.outer(shade, shade)) <= 12
    linked &= 2 * np.minimum.outer(stroke, stroke) >= np.maximum.outer(stroke, stroke)
    count, row = connected_components(coo_array(linked), directed=False)
    for number in range(count):
        if (row == number).sum() >= FEWEST_LETTERS:
            yield shapes[row == number]


def _like_letters(row: Shapes) -> bool:
    """Whether shapes on a line stand on it, and are as like and unlike as letters are."""
    top, bottom, left, right, area, shade, _ = row.T
    height, width = bottom - top, right - left
    off_line = np.abs(bottom - np.median(bottom)) > max(1.0, 0.08 * float(np.median(height)))
    steps = np.diff(np.sort((left + right) / 2))
    same = np.abs(np.subtract.outer(width, width)) <= 1
    same &= np.abs(np.subtract.outer(height, height)) <= 1
    same &= np.abs(np.subtract.outer(area, area)) <= 0.1 * area
    return bool(
        off_line.mean() <= 0.4
        and height.std() <= 0.35 * height.mean()
        and width.std() >= 0.18 * width.mean()
        and (area / (height * width)).std() >= 0.06
        and shade.std() <= 5
        and steps.std() >= 0.15 * steps.mean()
        and same.mean(axis=1).max() <= 0.5
    )

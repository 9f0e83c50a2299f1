"""Whether one picture is a copy of another: candidates by correlation, then aligned and compared.

Three sieves, each finer and slower: the correlation of 16×16 luminances for all pairs at once;
the residual of 32×32 luminances after small shifts and recoloring are explained; and finally
128×128 pixels, aligned.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.inspection.facts import SMALL_PX
from styletune.progress import Advance

Float32Array = NDArray[np.float32]
# The shares cut off left, right, top and bottom, and whether the rest is mirrored.
View = tuple[tuple[float, ...], bool]

# Correlation of 16×16 luminances that makes a candidate. Copies of procedural scenes have 0.992
# and more; of two different scenes in the same style, one pair in 2,000 has 0.98 and more.
MIN_SIMILARITY = 0.985
# Of the 64 parts of a picture, those that another logo covers may differ: up to 6 were measured.
MAX_CHANGED = 8
# How far a part may seem to have moved, in 1/128 of the picture's side (see _displacements).
# Of copies 98 % stay below 0.55 in every part; different scenes reach it in two of 100,000 pairs.
COPY_DISPLACEMENT = 0.55
VARIANT_DISPLACEMENT = 0.5

# The same where only the first order is aligned, and pictures are blurred for it: of copies
# 2 in 1,400 are lost, and of the pairs of objects centered on white 10 in 100 remain.
ROUGH_DISPLACEMENT = 1.5

_SIDE_PX = 128
_PARTS = 8
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Shares cut off left, right, top and bottom: nothing, a side or a corner by 5 %, all around.
_CUT = 0.05
_WINDOWS = (
    *((*x, *y) for x, y in product(((0.0, 0.0), (_CUT, 0.0), (0.0, _CUT)), repeat=2)),
    (_CUT / 2, _CUT / 2, _CUT / 2, _CUT / 2),
)
_CUT_RANGE = (-0.005, 0.075)
# Four levels, squared.
_NOISE = (4 / 255) ** 2
_VIEWS: tuple[View, ...] = tuple((w, mirrored) for mirrored in (False, True) for w in _WINDOWS)
_ROUGH_PX = 32
_ROUGH_BLURS = 4
_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture at 128×128, slightly blurred, in [0, 1]: (128, 128, 3) colors, (128, 128) luma."""

    colors: Float32Array
    luma: Float32Array


def likely_copies(
    smalls: Sequence[bytes], cluster: NDArray[np.int64], advance: Advance
) -> Iterator[tuple[int, int, View]]:
    """(part, whole, view): the first may be a copy of that view of the second.

    Args:
        smalls: ``ImageFacts.small`` of each image.
        cluster: (n,), a number for each image; pairs of one number are skipped. The caller may
            change it between two results.
        advance: told of the wholes that have been compared with all others.
    """
    if len(smalls) < 2:
        return
    plain, rough, slopes = (np.concatenate(each) for each in zip(*_sketches(smalls), strict=True))
    for start in range(0, len(smalls), _AT_ONCE):
        wholes = _colors(smalls[start : start + _AT_ONCE])
        luma = wholes @ _LUMA
        wholes = _blurred(wholes, (1, 2), _ROUGH_BLURS)
        best = np.full((len(wholes), len(smalls)), -1, np.float32)
        best_view = np.zeros(best.shape, np.uint8)
        for i, (window, mirrored) in enumerate(_VIEWS):
            score = _signature(_warp(luma[:, :, ::-1] if mirrored else luma, window)) @ plain.T
            better = score > best
            best[better], best_view[better] = score[better], i
        for row, colors in enumerate(wholes):
            whole = start + row
            near = np.flatnonzero((best[row] >= MIN_SIMILARITY) & (cluster != cluster[whole]))
            for i in np.unique(best_view[row, near]).tolist():
                parts = near[best_view[row, near] == i]
                moved = _rough_displacements(rough[parts], slopes[parts], colors, _VIEWS[i])
                for part in parts[moved <= ROUGH_DISPLACEMENT].tolist():
                    yield part, whole, _VIEWS[i]
        advance(len(wholes), "")


def _sketches(smalls: Sequence[bytes]) -> Iterator[tuple[Float32Array, Float32Array, Float32Array]]:
    """For batches of images: signatures, rough luminances, and how steep their parts are."""
    for start in range(0, len(smalls), _AT_ONCE):
        luma = _colors(smalls[start : start + _AT_ONCE]) @ _LUMA
        rough = _block_means(_blurred(luma, (1, 2), _ROUGH_BLURS), _ROUGH_PX)
        yield _signature(luma), rough, _steepness(rough)


def _colors(smalls: Sequence[bytes]) -> Float32Array:
    """(n, 64, 64, 3) in [0, 1]."""
    rgb = np.stack([np.frombuffer(small, np.uint8) for small in smalls])
    return np.asarray(rgb.reshape(-1, SMALL_PX, SMALL_PX, 3) / np.float32(255), np.float32)


def _signature(luma: Float32Array) -> Float32Array:
    """(n, 64, 64) luminances in [0, 1] to (n, 256) unit vectors; shorter for flat images."""
    flat = _block_means(luma, 16).reshape(len(luma), -1)
    flat = flat - flat.mean(1, keepdims=True)
    # 16 is the length when the samples differ by one level.
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 16 / 255))


def _rough_displacements(
    parts: Float32Array, steep: Float32Array, whole: Float32Array, view: View
) -> Float32Array:
    """(n,): how far the worst part of each of n pictures is from where ``whole`` shows it.

    As ``_displacements``, with the four cuts of the window free as well, to first order: the fit
    is linear, so one small system serves all n.

    Args:
        parts: (n, 32, 32) luminances.
        steep: (n, 8, 8), their ``_steepness``.
        whole: (64, 64, 3).
        view: of the whole that is compared.
    """
    window, mirrored = view
    channels = np.moveaxis(whole[:, ::-1] if mirrored else whole, -1, 0)
    colors = np.moveaxis(_block_means(_warp(channels, window), _ROUGH_PX), 0, -1)
    luma = colors @ _LUMA
    basis = np.concatenate([_cut_slopes(luma), _quadratic(colors)], 1)
    normal = basis.T @ basis
    normal += np.diag([*(1e-3 * np.diag(normal)[:4] + 1e-9), *[1e-4 * len(basis)] * 10])
    solver = np.linalg.solve(normal, basis.T).astype(np.float32)
    error = (parts - luma).reshape(len(parts), -1)
    error -= error @ solver.T @ basis.T.astype(np.float32)
    error = _block_means((error**2).reshape(parts.shape), _PARTS)
    return np.asarray(np.sqrt((error / (steep + _NOISE)).max((1, 2))))


def _steepness(luma: Float32Array) -> Float32Array:
    """(..., n, n) luminances to (..., 8, 8) mean squares of their slope per 1/128 of a side."""
    down, right = np.gradient(luma, _SIDE_PX / luma.shape[-1], axis=(-2, -1))
    return _block_means(np.asarray(down**2 + right**2, np.float32), _PARTS)


def _block_means(images: Float32Array, blocks: int) -> Float32Array:
    """(..., h, w) to (..., blocks, blocks)."""
    *lead, height, width = images.shape
    shape = (*lead, blocks, height // blocks, blocks, width // blocks)
    return np.asarray(images.reshape(shape).mean((-3, -1)))


def _warp(images: Float32Array, cuts: Sequence[float]) -> Float32Array:
    """The window of (..., n, n) images without the shares ``cuts``, bilinear, at the same size."""
    left, right, top, bottom = cuts
    rows, columns = (_samples(images.shape[-1], *c) for c in ((top, bottom), (left, right)))
    return np.asarray(rows @ images @ columns.T)


def _samples(n: int, before: float, after: float) -> Float32Array:
    """(n, n) weights that sample n points between two cuts from n points."""
    at = (before + (1 - before - after) * (np.arange(n) + 0.5) / n) * n - 0.5
    at = np.clip(at, 0, n - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n))), np.float32)


def read_picture(thumbnail: bytes) -> Picture:
    """An ``ImageFacts.thumbnail`` as it is compared."""
    with Image.open(io.BytesIO(thumbnail)) as image:
        rgb = image.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
    # Two binomial filters: single pixels changed by compression and resampling do not count.
    smooth = _blurred(np.asarray(np.asarray(rgb) / np.float32(255), np.float32), (0, 1), 2)
    return Picture(smooth, np.asarray(smooth @ _LUMA))


def _blurred(images: Float32Array, axes: Sequence[int], times: int) -> Float32Array:
    """A binomial filter of three samples along each axis, repeated."""
    for axis in tuple(axes) * times:
        padded = np.pad(images, [(int(a == axis),) * 2 for a in range(images.ndim)], mode="edge")
        low, middle, high = (padded.take(range(i, i + images.shape[axis]), axis) for i in range(3))
        images = np.asarray((low + 2 * middle + high) / 4, np.float32)
    return images


def is_relabeled(a: Picture, b: Picture) -> bool:
    """Whether little has moved once colors are matched: another logo, other colors."""
    changed = (
        (_displacements(x.luma, y.colors) > VARIANT_DISPLACEMENT).sum() for x, y in ((a, b), (b, a))
    )
    return bool(min(changed) <= MAX_CHANGED)


def is_copy(part: Picture, whole: Picture, view: View) -> bool:
    """Whether nothing in ``part`` has moved against about this view of ``whole``."""
    window, mirrored = view
    colors, luma = whole.colors, whole.luma
    if mirrored:
        colors, luma = colors[:, ::-1], luma[:, ::-1]
    cuts = np.array(window)
    for side, steps in ((32, 6), (64, 3)):
        cuts = _align(_block_means(part.luma, side), _block_means(luma, side), cuts, steps)
    warped = np.moveaxis(_warp(np.moveaxis(colors, -1, 0), cuts.tolist()), 0, -1)
    return bool(_displacements(part.luma, warped).max() <= COPY_DISPLACEMENT)


def _align(
    part: Float32Array, whole: Float32Array, cuts: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """Improve the four cuts, with brightness and contrast free, by Gauss-Newton steps.

    Lucas and Kanade 1981, with a window that stays inside the picture: a moved camera makes no
    copy.
    """
    for _ in range(steps):
        warped = _warp(whole, cuts.tolist())
        flat = warped.ravel()
        basis = np.column_stack([_cut_slopes(warped), np.ones_like(flat), flat]).astype(np.float64)
        normal = basis.T @ basis
        normal += np.diag(1e-3 * np.diag(normal) + 1e-9)
        step = np.linalg.solve(normal, basis.T @ (part - warped).ravel())
        cuts = np.clip(cuts + step[:4], *_CUT_RANGE)
    return cuts


def _displacements(luma: Float32Array, colors: Float32Array) -> Float32Array:
    """(8, 8): how far each part of a picture is from where another picture shows it, in pixels.

    The other's ``colors`` (n, n, 3) are first mapped to ``luma`` (n, n) by the quadratic that
    fits best, so that recoloring does not count. The residual e is explained by a shift by d:
    e = d·|∇luma|; noise of four levels (4/255) is added to the gradient, for flat parts.
    """
    basis = _quadratic(colors)
    prior = np.array([*_LUMA, 0, 0, 0, 0, 0, 0, 0])
    weight = 1e-4 * len(basis)
    normal = basis.T @ basis + weight * np.eye(10)
    fitted = basis @ np.linalg.solve(normal, basis.T @ luma.ravel() + weight * prior)
    error = _block_means((fitted.reshape(luma.shape) - luma) ** 2, _PARTS)
    return np.asarray(np.sqrt(error / (_steepness(luma) + _NOISE)), np.float32)


def _cut_slopes(luma: Float32Array) -> Float32Array:
    """(n * n, 4): derivatives of (n, n) luminances by the four cuts."""
    n = len(luma)
    at = (np.arange(n) + 0.5) / n
    down, right = (n * slope for slope in np.gradient(luma))
    slopes = [right * (1 - at), -right * at, down * (1 - at)[:, None], -down * at[:, None]]
    return np.stack(slopes, -1).reshape(-1, 4)


def _quadratic(colors: Float32Array) -> NDArray[np.float64]:
    """(n, n, 3) to (n * n, 10): the terms that model recoloring."""
    r, g, b = (colors[..., i].ravel().astype(np.float64) for i in range(3))
    return np.stack([r, g, b, np.ones_like(r), r * r, g * g, b * b, r * g, g * b, b * r], 1)

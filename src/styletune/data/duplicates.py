"""Images that are the same picture: byte for byte, recompressed, cut, mirrored or recoloured.

Cheap candidates first, for all pairs at once; then every candidate pair is laid over each other
and compared. Two pictures are variants when, aligned and with their colours matched,

- nothing is in another place anywhere (a copy: JPEG, another size, cropped, mirrored, tinted), or
- little is, and the whole has the same structure (another logo on one motif, other colours).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.facts import SMALL_PX, ImageFacts

Floats = NDArray[np.float32]

# Of 768 bits. Seen on flat vector art and photographs: colour variants of one picture differ in
# up to 36 bits, another logo on the same motif in up to 63, JPEG copies at 80 % size in up to
# 50; different pictures of one series in 82 and more, different photographs in 287 and more.
MAX_DISTANCE = 72
# Correlation of 16×16 luminances that makes a candidate. Copies of procedural scenes have 0.992
# and more; of two different scenes in the same style, one pair in 2,000 has 0.98 and more.
MIN_SIMILARITY = 0.985
# Of the 64 parts of a picture, those may differ that another logo covers: up to 6 were seen.
MAX_CHANGED = 8
# How far a part may seem to have moved, in 1/128 of the picture's side (see _displacements).
# Of copies 98 % stay below 0.55 in every part; different scenes reach it in two of 100,000 pairs.
COPY_DISPLACEMENT = 0.55
VARIANT_DISPLACEMENT = 0.5

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


@dataclass(frozen=True, slots=True)
class Group:
    """Files that show the same picture, or (motif) nearly the same thing; sorted names."""

    kind: Literal["exact", "near", "motif"]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture at 128×128, slightly blurred, in [0, 1]: colours (128, 128, 3) and luminance."""

    colors: Floats
    luma: Floats


def perceptual_hash(image: Image.Image) -> int:
    """768 bits of the structure of the luminance, as one number.

    imagehash's horizontal and vertical difference hashes see edges and survive recolouring;
    on nearly empty images they are nearly constant, so its DCT hash, always balanced, is added
    (16×16 each).
    """
    import imagehash

    small = image.convert("L").resize((256, 256), Image.Resampling.BOX)
    parts = (
        imagehash.dhash(small, 16),
        imagehash.dhash_vertical(small, 16),
        imagehash.phash(small, 16),
    )
    bits = np.concatenate([part.hash.ravel() for part in parts])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def duplicate_groups(facts: Mapping[str, ImageFacts]) -> list[Group]:
    """The groups of two files and more (by file name) that show one picture, exact ones first.

    Recompressed, resized, cropped (by about 5 %), mirrored, tinted, recoloured and relabelled
    copies are found. A near group is everything that is linked by such pairs, exact copies
    included.
    """
    hashes = {name: fact.pixel_hash for name, fact in facts.items()}
    return _groups(hashes, _variants({name: facts[name] for name in _first_of_each(hashes)}))


def families(files: Iterable[str], groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Every file in exactly one family, sorted; a file without duplicates is its own."""
    links = [(group.files[0], file) for group in groups for file in group.files[1:]]
    return _components(sorted(files), links)


def _first_of_each(hashes: Mapping[str, str]) -> list[str]:
    """One file for each pixel hash, sorted."""
    return sorted({hashes[file]: file for file in sorted(hashes, reverse=True)}.values())


def _groups(hashes: Mapping[str, str], links: Iterable[tuple[str, str]]) -> list[Group]:
    by_pixels: dict[str, list[str]] = {}
    for file in sorted(hashes):
        by_pixels.setdefault(hashes[file], []).append(file)
    exact = [Group("exact", tuple(files)) for files in by_pixels.values() if len(files) > 1]
    near = [
        Group("near", tuple(sorted(f for one in linked for f in by_pixels[hashes[one]])))
        for linked in _components([files[0] for files in by_pixels.values()], links)
        if len(linked) > 1
    ]
    return sorted(exact, key=lambda g: g.files) + sorted(near, key=lambda g: g.files)


def _components(items: Sequence[str], links: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Connected components by union-find, each and all in the order of ``items``."""
    parent = {item: item for item in items}
    for a, b in links:
        parent[_root(parent, b)] = _root(parent, a)
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(_root(parent, item), []).append(item)
    return [tuple(members) for members in found.values()]


def _root(parent: dict[str, str], item: str) -> str:
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


def _variants(facts: Mapping[str, ImageFacts]) -> Iterator[tuple[str, str]]:
    """Pairs that show one picture, enough to link all that do."""
    names = list(facts)
    parent = {name: name for name in names}

    @lru_cache(maxsize=512)
    def picture(name: str) -> _Picture:
        return _read_picture(facts[name].thumbnail)

    for i, j in _close_structures([fact.structure for fact in facts.values()]):
        a, b = names[i], names[j]
        if _root(parent, a) != _root(parent, b) and _is_relabelled(picture(a), picture(b)):
            parent[_root(parent, b)] = _root(parent, a)
            yield a, b
    for i, j, window, mirrored in _close_luminances([fact.small for fact in facts.values()]):
        a, b = names[i], names[j]
        if _root(parent, a) != _root(parent, b) and _is_copy(
            picture(a), picture(b), window, mirrored
        ):
            parent[_root(parent, b)] = _root(parent, a)
            yield a, b


def _close_structures(hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of at most ``MAX_DISTANCE`` differing bits."""
    raw = b"".join(number.to_bytes(96, "big") for number in hashes)
    bits = np.frombuffer(raw, np.uint64).reshape(len(hashes), 12)
    for a in range(len(bits) - 1):
        distances = np.bitwise_count(bits[a + 1 :] ^ bits[a]).sum(1, dtype=np.int64)
        for b in np.flatnonzero(distances <= MAX_DISTANCE):
            yield a, a + 1 + int(b)


def _close_luminances(
    smalls: Sequence[bytes],
) -> Iterator[tuple[int, int, tuple[float, ...], bool]]:
    """Pairs (part, whole, window, mirrored) that correlate, part with a window of the whole."""
    if len(smalls) < 2:
        return
    rgb = np.stack([np.frombuffer(small, np.uint8) for small in smalls])
    luma = rgb.reshape(-1, SMALL_PX, SMALL_PX, 3).astype(np.float32) @ _LUMA
    ways = [(window, mirrored) for mirrored in (False, True) for window in _WINDOWS]
    seen = [_signature(_warp(luma[:, :, ::-1] if m else luma, w)) for w, m in ways]
    rows = 256
    for start in range(0, len(luma), rows):
        parts = seen[0][start : start + rows]
        best = np.full((len(parts), len(luma)), -1, np.float32)
        way = np.zeros(best.shape, np.uint8)
        for i, windows in enumerate(seen):
            score = parts @ windows.T
            better = score > best
            best[better], way[better] = score[better], i
        for row, whole in np.argwhere(best >= MIN_SIMILARITY).tolist():
            if start + row != whole:
                yield start + row, whole, *ways[way[row, whole]]


def _signature(luma: Floats) -> Floats:
    """(n, 64, 64) luminances 0-255 to (n, 256) unit vectors; short ones where all is flat."""
    flat = _block_means(luma, 16).reshape(len(luma), -1)
    flat = flat - flat.mean(1, keepdims=True)
    # 16 is the length when the samples differ by one level.
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 16))


def _block_means(images: Floats, blocks: int) -> Floats:
    """(..., h, w) to (..., blocks, blocks)."""
    *lead, height, width = images.shape
    shape = (*lead, blocks, height // blocks, blocks, width // blocks)
    return np.asarray(images.reshape(shape).mean((-3, -1)))


def _warp(images: Floats, cuts: Sequence[float]) -> Floats:
    """The window of (..., n, n) images without the shares ``cuts``, bilinear, at the same size."""
    left, right, top, bottom = cuts
    rows, columns = (_samples(images.shape[-1], *c) for c in ((top, bottom), (left, right)))
    return np.asarray(rows @ images @ columns.T)


def _samples(n: int, before: float, after: float) -> Floats:
    """(n, n) weights that sample n points between two cuts from n points."""
    at = (before + (1 - before - after) * (np.arange(n) + 0.5) / n) * n - 0.5
    at = np.clip(at, 0, n - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n))), np.float32)


def _read_picture(thumbnail: bytes) -> _Picture:
    with Image.open(io.BytesIO(thumbnail)) as image:
        rgb = image.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
    colors = np.asarray(rgb, np.float32) / 255
    # Two binomial filters: what compression and resampling do to single pixels does not count.
    for axis in (0, 1, 0, 1):
        padded = np.pad(colors, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        low, middle, high = (padded.take(range(i, i + _SIDE_PX), axis) for i in range(3))
        colors = (low + 2 * middle + high) / 4
    smooth: Floats = np.asarray(colors, np.float32)
    return _Picture(smooth, np.asarray(smooth @ _LUMA))


def _is_relabelled(a: _Picture, b: _Picture) -> bool:
    changed = (
        (_displacements(x.luma, y.colors) > VARIANT_DISPLACEMENT).sum() for x, y in ((a, b), (b, a))
    )
    return bool(min(changed) <= MAX_CHANGED)


def _is_copy(part: _Picture, whole: _Picture, window: Sequence[float], mirrored: bool) -> bool:
    colors, luma = whole.colors, whole.luma
    if mirrored:
        colors, luma = colors[:, ::-1], luma[:, ::-1]
    cuts = np.array(window)
    for side, steps in ((32, 6), (64, 3)):
        cuts = _align(_block_means(part.luma, side), _block_means(luma, side), cuts, steps)
    seen = np.moveaxis(_warp(np.moveaxis(colors, -1, 0), cuts.tolist()), 0, -1)
    return bool(_displacements(part.luma, seen).max() <= COPY_DISPLACEMENT)


def _align(
    part: Floats, whole: Floats, cuts: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """Improve the four cuts, with brightness and contrast free, by Gauss-Newton steps.

    Lucas and Kanade 1981, with a window that stays within the picture: a moved camera is no copy.
    """
    n = len(part)
    at = (np.arange(n) + 0.5) / n
    for _ in range(steps):
        seen = _warp(whole, cuts.tolist())
        down, right = (n * slope for slope in np.gradient(seen))
        slopes = [right * (1 - at), -right * at, down * (1 - at)[:, None], -down * at[:, None]]
        basis = np.stack([*slopes, np.ones_like(seen), seen], -1).reshape(-1, 6).astype(np.float64)
        normal = basis.T @ basis
        normal += np.diag(1e-3 * np.diag(normal) + 1e-9)
        step = np.linalg.solve(normal, basis.T @ (part - seen).ravel())
        cuts = np.clip(cuts + step[:4], *_CUT_RANGE)
    return cuts


def _displacements(luma: Floats, colors: Floats) -> Floats:
    """(8, 8): how far each part of a picture is from where another picture shows it, in pixels.

    The other's ``colors`` (n, n, 3) are first mapped to ``luma`` (n, n) by the quadratic that
    fits best, so that recolouring does not count. What is left, e, is put down to a shift by d:
    e = d·|∇luma|; noise of four levels (4/255) stands beside the gradient where all is flat.
    """
    r, g, b = (colors[..., i].ravel().astype(np.float64) for i in range(3))
    basis = np.stack([r, g, b, np.ones_like(r), r * r, g * g, b * b, r * g, g * b, b * r], 1)
    prior = np.array([*_LUMA, 0, 0, 0, 0, 0, 0, 0])
    weight = 1e-4 * len(basis)
    normal = basis.T @ basis + weight * np.eye(10)
    fitted = basis @ np.linalg.solve(normal, basis.T @ luma.ravel() + weight * prior)
    error = _block_means((fitted.reshape(luma.shape) - luma) ** 2, _PARTS)
    down, right = np.gradient(luma)
    slope = _block_means(np.asarray(down**2 + right**2, np.float32), _PARTS)
    return np.asarray(np.sqrt(error / (slope + (4 / 255) ** 2)), np.float32)

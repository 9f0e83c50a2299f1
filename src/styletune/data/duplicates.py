"""Images that are the same picture: byte for byte, recompressed, relabelled or recoloured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from PIL import Image

# Of 768 bits. Seen on flat vector art and photographs: colour variants of one picture differ in
# up to 36 bits, another logo on the same motif in up to 63, JPEG copies at 80 % size in up to
# 50; different pictures of one series in 82 and more, different photographs in 287 and more.
MAX_DISTANCE = 72


@dataclass(frozen=True, slots=True)
class Group:
    """Files that show the same picture; sorted names."""

    kind: Literal["exact", "near"]
    files: tuple[str, ...]


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


def group_duplicates(
    hashes: Mapping[str, str], perceptual: Mapping[str, int], *, max_distance: int = MAX_DISTANCE
) -> list[Group]:
    """Find the groups of two files and more, exact ones first.

    A near group is everything linked by steps of at most ``max_distance``, exact copies
    included; mirrored and heavily cropped copies are not recognised.

    Args:
        hashes: file name to ``pixel_hash``.
        perceptual: file name to ``perceptual_hash``, for the same files.
        max_distance: Hamming distance of two perceptual hashes that still links them.
    """
    by_pixels: dict[str, list[str]] = {}
    for file in sorted(hashes):
        by_pixels.setdefault(hashes[file], []).append(file)
    exact = [Group("exact", tuple(files)) for files in by_pixels.values() if len(files) > 1]
    first = [files[0] for files in by_pixels.values()]
    links = [
        pair
        for pair in combinations(first, 2)
        if (perceptual[pair[0]] ^ perceptual[pair[1]]).bit_count() <= max_distance
    ]
    near = [
        Group("near", tuple(sorted(f for one in linked for f in by_pixels[hashes[one]])))
        for linked in _components(first, links)
        if len(linked) > 1
    ]
    return sorted(exact, key=lambda g: g.files) + sorted(near, key=lambda g: g.files)


def families(files: Iterable[str], groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Every file in exactly one family, sorted; a file without duplicates is its own."""
    links = [(group.files[0], file) for group in groups for file in group.files[1:]]
    return _components(sorted(files), links)


def _components(items: Sequence[str], links: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Connected components by union-find, each and all in the order of ``items``."""
    parent = {item: item for item in items}

    def root(item: str) -> str:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in links:
        parent[root(b)] = root(a)
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(root(item), []).append(item)
    return [tuple(members) for members in found.values()]

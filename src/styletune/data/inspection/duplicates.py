"""Images that are the same picture: byte for byte, recompressed, cut, mirrored or recoloured.

Cheap candidates first, for all pairs at once; then every candidate pair is laid over each other
and compared. Two pictures are variants when, aligned and with their colours matched,

- nothing is in another place anywhere (a copy: JPEG, another size, cropped, mirrored, tinted), or
- little is, and the whole has the same structure (another logo on one motif, other colours).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from styletune.data.inspection.copies import (
    Picture,
    is_copy,
    is_relabelled,
    likely_copies,
    read_picture,
)
from styletune.data.inspection.facts import ImageFacts

# Of 768 bits. Seen on flat vector art and photographs: colour variants of one picture differ in
# up to 36 bits, another logo on the same motif in up to 63, JPEG copies at 80 % size in up to
# 50; different pictures of one series in 82 and more, different photographs in 287 and more.
MAX_DISTANCE = 72


@dataclass(frozen=True, slots=True)
class Group:
    """Files that show the same picture, or (motif) nearly the same thing; sorted names."""

    kind: Literal["exact", "near", "motif"]
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
    family = np.arange(len(names))

    @lru_cache(maxsize=512)
    def picture(i: int) -> Picture:
        return read_picture(facts[names[i]].thumbnail)

    def link(a: int, b: int) -> tuple[str, str]:
        family[family == family[b]] = family[a]
        return names[a], names[b]

    for a, b in _close_structures([fact.structure for fact in facts.values()]):
        if family[a] != family[b] and is_relabelled(picture(a), picture(b)):
            yield link(a, b)
    for part, whole, way in likely_copies([fact.small for fact in facts.values()], family):
        if family[part] != family[whole] and is_copy(picture(part), picture(whole), way):
            yield link(part, whole)


def _close_structures(hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of at most ``MAX_DISTANCE`` differing bits."""
    raw = b"".join(number.to_bytes(96, "big") for number in hashes)
    bits = np.frombuffer(raw, np.uint64).reshape(len(hashes), 12)
    for a in range(len(bits) - 1):
        distances = np.bitwise_count(bits[a + 1 :] ^ bits[a]).sum(1, dtype=np.int64)
        for b in np.flatnonzero(distances <= MAX_DISTANCE):
            yield a, a + 1 + int(b)

"""Images that show the same picture: identical, recompressed, cropped, mirrored or recolored.

Cheap candidates first, for all pairs at once; then every candidate pair is aligned and compared.
Two pictures are variants if, aligned and with their colors matched,

- nothing has moved anywhere (a copy: JPEG, another size, cropped, mirrored, tinted), or
- little has, and the whole has the same structure (another logo on one motif, other colors).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.findings import Finding, finding
from styletune.data.inspection.copies import (
    Picture,
    is_copy,
    is_relabeled,
    likely_copies,
    read_picture,
)
from styletune.data.inspection.facts import ImageFacts
from styletune.progress import Advance, progress

# Of 768 bits. Measured on flat vector art and photographs: color variants of one picture differ
# in up to 36 bits, another logo on the same motif in up to 63, JPEG copies at 80 % size in up to
# 50; different pictures of one series in at least 82, different photographs in at least 287.
MAX_DISTANCE = 72
_SHOWN_FROM = 500  # images; fewer are compared at once


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """Files that show the same picture, or (motif) nearly the same thing; names are sorted."""

    kind: Literal["exact", "near", "motif"]
    files: tuple[str, ...]


def perceptual_hash(image: Image.Image) -> int:
    """768 bits of the structure of the luminance, as one number.

    imagehash's horizontal and vertical difference hashes see edges and survive recoloring;
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


def duplicate_groups(
    facts: Mapping[str, ImageFacts], *, show_progress: bool = False
) -> list[ImageGroup]:
    """The groups of at least two files that show one picture, exact ones first.

    Recompressed, resized, cropped (by about 5 %), mirrored, tinted, recolored and relabeled copies
    are found. A near group is everything linked by such pairs, exact copies included.

    Args:
        facts: by file name.
        show_progress: draw a progress bar on stderr; every image is compared with every other, so
            a large set takes minutes.
    """
    hashes = {name: fact.pixel_hash for name, fact in facts.items()}
    different = {name: facts[name] for name in _first_of_each(hashes)}
    shown = show_progress and len(different) >= _SHOWN_FROM
    with progress("Comparing images", len(different), shown=shown) as advance:
        return _groups(hashes, _variants(different, advance))


def clusters(files: Iterable[str], groups: Sequence[ImageGroup]) -> list[tuple[str, ...]]:
    """The files partitioned so that groups stay together, sorted; most files are alone."""
    links = [(group.files[0], file) for group in groups for file in group.files[1:]]
    return _components(sorted(files), links)


def _first_of_each(hashes: Mapping[str, str]) -> list[str]:
    """One file per pixel hash, sorted."""
    return sorted({hashes[file]: file for file in sorted(hashes, reverse=True)}.values())


def _groups(hashes: Mapping[str, str], links: Iterable[tuple[str, str]]) -> list[ImageGroup]:
    by_pixels: dict[str, list[str]] = {}
    for file in sorted(hashes):
        by_pixels.setdefault(hashes[file], []).append(file)
    exact = [ImageGroup("exact", tuple(files)) for files in by_pixels.values() if len(files) > 1]
    near = [
        ImageGroup("near", tuple(sorted(f for one in linked for f in by_pixels[hashes[one]])))
        for linked in _components([files[0] for files in by_pixels.values()], links)
        if len(linked) > 1
    ]
    return sorted(exact, key=lambda g: g.files) + sorted(near, key=lambda g: g.files)


def _components(items: Sequence[str], links: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Connected components by union-find, each and all in the order of ``items``."""
    parent = {item: item for item in items}
    for a, b in links:
        parent[_root(parent, b)] = _root(parent, a)
    components: dict[str, list[str]] = {}
    for item in items:
        components.setdefault(_root(parent, item), []).append(item)
    return [tuple(members) for members in components.values()]


def _root(parent: dict[str, str], item: str) -> str:
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


def _variants(facts: Mapping[str, ImageFacts], advance: Advance) -> Iterator[tuple[str, str]]:
    """Pairs that show one picture, enough to link all that do."""
    names = list(facts)
    cluster = np.arange(len(names))

    @lru_cache(maxsize=512)
    def picture(i: int) -> Picture:
        return read_picture(facts[names[i]].thumbnail)

    def link(a: int, b: int) -> tuple[str, str]:
        cluster[cluster == cluster[b]] = cluster[a]
        return names[a], names[b]

    for a, b in _close_structures([fact.structure for fact in facts.values()], cluster):
        if cluster[a] != cluster[b] and is_relabeled(picture(a), picture(b)):
            yield link(a, b)
    smalls = [fact.small for fact in facts.values()]
    for part, whole, view in likely_copies(smalls, cluster, advance):
        if cluster[part] != cluster[whole] and is_copy(picture(part), picture(whole), view):
            yield link(part, whole)


def _close_structures(
    hashes: Sequence[int], cluster: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Pairs of at most ``MAX_DISTANCE`` differing bits that are not in one cluster already.

    Of nearly empty images all pairs are close, so what is linked must not come again.
    """
    raw = b"".join(number.to_bytes(96, "big") for number in hashes)
    bits = np.frombuffer(raw, np.uint64).reshape(len(hashes), 12)
    for a in range(len(bits) - 1):
        distances = np.bitwise_count(bits[a + 1 :] ^ bits[a]).sum(1, dtype=np.int64)
        close = (distances <= MAX_DISTANCE) & (cluster[a + 1 :] != cluster[a])
        for b in np.flatnonzero(close):
            yield a, a + 1 + int(b)


def duplicate_findings(groups: Sequence[ImageGroup]) -> list[Finding]:
    """One finding per group of copies or variants."""
    codes = {
        "exact": ("exact-duplicates", "show exactly the same pixels"),
        "near": (
            "near-duplicates",
            "are variants of one picture; they stay on one side of the split",
        ),
    }
    fix = "keep the best of them: repeats weigh more in training and are memorized"
    findings = []
    for group in groups:
        if group.kind != "motif":
            code, relation = codes[group.kind]
            message = f"{len(group.files)} images {relation}"
            findings.append(finding(code, group.files, message, fix))
    return findings

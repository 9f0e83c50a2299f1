"""Variants of a caption, so that its parts are learned independently of their order."""

from __future__ import annotations

import hashlib
import json
import random

SEPARATOR = ","


def caption_variants(
    text: str, k: int, *, shuffle: bool, keep_first: int, tag_dropout: float, seed: int
) -> list[str]:
    """Make ``k`` variants of a caption; the first is the caption itself.

    A pure function, so a resumed run and another process get the same ones. Variants may repeat
    if there are fewer orders than variants.

    Args:
        text: comma-separated parts.
        k: at least 1.
        shuffle: reorder the parts.
        keep_first: this many parts at the start are neither moved nor dropped.
        tag_dropout: probability of dropping each other part, in [0, 1); one part always stays.
        seed: a different one gives different variants.
    """
    assert k >= 1
    parts = [part.strip() for part in text.split(SEPARATOR) if part.strip()]
    head, tail = parts[:keep_first], parts[keep_first:]
    variants = [text]
    for index in range(1, k):
        # Of Random's methods, only random() gives the same numbers in every version of Python.
        uniform = random.Random(_seed(seed, text, index)).random
        kept = [part for part in tail if uniform() >= tag_dropout]
        if not head and not kept:
            kept = [parts[int(uniform() * len(parts))]] if parts else [text]
        if shuffle:
            kept.sort(key=lambda _: uniform())
        variants.append(f"{SEPARATOR} ".join([*head, *kept]))
    return variants


def _seed(*key: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big")

"""Variants of a caption, so that its parts are learnt apart from their order."""

from __future__ import annotations

import hashlib
import json
import random

SEPARATOR = ","


def caption_variants(
    text: str, k: int, *, shuffle: bool, keep_first: int, tag_dropout: float, seed: int
) -> list[str]:
    """Make ``k`` variants of a caption; the first is the caption itself.

    A pure function, so that a resumed run and another process have the same ones. Variants may
    repeat each other, where there are fewer orders than variants.

    Args:
        text: parts separated by commas.
        k: at least 1.
        shuffle: put the parts in other orders.
        keep_first: so many parts at the start neither move nor vanish.
        tag_dropout: chance of each other part to be left out, in [0, 1); one always stays.
        seed: another one gives other variants.
    """
    assert k >= 1
    parts = [part.strip() for part in text.split(SEPARATOR) if part.strip()]
    head, tail = parts[:keep_first], parts[keep_first:]
    variants = [text]
    for index in range(1, k):
        # Only random() is promised to give the same numbers in every version of Python.
        draw = random.Random(_seed(seed, text, index)).random
        kept = [part for part in tail if draw() >= tag_dropout]
        if not head and not kept:
            kept = [parts[int(draw() * len(parts))]] if parts else [text]
        if shuffle:
            kept.sort(key=lambda _: draw())
        variants.append(f"{SEPARATOR} ".join([*head, *kept]))
    return variants


def _seed(*key: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big")

"""Which entries make up a batch: a pure function, so a resumed run sees the same ones.

Shapes differ between buckets, so a batch is of one bucket. What is left over in a bucket is a
smaller batch: nothing is dropped and nothing repeated to fill it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

Batch = tuple[int, ...]
T = TypeVar("T")


def batches_per_epoch(bucket_of: Sequence[int], batch_size: int) -> int:
    """Batches in which every entry comes once; ``bucket_of`` is the bucket of each entry."""
    return _count(tuple(bucket_of), batch_size)


@lru_cache(maxsize=4)
def _count(bucket_of: tuple[int, ...], batch_size: int) -> int:
    return sum(-(-count // batch_size) for count in Counter(bucket_of).values())


def step_batch(
    seed: int,
    step: int,
    micro: int,
    *,
    bucket_of: Sequence[int],
    batch_size: int,
    accumulation: int,
) -> list[int]:
    """The entries of one batch.

    In every epoch each entry comes once, in an order of its own by (seed, epoch), within its
    bucket; the order of the batches is drawn too.

    Args:
        seed: of the run.
        step: optimizer step, from 0.
        micro: batch within the step, from 0 to ``accumulation`` - 1.
        bucket_of: (n) number of the bucket of each entry.
        batch_size: entries in a full batch, of all processes together.
        accumulation: batches a step.

    Returns:
        1 to ``batch_size`` indices of entries of one bucket.
    """
    assert 0 <= micro < accumulation
    of = tuple(bucket_of)
    epoch, place = divmod(step * accumulation + micro, batches_per_epoch(of, batch_size))
    return list(_epoch(seed, epoch, of, batch_size)[place])


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, bucket_of: tuple[int, ...], batch_size: int) -> tuple[Batch, ...]:
    members: dict[int, list[int]] = {}
    for entry, bucket in enumerate(bucket_of):
        members.setdefault(bucket, []).append(entry)
    batches = []
    for bucket in sorted(members):
        order = _shuffled(members[bucket], f"{seed}/{epoch}/{bucket}")
        batches += [tuple(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    return tuple(_shuffled(batches, f"{seed}/{epoch}/batches"))


def _shuffled(items: Sequence[T], key: str) -> list[T]:
    digest = hashlib.sha256(key.encode()).digest()
    # Only random() is promised to give the same numbers in every version of Python.
    draw = random.Random(int.from_bytes(digest[:8], "big")).random
    return sorted(items, key=lambda _: draw())

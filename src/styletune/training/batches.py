"""Which entries make up a batch: a pure function, so a resumed run sees the same ones.

Shapes differ between buckets, so a batch is of one bucket. What is left over in a bucket is a
smaller batch: nothing is dropped and nothing repeated to fill it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from styletune.recipe.training_sections import TrainSection

Batch = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Entries of one bucket at an optimizer step (0-based).

    ``positions`` are their places in the step's global batch, from which their noise follows.
    """

    step: int
    entries: Sequence[int]
    positions: Sequence[int]

    def share(self, process: int, processes: int) -> MicroBatch:
        """The part of one process; empty where the batch is smaller than their number."""
        mine = slice(process, None, processes)
        return MicroBatch(self.step, self.entries[mine], self.positions[mine])


def micro_batches(
    train: TrainSection,
    step: int,
    epoch: Sequence[int],
    epoch_buckets: Sequence[int],
    processes: int,
) -> list[MicroBatch]:
    """The step's micro-batches, each of all processes together.

    Args:
        train: its ``seed``, ``batch_size`` (per process) and accumulation are used.
        step: optimizer step, 0-based.
        epoch: the entries of an epoch, each as often as it is repeated.
        epoch_buckets: the bucket of each of them.
        processes: how many share the global batch.
    """
    size = train.batch_size * processes
    batches = []
    for micro in range(train.gradient_accumulation_steps):
        places = step_batch(
            train.seed,
            step,
            micro,
            bucket_of=epoch_buckets,
            batch_size=size,
            accumulation=train.gradient_accumulation_steps,
        )
        positions = range(micro * size, micro * size + len(places))
        batches.append(MicroBatch(step, [epoch[place] for place in places], positions))
    return batches


def batches_per_epoch(bucket_of: Sequence[Hashable], batch_size: int) -> int:
    """Batches in which every entry comes once; ``bucket_of`` is the bucket of each entry."""
    return _count(tuple(bucket_of), batch_size)


def batch_sizes(bucket_of: Sequence[Hashable], batch_size: int) -> tuple[int, int]:
    """(fewest, most) entries of the batches of an epoch; at least one entry is given."""
    counts = Counter(bucket_of).values()
    fewest = min(count % batch_size or batch_size for count in counts)
    return fewest, max(min(count, batch_size) for count in counts)


@lru_cache(maxsize=4)
def _count(bucket_of: tuple[Hashable, ...], batch_size: int) -> int:
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

    In every epoch each entry comes once, in an order that depends on (seed, epoch), within its
    bucket; the order of the batches is shuffled too.

    Args:
        seed: of the run.
        step: optimizer step, from 0.
        micro: batch within the step, from 0 to ``accumulation`` - 1.
        bucket_of: (n) number of the bucket of each entry.
        batch_size: entries in a full batch, of all processes together.
        accumulation: batches per step.

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
    # Only random() is guaranteed to give the same numbers in every version of Python.
    uniform = random.Random(int.from_bytes(digest[:8], "big")).random
    return sorted(items, key=lambda _: uniform())

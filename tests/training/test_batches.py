"""Which entries make up which batch."""

from __future__ import annotations

import time

import pytest

from styletune.training.batches import batches_per_epoch, step_batch

BUCKETS = (0, 1, 0, 2, 1, 0, 0, 1, 0, 0, 1)  # 6, 4 and 1 entries


def epoch_of(
    number: int, seed: int = 3, size: int = 4, of: tuple[int, ...] = BUCKETS
) -> list[list[int]]:
    count = batches_per_epoch(of, size)
    return [
        step_batch(seed, number * count + i, 0, bucket_of=of, batch_size=size, accumulation=1)
        for i in range(count)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_every_entry_comes_once_an_epoch(size: int, number: int) -> None:
    """Nothing is dropped or repeated to fill a batch, and each batch is of one bucket."""
    batches = epoch_of(number, size=size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(BUCKETS)))
    assert all(len({BUCKETS[i] for i in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= size for batch in batches)


def test_only_the_rest_of_a_bucket_is_ragged() -> None:
    """Of 6, 4 and 1 entries in fours come batches of 4 + 2, 4 and 1."""
    assert batches_per_epoch(BUCKETS, 4) == 4
    by_bucket: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for batch in epoch_of(0):
        by_bucket[BUCKETS[batch[0]]].append(len(batch))
    assert {b: sorted(sizes) for b, sizes in by_bucket.items()} == {0: [2, 4], 1: [4], 2: [1]}
    assert [len(b) for b in epoch_of(2, size=8, of=(0,) * 5)] == [5]


def test_orders_differ_by_epoch_and_seed() -> None:
    """Batches mix other entries, and buckets come in another order."""
    epochs = [epoch_of(n) for n in range(12)] + [epoch_of(0, seed=4)]
    assert len({str(e) for e in epochs}) == 13
    assert len({tuple(BUCKETS[b[0]] for b in e) for e in epochs}) > 4
    pairs = {tuple(sorted(b)) for e in epochs for b in e if BUCKETS[b[0]] == 0 and len(b) == 2}
    assert len(pairs) > 5


def test_a_batch_is_a_function_of_its_number() -> None:
    """Asked out of order, from a list, or as the second half of a step, it is the same batch."""
    straight = [batch for n in range(4) for batch in epoch_of(n)]
    for step in (7, 0, 5, 2):
        for micro in (1, 0):
            batch = step_batch(
                3, step, micro, bucket_of=list(BUCKETS), batch_size=4, accumulation=2
            )
            assert batch == straight[2 * step + micro]


def test_every_place_in_the_order_is_as_likely() -> None:
    """Over 3000 epochs an entry comes first about as often as any other."""
    of = (0,) * 6
    counts = [0] * 6
    for n in range(3000):
        counts[epoch_of(n, size=6, of=of)[0][0]] += 1
    assert all(abs(count - 500) < 90 for count in counts)


def test_a_step_costs_no_permutation() -> None:
    """Of 20,000 entries, 200 steps of an epoch take less than ten first steps of epochs."""
    of = tuple(i % 5 for i in range(20_000))

    def seconds(seeds: int, steps: int) -> float:
        start = time.process_time()
        for seed in range(seeds):
            for step in range(steps):
                step_batch(seed, step, 0, bucket_of=of, batch_size=4, accumulation=1)
        return time.process_time() - start

    assert seconds(1, 200) < seconds(10, 1)

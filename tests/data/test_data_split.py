"""The split: whole families, the wanted share, and rest for everyone else."""

from __future__ import annotations

import hashlib
import random

import pytest

from styletune.data.split import split_groups
from styletune.errors import DataError


def digest(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def singles(count: int, start: int = 0) -> list[list[str]]:
    return [[digest(i)] for i in range(start, start + count)]


def held(sides: dict[str, str]) -> set[str]:
    return {member for member, side in sides.items() if side == "holdout"}


@pytest.mark.parametrize("count", [2, 3, 7, 20, 97, 500])
@pytest.mark.parametrize("holdout", [0.05, 0.2, 0.5, 0.9, 0.999])
def test_share_is_met_and_no_side_is_empty(count: int, holdout: float) -> None:
    """Single images allow the nearest whole number, at least one each side."""
    taken = len(held(split_groups(singles(count), holdout)))
    assert 1 <= taken <= count - 1
    assert taken == min(max(1, round(holdout * count)), count - 1) or (
        abs(taken - holdout * count) <= 0.5
    )


def test_no_holdout_is_all_train() -> None:
    """A share of 0 holds out nothing, even when nothing could be divided."""
    assert held(split_groups(singles(1), 0)) == set()
    assert held(split_groups(singles(9), 0)) == set()


def test_families_never_straddle() -> None:
    """Over many random sets every family is on one side and the share is the nearest there is."""
    rng = random.Random(0)
    for trial in range(200):
        sizes = [rng.randint(1, 6) for _ in range(rng.randint(2, 12))]
        groups = [[digest((trial, i, j)) for j in range(n)] for i, n in enumerate(sizes)]
        target = rng.uniform(0.05, 0.6) * sum(sizes)
        sides = split_groups(groups, target / sum(sizes), "salt")
        assert all(len({sides[m] for m in group}) == 1 for group in groups)
        sums = {0}
        for n in sizes:
            sums |= {s + n for s in sums if n <= target}
        sums = {s for s in sums if 0 < s < sum(sizes)} or {min(sizes)}
        best = min(abs(s - target) for s in sums)
        assert abs(abs(len(held(sides)) - target) - best) < 1e-9


def test_order_and_names_do_not_matter() -> None:
    """Only contents and salt decide."""
    groups = [[digest(i), digest(-i)] for i in range(1, 20)]
    shuffled = [group[::-1] for group in random.Random(1).sample(groups, len(groups))]
    assert split_groups(groups, 0.2, "a") == split_groups(shuffled, 0.2, "a")
    assert split_groups(groups, 0.2, "a") != split_groups(groups, 0.2, "b")


def test_adding_images_rarely_moves_the_others() -> None:
    """Going from 100 images to 110, one by one, moves few of the first hundred."""
    before = held(split_groups(singles(100), 0.2))
    after = held(split_groups(singles(110), 0.2))
    first = {group[0] for group in singles(100)}
    assert len(before ^ (after & first)) <= 6


def test_a_family_larger_than_the_share_trains() -> None:
    """38 variants of one motif do not fill the holdout."""
    family = [digest(("moon", i)) for i in range(38)]
    sides = split_groups([family, *singles(12)], 0.2)
    assert not held(sides) & set(family)
    assert len(held(sides)) == 10


def test_two_large_families_give_the_smaller_away() -> None:
    """When every family is larger than the share, the smallest is held out."""
    small, large = [digest(i) for i in range(5)], [digest(i) for i in range(10, 25)]
    assert held(split_groups([large, small], 0.1)) == set(small)


def test_exact_copies_count_as_images() -> None:
    """A pixel hash that is there twice is two images of the share."""
    groups = [[digest(0), digest(0)], *singles(8, start=1)]
    sides = split_groups(groups, 0.5)
    files = [m for group in groups for m in group]
    assert sum(sides[m] == "holdout" for m in files) == 5


@pytest.mark.parametrize("groups", [[[digest(0)]], [[digest(0), digest(1), digest(2)]]])
def test_one_family_cannot_be_divided(groups: list[list[str]]) -> None:
    """The error says why and how to go on."""
    with pytest.raises(DataError) as caught:
        split_groups(groups, 0.2)
    assert "holdout" in str(caught.value)
    assert "data.holdout = 0" in caught.value.fix


def test_an_impossible_share_is_refused() -> None:
    """1 would leave nothing to train on."""
    with pytest.raises(DataError, match="not a share"):
        split_groups(singles(3), 1.0)

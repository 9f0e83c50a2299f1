"""The split: whole families, the wanted share, and rest for everyone else."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import pytest

from styletune.data.split import fold_groups, split_groups
from styletune.errors import DataError


def digest(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def singles(count: int, start: int = 0) -> list[list[str]]:
    return [[digest(i)] for i in range(start, start + count)]


def held(sides: Mapping[str, str]) -> set[str]:
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


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """How many images that were there before are on another side."""
    return sum(after[member] != side for member, side in before.items())


@pytest.mark.parametrize("holdout", [0.1, 0.2, 0.35])
def test_a_new_image_moves_one_other_at_most(holdout: float) -> None:
    """Whatever 20 to 200 single images there are, one more moves none or one of them."""
    rng = random.Random(2)
    for trial in range(60):
        groups = [[digest((trial, i))] for i in range(rng.randint(20, 200))]
        before = split_groups(groups, holdout)
        assert changed(before, split_groups([*groups, [digest((trial, "new"))]], holdout)) <= 1


def test_a_new_image_among_families_moves_few() -> None:
    """With families of up to four that holds for five sets of six, and never for more than 8."""
    rng = random.Random(3)
    moved = []
    for trial in range(60):
        sizes = [rng.choice([1, 1, 1, 2, 3, 4]) for _ in range(rng.randint(40, 160))]
        groups = [[digest((trial, i, j)) for j in range(n)] for i, n in enumerate(sizes)]
        before = split_groups(groups, 0.2)
        moved.append(changed(before, split_groups([*groups, [digest((trial, "new"))]], 0.2)))
    assert max(moved) <= 8
    assert sum(n <= 1 for n in moved) >= 50
    assert sum(moved) / len(moved) < 1


def test_a_new_variant_rarely_moves_its_family() -> None:
    """A family that grows by a variant keeps its side mostly: one in eight moves at most."""
    rng = random.Random(4)
    moved = trained = 0
    for trial in range(200):
        sizes = [rng.choice([1, 1, 1, 2, 3, 4]) for _ in range(rng.randint(40, 120))]
        groups = [[digest((trial, i, j)) for j in range(n)] for i, n in enumerate(sizes)]
        grown = rng.choice([i for i, n in enumerate(sizes) if n > 1])
        before = split_groups(groups, 0.2)
        with_more = [[*g, digest((trial, "v"))] if i == grown else g for i, g in enumerate(groups)]
        same = split_groups(with_more, 0.2)[groups[grown][0]] == before[groups[grown][0]]
        trained += before[groups[grown][0]] == "train"
        moved += not same
    assert moved <= trained / 8


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_every_family_is_held_out_once(folds: int) -> None:
    """Over all folds each image is held out exactly once, with its family, in equal parts."""
    rng = random.Random(5)
    for trial in range(20):
        sizes = [rng.randint(1, 5) for _ in range(rng.randint(folds, 120))]
        groups = [[digest((trial, i, j)) for j in range(n)] for i, n in enumerate(sizes)]
        parts = [held(fold_groups(groups, folds, fold)) for fold in range(folds)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == sum(sizes)
        assert all(parts)
        assert all(len({m in part for m in group}) == 1 for group in groups for part in parts)
        if len(groups) >= 10 * folds:
            assert max(map(len, parts)) - min(map(len, parts)) <= 2 * max(sizes)


def test_folds_are_stable_and_follow_content() -> None:
    """Order does not matter, the salt does, and one more image moves few."""
    groups = singles(100)
    before = fold_groups(groups, 5, 2)
    assert fold_groups(groups[::-1], 5, 2) == before
    assert fold_groups(groups, 5, 2, "salt") != before
    moved = [changed(before, fold_groups([*groups, [digest(("new", i))]], 5, 2)) for i in range(50)]
    assert sum(moved) / len(moved) <= 2
    assert max(moved) <= 8


def test_impossible_folds_are_refused() -> None:
    """More folds than families, or a fold that is not there."""
    with pytest.raises(DataError, match="3 different pictures"):
        fold_groups(singles(3), 4, 0)
    with pytest.raises(DataError, match="no fold 5"):
        fold_groups(singles(30), 5, 5)

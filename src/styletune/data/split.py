"""Which images are held out of training, so that scores are not about memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

from styletune.errors import DataError

Split = Literal["train", "holdout"]


def split_groups(
    groups: Sequence[Sequence[str]], holdout: float, salt: str = ""
) -> dict[str, Split]:
    """Hold out whole groups, as near to the share ``holdout`` of the images as they allow.

    Every group has a place between 0 and 1, from a salted hash of its content, so names and
    input order do not matter. Groups of several images whose place is below ``holdout`` are held
    out while the share allows; single images fill what is missing, lowest places first. Where
    there are too few of those, groups are walked by place, and each is taken when the nearest
    possible share can still be reached with it. A group larger than the share goes to train,
    unless every group is; then the smallest is held out.

    Stability: while single images fill the share, a new single image moves at most one other,
    unless its arrival makes room for one more group below ``holdout``. A new variant can lower
    its group's place, never raise it: it takes its group to the holdout when its own place is
    low enough, which is rare in a large group.

    Args:
        groups: pixel hashes, one an image, of images that must stay together.
        holdout: wanted share of the images, in [0, 1).
        salt: another one gives another split.

    Returns:
        The side of every pixel hash; with ``holdout`` > 0 neither side is empty.

    Raises:
        DataError: there are fewer than two groups to divide, or the share is not in [0, 1).
    """
    if not 0 <= holdout < 1:
        raise DataError(f"holdout = {holdout} is not a share from 0 up to 1", where="data.holdout")
    everything = [member for group in groups for member in group]
    assert sum(len(set(group)) for group in groups) == len(set(everything)), "groups overlap"
    sides: dict[str, Split] = dict.fromkeys(everything, "train")
    if holdout == 0 or not everything:
        return sides
    if len(groups) < 2:
        raise DataError(_one_family(len(everything)), where="data.holdout", fix=_ONE_FAMILY_FIX)
    target = holdout * len(everything)
    ranked = sorted(groups, key=lambda group: _place(group, salt))
    taken = _filled_by_singles(ranked, holdout, len(everything), salt)
    if taken is None:
        fitting = [group for group in ranked if len(group) <= target]
        taken = _nearest(fitting, target, len(everything) - 1) if fitting else []
    for group in taken or [min(ranked, key=len)]:
        sides.update(dict.fromkeys(group, "holdout"))
    return sides


def fold_groups(
    groups: Sequence[Sequence[str]], folds: int, fold: int, salt: str = ""
) -> dict[str, Split]:
    """Hold out one of ``folds`` parts of nearly equal size; every group is in exactly one.

    Groups are dealt by a salted hash of their content (as in ``split_groups``): each has its
    favourite fold, and goes to another only when that one is full; the largest choose first.

    Args:
        groups: pixel hashes, one an image, of images that must stay together.
        folds: how many parts, 2 and more.
        fold: which one is held out, from 0.
        salt: another one deals otherwise.

    Raises:
        DataError: there are fewer groups than folds, or no such fold.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(
            f"there is no fold {fold} of {folds}",
            where="data.fold",
            fix="folds are 2 and more, and counted from 0",
        )
    if len(groups) < folds:
        raise DataError(
            f"{len(groups)} different pictures cannot be dealt to {folds} folds",
            where="data.folds",
            fix=f"set data.folds = {len(groups)}" if len(groups) > 1 else _ONE_FAMILY_FIX,
        )
    everything = [member for group in groups for member in group]
    room = math.ceil(len(everything) / folds)
    dealt: list[list[str]] = [[] for _ in range(folds)]
    by_size = sorted(groups, key=lambda group: (-len(group), _place(group, salt)))
    for dealt_groups, group in enumerate(by_size):
        left = len(by_size) - dealt_groups
        empty = [i for i in range(folds) if not dealt[i]]
        # The last groups go where there is nothing yet, so that no fold stays empty.
        open_folds = empty if left <= len(empty) else range(folds)
        favourites = sorted(open_folds, key=lambda i: _place(group, f"{salt}\n{i}"))
        fitting = [i for i in favourites if len(dealt[i]) + len(group) <= room]
        dealt[(fitting or sorted(favourites, key=lambda i: len(dealt[i])))[0]].extend(group)
    sides: dict[str, Split] = dict.fromkeys(everything, "train")
    sides.update(dict.fromkeys(dealt[fold], "holdout"))
    return sides


_ONE_FAMILY_FIX = "add images of other motifs, or set data.holdout = 0 and score without them"


def _one_family(images: int) -> str:
    if images == 1:
        return "one image cannot be divided into train and holdout"
    return (
        f"all {images} images are variants of one picture, so none can be held out: "
        "the rest would show it"
    )


def _place(group: Sequence[str], salt: str) -> float:
    """Lowest of its images' places, in [0, 1)."""
    digests = [hashlib.sha256(f"{salt}\n{member}".encode()).digest() for member in group]
    return int.from_bytes(min(digests)[:6], "big") / 2**48


def _filled_by_singles(
    ranked: Sequence[Sequence[str]], holdout: float, images: int, salt: str
) -> list[Sequence[str]] | None:
    """Groups below the cut and as many single images as are missing; None if there are too few."""
    target = holdout * images
    # The nearest whole number, the lower of two.
    wanted = min(max(1, math.ceil(target - 0.5)), images - 1)
    taken: list[Sequence[str]] = []
    missing = wanted
    for group in ranked:
        fits = 1 < len(group) <= min(missing, target)
        if fits and _place(group, salt) < holdout:
            taken.append(group)
            missing -= len(group)
    singles = [group for group in ranked if len(group) == 1]
    return [*taken, *singles[:missing]] if missing <= len(singles) else None


def _nearest(groups: Sequence[Sequence[str]], target: float, at_most: int) -> list[Sequence[str]]:
    """The first groups, in order, whose sizes add up as near to ``target`` as any can."""
    # Bit s of reach[i] is set when some of groups[i:] add up to s images.
    reach = [1]
    for group in reversed(groups):
        reach.append(reach[-1] | reach[-1] << len(group))
    reach.reverse()
    sums = [s for s in range(1, at_most + 1) if reach[0] >> s & 1]
    left = min(sums, key=lambda s: (abs(s - target), s), default=0)
    taken = []
    for i, group in enumerate(groups):
        if left >= len(group) and reach[i + 1] >> (left - len(group)) & 1:
            taken.append(group)
            left -= len(group)
    return taken

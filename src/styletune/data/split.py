"""Which images are held out of training, so that scores do not measure memorization."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from styletune.data.findings import Finding, finding
from styletune.errors import DataError

Split = Literal["train", "holdout"]


def split_files(
    pixel_hashes: Mapping[str, str],
    clusters: Sequence[Sequence[str]],
    *,
    holdout: float,
    folds: int | None = None,
    fold: int = 0,
    min_holdout: int = 0,
) -> tuple[dict[str, Split], list[Finding]]:
    """Split a set as its recipe says, and what is wrong with the result (``cannot-split``).

    Args:
        pixel_hashes: by file name.
        clusters: all file names, in groups that must stay together.
        holdout: target share; only used without ``folds``.
        folds: as in ``fold_groups``.
        fold: as in ``fold_groups``.
        min_holdout: how many held-out images are needed, as for scoring.

    Returns:
        The side of every file; all "train" where no split is possible.
    """
    groups = [[pixel_hashes[file] for file in cluster] for cluster in clusters]
    try:
        by_pixels = fold_groups(groups, folds, fold) if folds else split_groups(groups, holdout)
    except DataError as error:
        problem = finding("cannot-split", (), f"{error.where}: {error.message}", error.fix)
        return dict.fromkeys(pixel_hashes, "train"), [problem]
    sides = {name: by_pixels[pixels] for name, pixels in pixel_hashes.items()}
    held_out = sum(side == "holdout" for side in sides.values())
    if sides and held_out == len(sides):
        problem = finding("cannot-split", (), "no image is left to train on", "lower data.holdout")
        return sides, [problem]
    if held_out < min_holdout:
        message = f"scoring needs at least {min_holdout} held-out images; {held_out} are held out"
        fix = "hold out more (data.holdout = 0.2), add images, or remove [score]"
        return sides, [finding("cannot-split", (), message, fix)]
    return sides, []


def split_groups(
    groups: Sequence[Sequence[str]], holdout: float, salt: str = ""
) -> dict[str, Split]:
    """Hold out whole groups, as close to the share ``holdout`` of the images as they allow.

    Every group has a rank between 0 and 1, a salted hash of its content, so names and input
    order do not matter. Groups of several images ranked below ``holdout`` are held out while the
    share allows; single images fill the remainder, lowest ranks first. If there are too few of
    those, groups are tried by rank, and each is taken if the nearest possible share can still be
    reached with it. A group larger than the share goes to train, unless every group is; then the
    smallest is held out.

    Stability: while single images fill the share, a new single image moves at most one other,
    unless its arrival makes room for one more group below ``holdout``. A new variant can lower
    its group's rank, never raise it: it moves its group to the holdout if its own rank is low
    enough, which is rare in a large group.

    Args:
        groups: pixel hashes, one per image, of images that must stay together.
        holdout: target share of the images, in [0, 1).
        salt: a different one gives a different split.

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
        raise DataError(
            _single_cluster(len(everything)), where="data.holdout", fix=_SINGLE_CLUSTER_FIX
        )
    target = holdout * len(everything)
    ranked = sorted(groups, key=lambda group: _rank(group, salt))
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
    preferred fold, and goes to another only if that one is full; the largest choose first.

    Args:
        groups: pixel hashes, one per image, of images that must stay together.
        folds: how many parts, at least 2.
        fold: which one is held out, from 0.
        salt: a different one deals differently.

    Raises:
        DataError: there are fewer groups than folds, or no such fold.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(
            f"there is no fold {fold} of {folds}",
            where="data.fold",
            fix="use at least 2 folds, and count them from 0",
        )
    if len(groups) < folds:
        raise DataError(
            f"{len(groups)} different pictures cannot fill {folds} folds",
            where="data.folds",
            fix=f"set data.folds = {len(groups)}" if len(groups) > 1 else _SINGLE_CLUSTER_FIX,
        )
    everything = [member for group in groups for member in group]
    room = math.ceil(len(everything) / folds)
    dealt: list[list[str]] = [[] for _ in range(folds)]
    by_size = sorted(groups, key=lambda group: (-len(group), _rank(group, salt)))
    for dealt_groups, group in enumerate(by_size):
        left = len(by_size) - dealt_groups
        empty = [i for i in range(folds) if not dealt[i]]
        # The last groups go to empty folds, so that none stays empty.
        open_folds = empty if left <= len(empty) else range(folds)
        preferred = sorted(open_folds, key=lambda i: _rank(group, f"{salt}\n{i}"))
        fitting = [i for i in preferred if len(dealt[i]) + len(group) <= room]
        dealt[(fitting or sorted(preferred, key=lambda i: len(dealt[i])))[0]].extend(group)
    sides: dict[str, Split] = dict.fromkeys(everything, "train")
    sides.update(dict.fromkeys(dealt[fold], "holdout"))
    return sides


_SINGLE_CLUSTER_FIX = "add images of other motifs, or set data.holdout = 0 and do not score"


def _single_cluster(images: int) -> str:
    if images == 1:
        return "one image cannot be split into train and holdout"
    return (
        f"all {images} images are variants of one picture, so none can be held out: "
        "training would see it in the others"
    )


def _rank(group: Sequence[str], salt: str) -> float:
    """The lowest rank of its images, in [0, 1)."""
    digests = [hashlib.sha256(f"{salt}\n{member}".encode()).digest() for member in group]
    return int.from_bytes(min(digests)[:6], "big") / 2**48


def _filled_by_singles(
    ranked: Sequence[Sequence[str]], holdout: float, images: int, salt: str
) -> list[Sequence[str]] | None:
    """Groups below the cut, then single images up to the share; None if there are too few."""
    target = holdout * images
    # The nearest whole number, the lower of two.
    count = min(max(1, math.ceil(target - 0.5)), images - 1)
    taken: list[Sequence[str]] = []
    missing = count
    for group in ranked:
        fits = 1 < len(group) <= min(missing, target)
        if fits and _rank(group, salt) < holdout:
            taken.append(group)
            missing -= len(group)
    singles = [group for group in ranked if len(group) == 1]
    return [*taken, *singles[:missing]] if missing <= len(singles) else None


def _nearest(groups: Sequence[Sequence[str]], target: float, at_most: int) -> list[Sequence[str]]:
    """The first groups, in order, whose sizes add up as close to ``target`` as possible."""
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

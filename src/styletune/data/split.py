"""Which images are held out of training, so that scores are not about memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from styletune.errors import DataError

Split = Literal["train", "holdout"]


def split_groups(
    groups: Sequence[Sequence[str]], holdout: float, salt: str = ""
) -> dict[str, Split]:
    """Hold out whole groups, as near to the share ``holdout`` of the images as they allow.

    Groups are walked in the order of a salted hash of their content, and each is taken when the
    nearest possible share can still be reached with it: names and input order do not matter,
    and adding images rarely moves the others. A group larger than the share goes to train,
    unless every group is; then the smallest is held out.

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
    ranked = sorted(groups, key=lambda group: min(_rank(member, salt) for member in group))
    fitting = [group for group in ranked if len(group) <= target]
    taken = _nearest(fitting, target, len(everything) - 1) if fitting else []
    for group in taken or [min(ranked, key=len)]:
        sides.update(dict.fromkeys(group, "holdout"))
    return sides


_ONE_FAMILY_FIX = "add images of other motifs, or set data.holdout = 0 and score without them"


def _one_family(images: int) -> str:
    if images == 1:
        return "one image cannot be divided into train and holdout"
    return (
        f"all {images} images are variants of one picture, so none can be held out: "
        "the rest would show it"
    )


def _rank(pixel_hash: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\n{pixel_hash}".encode()).digest()


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

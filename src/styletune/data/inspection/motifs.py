"""Different pictures of nearly the same thing, and pictures unlike the others, by their features.

What is near depends on the encoder. The embedded "mini" one has seen procedural scenes only: on
other images its features group and single out at random, so use it on renders of its world alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from styletune.data.findings import Finding
from styletune.data.inspection.duplicates import Group, families

Features = NDArray[np.float32]

# Cosine. Of pairs of procedural scenes above it all show the same place at the same hour, and
# half of them the same things in it.
SAME_MOTIF = 0.97
# An outlier is unusual among its own and far in absolute terms.
OUTLIER_DEVIATIONS = 5.0
OUTLIER_DISTANCE = 0.1
NEIGHBOURS = 3
FEWEST = 8
_ROWS = 512


def motif_groups(
    features: Features,
    names: Sequence[str],
    near_groups: Sequence[Group],
    threshold: float = SAME_MOTIF,
) -> list[Group]:
    """Groups of kind motif: different pictures with a cosine of at least ``threshold``.

    Variants of one picture (``near_groups``) stand for each other: a group has two families or
    more, with all their files. A family joins the first group of whose every family it is near,
    so that chains of small steps do not swallow a set.

    Args:
        features: (n, d), unit length.
        names: n file names.
        near_groups: from ``duplicate_groups``; names that have no features are left out.
        threshold: cosine in [-1, 1].
    """
    row = {name: i for i, name in enumerate(names)}
    known = [Group(group.kind, tuple(f for f in group.files if f in row)) for group in near_groups]
    members = families(names, [group for group in known if len(group.files) > 1])
    first = features[[row[family[0]] for family in members]]
    near: list[set[int]] = []
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS] @ first.T >= threshold
        near += [set(np.flatnonzero(one).tolist()) for one in rows]
    groups: list[list[int]] = []
    group_of: dict[int, int] = {}
    for i in range(len(members)):
        open_groups = sorted({group_of[j] for j in near[i] if j in group_of})
        mine = next((g for g in open_groups if near[i].issuperset(groups[g])), len(groups))
        if mine == len(groups):
            groups.append([])
        groups[mine].append(i)
        group_of[i] = mine
    found = [sorted(f for i in group for f in members[i]) for group in groups if len(group) > 1]
    return [Group("motif", tuple(files)) for files in sorted(found)]


def outliers(features: Features, names: Sequence[str]) -> list[tuple[str, float]]:
    """The images far from their nearest others: (file name, distance), farthest first.

    The distance is one minus the mean cosine to the three most similar images; far is beyond
    the median by more than five usual deviations (median absolute deviation) and by more than
    0.1. Fewer than eight images say nothing.

    Args:
        features: (n, d), unit length.
        names: n file names.
    """
    if len(names) < FEWEST:
        return []
    far = np.empty(len(features))
    for start in range(0, len(features), _ROWS):
        cosine = features[start : start + _ROWS] @ features.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -1
        far[start : start + _ROWS] = 1 - np.partition(cosine, -NEIGHBOURS, 1)[:, -NEIGHBOURS:].mean(
            1
        )
    middle = np.median(far)
    usual = 1.4826 * np.median(np.abs(far - middle))
    limit = middle + max(OUTLIER_DEVIATIONS * usual, OUTLIER_DISTANCE)
    found = [(name, float(d)) for name, d in zip(names, far, strict=True) if d > limit]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def look_findings(
    motifs: Sequence[Group],
    unlike: Sequence[tuple[str, float]] = (),
    off_palette: Sequence[tuple[str, float]] = (),
) -> list[Finding]:
    """Findings same-motif (one a group), outlier and off-palette (one for all of each).

    Args:
        motifs: from ``motif_groups``; groups of other kinds are not looked at.
        unlike: from ``outliers``.
        off_palette: from ``palette_outliers``.
    """
    found = [
        Finding(
            "same-motif",
            group.files,
            f"{len(group.files)} images show nearly the same thing",
            "keep the best few: a motif that comes often is learnt as a part of the look",
        )
        for group in motifs
        if group.kind == "motif"
    ]
    for code, far, what in (
        ("outlier", unlike, "the look of the others"),
        ("off-palette", off_palette, "the colours of the others (ΔE)"),
    ):
        if far:
            listed = ", ".join(f"{name} ({distance:.2g})" for name, distance in far)
            message = f"{len(far)} images are far from {what}: {listed}"
            fix = "look whether they belong to the brand, and leave out what does not"
            found.append(Finding(code, tuple(name for name, _ in far), message, fix))
    return found

"""Different pictures of nearly the same thing, and pictures unlike the others, by their features.

What counts as near depends on the encoder. The bundled "mini" one has seen procedural scenes only:
on other images its groups and outliers are random, so use it on renders of its world alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from styletune.data.findings import Finding, agree, count_images, finding
from styletune.data.inspection.duplicates import ImageGroup, clusters
from styletune.data.inspection.outliers import FEWEST, NEIGHBORS, find_outliers

Features = NDArray[np.float32]

# Cosine. Of pairs of procedural scenes above it all show the same place at the same hour, and a
# third of them the same things in it.
SAME_MOTIF = 0.99
_OUTLIER_DEVIATIONS = 5.0
_OUTLIER_DISTANCE = 0.1
_ROWS = 512


def motif_groups(
    features: Features,
    names: Sequence[str],
    near_groups: Sequence[ImageGroup],
    threshold: float = SAME_MOTIF,
) -> list[ImageGroup]:
    """Groups of kind motif: different pictures with a cosine of at least ``threshold``.

    Variants of one picture (``near_groups``) are one picture here: a group has two pictures or
    more, with all their files. A picture joins the first group in which it is near to all others,
    so that chains of small steps do not swallow a set.

    Args:
        features: (n, d), unit length.
        names: n file names.
        near_groups: from ``duplicate_groups``; names without features are left out.
        threshold: cosine in [-1, 1].
    """
    pictures, rows = _pictures(names, near_groups)
    first = features[rows]
    near: list[set[int]] = []
    for start in range(0, len(first), _ROWS):
        is_near = first[start : start + _ROWS] @ first.T >= threshold
        near += [set(np.flatnonzero(one).tolist()) for one in is_near]
    groups: list[list[int]] = []
    group_of: dict[int, int] = {}
    for i in range(len(pictures)):
        candidates = sorted({group_of[j] for j in near[i] if j in group_of})
        mine = next((g for g in candidates if near[i].issuperset(groups[g])), len(groups))
        if mine == len(groups):
            groups.append([])
        groups[mine].append(i)
        group_of[i] = mine
    files = [sorted(f for i in group for f in pictures[i]) for group in groups if len(group) > 1]
    return [ImageGroup("motif", tuple(each)) for each in sorted(files)]


def _pictures(
    names: Sequence[str], near_groups: Sequence[ImageGroup]
) -> tuple[list[tuple[str, ...]], list[int]]:
    """The files of each picture, and the row of its first file in the features."""
    row = {name: i for i, name in enumerate(names)}
    known = [ImageGroup(g.kind, tuple(f for f in g.files if f in row)) for g in near_groups]
    pictures = clusters(names, [group for group in known if len(group.files) > 1])
    return pictures, [row[picture[0]] for picture in pictures]


def outliers(
    features: Features, names: Sequence[str], near_groups: Sequence[ImageGroup] = ()
) -> list[tuple[str, float]]:
    """The images far from all others: (file name, distance), farthest first.

    The distance is one minus the mean cosine to the three most similar other pictures; far means
    as in ``find_outliers``. Fewer than eight pictures have no outliers.

    Args:
        features: (n, d), unit length.
        names: n file names.
        near_groups: variants of one picture count as one.
    """
    pictures, rows = _pictures(names, near_groups)
    if len(pictures) < FEWEST:
        return []
    first = features[rows]
    distances = np.empty(len(first))
    for start in range(0, len(first), _ROWS):
        cosine = first[start : start + _ROWS] @ first.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -1
        nearest = np.partition(cosine, -NEIGHBORS, 1)[:, -NEIGHBORS:]
        distances[start : start + _ROWS] = 1 - nearest.mean(1)
    return find_outliers(
        pictures, distances, deviations=_OUTLIER_DEVIATIONS, least=_OUTLIER_DISTANCE
    )


def look_findings(
    motifs: Sequence[ImageGroup],
    unlike: Sequence[tuple[str, float]] = (),
    off_palette: Sequence[tuple[str, float]] = (),
) -> list[Finding]:
    """Findings same-motif (one per group), outlier and off-palette (one each).

    Args:
        motifs: from ``motif_groups``; groups of other kinds are ignored.
        unlike: from ``outliers``.
        off_palette: from ``palette_outliers``.
    """
    findings = [
        finding(
            "same-motif",
            group.files,
            f"{len(group.files)} images show nearly the same thing",
            "keep the best few: a frequent motif is learned as part of the look",
        )
        for group in motifs
        if group.kind == "motif"
    ]
    for code, far, others in (
        ("outlier", unlike, "look very different from the others"),
        ("off-palette", off_palette, "have colors very different from the others (ΔE)"),
    ):
        if far:
            listed = ", ".join(f"{name} ({distance:.2g})" for name, distance in far)
            message = f"{count_images(len(far))} {agree(len(far), others)}: {listed}"
            fix = "check whether they belong to the brand, and remove those that do not"
            findings.append(finding(code, [name for name, _ in far], message, fix))
    return findings

"""What a column of images is like as a set, beside the references as a set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, fields

import numpy as np

from styletune.scoring.diversity import vendi_score
from styletune.scoring.frechet import frechet_distance, frechet_estimate
from styletune.scoring.kernel import cmmd, cmmd_estimate, kid, kid_estimate
from styletune.scoring.neighbors import K_NEAREST, Neighborhood, neighborhood
from styletune.scoring.statistics import (
    AnyFloats,
    Estimate,
    jackknife_estimate,
    left_out,
)

NEIGHBOR_METRICS = tuple(field.name for field in fields(Neighborhood))
# Twice the neighborhood: below, every image is every other's neighbor.
MIN_NEIGHBORS_SET = 2 * (K_NEAREST + 1)


def set_estimates(x: AnyFloats, references: AnyFloats, prompts: int) -> dict[str, Estimate]:
    """Every set metric of a column: (n, d) prompts-major, (m, d) references.

    Intervals are over prompts and references. Raises BadInput for features that are not finite.
    """
    clusters = np.repeat(np.arange(prompts), len(x) // prompts).tolist()
    return {
        "kid": kid_estimate(x, references, prompts),
        "cmmd": cmmd_estimate(x, references, prompts),
        "fid": frechet_estimate(x, references, clusters),
        **_neighbor_estimates(x, references, clusters),
        "vendi": _vendi_estimate(x, clusters),
    }


def set_values(x: AnyFloats, y: AnyFloats) -> dict[str, float]:
    """Those that compare two sets, without intervals: one half of the references, the other."""
    values = {"kid": kid(x, y), "cmmd": cmmd(x, y), "fid": frechet_distance(x, y)}
    if min(len(x), len(y)) >= MIN_NEIGHBORS_SET:
        near = neighborhood(x, y)
        values |= {name: float(getattr(near, name)) for name in NEIGHBOR_METRICS}
    return values


def _neighbor_estimates(x: AnyFloats, y: AnyFloats, clusters: Sequence[int]) -> dict[str, Estimate]:
    if min(len(x), len(y)) < MIN_NEIGHBORS_SET:
        return {name: Estimate(math.nan, math.nan, math.nan, len(x)) for name in NEIGHBOR_METRICS}
    values = astuple(neighborhood(x, y))
    sides = [[astuple(neighborhood(*pair)) for pair in side] for side in left_out(x, y, clusters)]
    estimates = {}
    for i, name in enumerate(NEIGHBOR_METRICS):
        e = jackknife_estimate(values[i], [[each[i] for each in side] for side in sides], len(x))
        estimates[name] = e.within(0.0, math.inf if name == "density" else 1.0)
    return estimates


def _vendi_estimate(x: AnyFloats, clusters: Sequence[int]) -> Estimate:
    left = [vendi_score(rows) for rows, _ in left_out(x, x[:2], clusters)[0]]
    return jackknife_estimate(vendi_score(x), [left], len(x)).within(1.0, float(len(x)))

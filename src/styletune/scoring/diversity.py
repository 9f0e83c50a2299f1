"""How many different images are there?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from styletune.scoring.clip_score import unit_rows


def variety(rows: NDArray[np.floating]) -> float:
    """Mean of 1 - cosine over pairs of different rows: (p, d), p >= 2 -> 0 to 2.

    A row is an image's unit vector, or the mean of those of a prompt: then it is the mean over
    pairs of images of different prompts, from 0 for one image over and over.
    """
    total, count = rows.sum(0), len(rows)
    pairs = float(total @ total - (rows * rows).sum())
    return 1 - pairs / (count * (count - 1))


def vendi_score(features: NDArray[np.floating]) -> float:
    """Effective number of different images among n: (n, d) -> 1 to n.

    exp of the entropy of the eigenvalues of K / n, K the cosine similarities: Friedman and Dieng
    2023 (arXiv 2210.02410), definition 3.1. It grows with n: compare sets of equal size.

    Raises:
        BadInput: a row is zero or not finite.
    """
    x = unit_rows(features) / np.sqrt(len(features))
    # The nonzero eigenvalues of xx' and x'x are the same: take the smaller matrix.
    values = np.linalg.eigvalsh(x @ x.T if len(x) <= x.shape[1] else x.T @ x)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))

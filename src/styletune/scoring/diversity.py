"""Does a prompt still give different images?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from styletune.scoring.clip_score import unit_rows
from styletune.scoring.statistics import Array


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


def prompt_diversity(features: NDArray[np.floating], prompts: int) -> Array:
    """Mean cosine distance of the images of one prompt: (prompts * seeds, d) -> (prompts,).

    0 where all seeds give one image; NaN with a single seed. As DreamBooth's DIV (arXiv
    2208.12242, section 4.3), on any encoder's features.

    Raises:
        BadInput: a row is zero or not finite.
    """
    x = unit_rows(features).reshape(prompts, -1, features.shape[1])
    seeds = x.shape[1]
    if seeds == 1:
        return np.full(prompts, np.nan)
    total = np.square(x.sum(1)).sum(-1)
    mean_cosine = (total - seeds) / (seeds * (seeds - 1))
    return np.asarray(1 - mean_cosine)

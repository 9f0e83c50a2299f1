"""Cosine similarities of image features to prompts and to reference images.

Plain cosines, not multiplied and not clipped: a good caption scores about 0.3 under the
OpenAI models, so only differences against the base model mean anything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput


def unit_rows(features: NDArray[np.floating], what: str = "features") -> NDArray[np.float64]:
    """(n, d) -> (n, d) float64 with rows of length 1. Raises BadInput for a zero or NaN row."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2:
        raise BadInput(f"{what} must be (n, d), got {x.shape}")
    length = np.linalg.norm(x, axis=1, keepdims=True)
    bad = ~np.isfinite(length[:, 0]) | (length[:, 0] == 0)
    if bad.any():
        raise BadInput(f"{what}: row {int(bad.argmax())} has no direction (zero or not finite)")
    return np.asarray(x / length)


def text_similarity(
    image_features: NDArray[np.floating], text_features: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Cosine of each image to its own prompt.

    Args:
        image_features: (p * s, d), prompts-major: s images of prompt 0, then of prompt 1...
        text_features: (p, d) in the same space.

    Returns:
        (p * s,) float64 in [-1, 1].

    Raises:
        BadInput: widths differ, or the rows are no multiple of the prompts.
    """
    images = unit_rows(image_features, "image features")
    texts = unit_rows(text_features, "text features")
    if images.shape[1] != texts.shape[1] or len(images) % len(texts):
        raise BadInput(f"{images.shape} image and {texts.shape} text features do not match")
    own = np.repeat(texts, len(images) // len(texts), axis=0)
    return np.asarray(np.einsum("nd,nd->n", images, own))


def image_similarity(
    image_features: NDArray[np.floating], reference_features: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Mean cosine of each image to all references: (n, d), (m, d) -> (n,) float64 in [-1, 1]."""
    images = unit_rows(image_features, "image features")
    references = unit_rows(reference_features, "reference features")
    if images.shape[1] != references.shape[1]:
        raise BadInput(f"{images.shape} and {references.shape} features do not match")
    return np.asarray(images @ references.mean(0))


def leave_one_out_similarity(reference_features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean cosine of each reference to the others: (m, d), m >= 2 -> (m,) in [-1, 1]."""
    references = unit_rows(reference_features, "reference features")
    if len(references) < 2:
        raise BadInput("one reference cannot be compared with the others")
    return np.asarray((references @ references.sum(0) - 1) / (len(references) - 1))

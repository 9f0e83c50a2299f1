"""What a run trains on: encoded images with their captions, and the prior of their class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from styletune.training.cache import Cache
from styletune.training.texts import Texts


@dataclass(frozen=True)
class TrainingImages:
    """A cache of n entries, the embeddings of its captions, and each entry's name (for errors).

    ``texts`` is ``cache.text_rows``, or ``live_texts`` where the encoders are trained. An epoch has
    entry i ``repeats[i]`` times, and its loss is multiplied by ``weights[i]``; both are 1 where
    the tuple is empty.
    """

    cache: Cache
    texts: Texts
    names: list[str]
    repeats: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @functools.cached_property
    def epoch(self) -> tuple[int, ...]:
        """The entries of an epoch, each as often as it is repeated."""
        repeats = self.repeats or (1,) * self.cache.num_entries
        return tuple(entry for entry, times in enumerate(repeats) for _ in range(times))

    @functools.cached_property
    def epoch_buckets(self) -> tuple[int, ...]:
        """The bucket of each of ``epoch``."""
        return tuple(self.cache.bucket_of[entry] for entry in self.epoch)


@dataclass(frozen=True, slots=True)
class Prior:
    """Prior preservation (arXiv 2208.12242, equation 2).

    With ``images`` the class is learned from them. Without, the brand's own latents are denoised
    with the class prompt (``text``, one row), and the target is what the base model predicts for
    it (``base_text``, the same words as the base's encoders see them).
    """

    weight: float
    images: TrainingImages | None
    text: Texts
    base_text: Texts
    adapter_off: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Images to train on, held-out ones for the validation loss, and the prior; None without."""

    images: TrainingImages
    held_out: TrainingImages | None = None
    prior: Prior | None = None

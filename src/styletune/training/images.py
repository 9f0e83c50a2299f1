"""What a run trains on: encoded images with their captions, and the prior of their class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from styletune.models.family import Conditioning
from styletune.training.texts import Texts


@dataclass(frozen=True, slots=True)
class Latents:
    """The n entries of one bucket: ``mean``, ``logvar`` (n, 4, h, w) float32, unscaled.

    ``mask`` (n, 1, h, w) float32 is the weight of the loss; None when no entry has a mask.
    """

    mean: Tensor
    logvar: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Cache:
    """Encoded training set of n entries, each with K variants of its caption, c distinct ones.

    ``bucket_of`` (n) numbers ``buckets``, ``places`` (n) the rows in them; ``sizes`` are the UNet's
    added conditions on the images' sizes, each (n, k) float32; ``texts`` the conditioning of c + 1
    texts, the last the empty caption, None where they are encoded anew at every step;
    ``captions`` (c) are their texts; ``caption_rows`` (n, K) int64, on the CPU. Latents and texts
    are on ``device``, or in the host's memory where they would crowd it.
    """

    buckets: tuple[Latents, ...]
    bucket_of: tuple[int, ...]
    places: tuple[int, ...]
    sizes: Mapping[str, Tensor]
    texts: Conditioning | None
    captions: tuple[str, ...]
    caption_rows: Tensor
    device: str

    @property
    def num_entries(self) -> int:
        """n, the entries of all buckets."""
        return len(self.bucket_of)

    def latent_shape(self, bucket: int) -> tuple[int, int, int]:
        """(4, h, w) of a bucket."""
        _, channels, height, width = self.buckets[bucket].mean.shape
        return channels, height, width

    def latents(self, entries: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """``mean``, ``logvar`` and ``mask`` of b entries of one bucket, on ``device``."""
        (bucket,) = {self.bucket_of[i] for i in entries}
        rows = torch.tensor([self.places[i] for i in entries])
        latents, device = self.buckets[bucket], self.device
        mask = None if latents.mask is None else latents.mask[rows].to(device)
        return latents.mean[rows].to(device), latents.logvar[rows].to(device), mask

    def text_rows(self, rows: Tensor) -> Conditioning:
        """The conditioning of caption rows (b,), on ``device``; only with ``texts``."""
        assert self.texts is not None
        chosen = self.texts.rows(rows.to(self.texts.embeds.device))
        return chosen.map(lambda tensor: tensor.to(self.device))


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

"""Everything the loop needs of the images and captions, encoded once and kept resident.

The VAE and the text encoders are not needed again until a preview is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from torch import Tensor

from styletune.progress import progress
from styletune.sdxl.conditioning import empty_prompt, encode_prompts, make_time_ids
from styletune.sdxl.latents import encode_pixels

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """One training image as the trainer wants it: ``pixels`` (h, w, 3) uint8, sizes in px."""

    file_name: str
    caption: str
    pixels: NDArray[np.uint8]
    original_size: Size
    crops_coords_top_left: Size
    target_size: Size


@dataclass(frozen=True, slots=True)
class Cache:
    """Encoded training set of n images, c distinct captions; float32 unless the base is not.

    ``mean``, ``logvar`` (n, 4, h, w); ``time_ids`` (n, 6); ``embeds`` (c + 1, 77, d) and
    ``pooled`` (c + 1, p), whose last row is the empty caption; ``caption_rows`` (n,) int64.
    """

    mean: Tensor
    logvar: Tensor
    time_ids: Tensor
    embeds: Tensor
    pooled: Tensor
    caption_rows: Tensor

    @property
    def num_images(self) -> int:
        return self.mean.shape[0]


def build_cache(
    pipe: StableDiffusionXLPipeline, examples: Iterator[Example], num_images: int, device: str,
    batch_size: int = 8,
) -> Cache:  # fmt: skip
    """Encode every image and caption; ``examples`` is consumed lazily, a batch at a time.

    Raises:
        DataError: NaN latents (names the image) or a caption over 77 tokens.
    """
    means, logvars, time_ids, captions = [], [], [], []
    # SDXL's VAE overflows in float16 and loses a bit of colour in bfloat16.
    pipe.vae.to(torch.float32)
    with progress("cache", num_images) as advance:
        for batch in _batches(examples, batch_size):
            pixels = torch.from_numpy(np.stack([e.pixels for e in batch])).permute(0, 3, 1, 2)
            posterior = encode_pixels(pipe.vae, pixels, [e.file_name for e in batch])
            means.append(posterior.mean)
            logvars.append(posterior.logvar)
            time_ids += [
                make_time_ids(e.original_size, e.crops_coords_top_left, e.target_size)
                for e in batch
            ]
            captions += [e.caption for e in batch]
            advance(len(batch), "")
    pipe.vae.to(pipe.unet.dtype)
    distinct = list(dict.fromkeys(captions))
    encoded, empty = encode_prompts(pipe, distinct), empty_prompt(pipe)
    rows = {caption: i for i, caption in enumerate(distinct)}
    return Cache(
        mean=torch.cat(means).to(device),
        logvar=torch.cat(logvars).to(device),
        time_ids=torch.stack(time_ids).to(device),
        embeds=torch.cat([encoded.embeds, empty.embeds]).to(device),
        pooled=torch.cat([encoded.pooled, empty.pooled]).to(device),
        caption_rows=torch.tensor([rows[c] for c in captions]),
    )


def _batches(examples: Iterator[Example], size: int) -> Iterator[Sequence[Example]]:
    batch: list[Example] = []
    for example in examples:
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

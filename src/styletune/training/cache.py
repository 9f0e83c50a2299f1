"""Everything the loop needs of the images and captions, encoded once and kept resident."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from styletune.data.pixels.crop import Crop
from styletune.data.rows import Entry
from styletune.models.conditioning import (
    conditioning_of,
    empty_is_zero,
    empty_prompt,
    encode_prompts,
    size_conditions,
    stored_tensors,
    text_encoders_of,
)
from styletune.models.families import family_of
from styletune.models.family import Conditioning, Family
from styletune.models.latents import encode_pixels, latent_mask
from styletune.models.placement import RESIDENT_BYTES, placed
from styletune.progress import progress
from styletune.recipe.data_sections import DataSection
from styletune.training.cache_files import (
    Tensors,
    content_key,
    latent_key,
    read_stored,
    tokenizer_hash,
    weights_hash,
    write_stored,
)
from styletune.training.images import Cache, Latents

# Images decoded in advance; a 100-megapixel original takes a gigabyte while it is decoded.
READ_AHEAD = 2


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where a cache goes: its device, and the folder of encoded files that runs share.

    Without a folder everything is encoded again.
    """

    device: str
    folder: Path | None = None


def build_cache(
    pipe: DiffusionPipeline,
    entries: Sequence[Entry],
    captions: Sequence[Sequence[str]],
    read: Callable[[Entry], Crop],
    data: DataSection,
    place: CachePlace,
    *,
    with_text: bool = True,
    title: str = "cache",
) -> Cache:
    """Encode what is not on disk yet; VAE and text encoders run only if something is missing.

    Images are encoded one at a time, and captions too on a CPU: kernels round differently by
    batch size, and a cache that was added to must equal one that was built at once.

    Args:
        pipe: the base model; its VAE and text encoders are put back to where they were.
        entries: (n), at least one.
        captions: (n) lists of K variants each.
        read: an entry's pixels; called from threads, for missing entries only.
        data: its ``mask_floor`` is used, and whether it allows captions that CLIP cuts off.
        place: where the cache goes and the models run.
        with_text: False leaves ``texts`` out, for trained text encoders.
        title: of the progress bar.

    Raises:
        DataError: NaN latents (names the image), a caption over 77 tokens, or as ``read``.
        OutputError: the folder cannot be written.
    """
    assert len(entries) == len(captions) > 0
    assert len({len(variants) for variants in captions}) == 1, "variants differ in number"
    encoded = _encoded_images(pipe, entries, read, place, title)
    sizes = sorted({entry.bucket for entry in entries})
    bucket_of = tuple(sizes.index(entry.bucket) for entry in entries)
    members = [[i for i, b in enumerate(bucket_of) if b == number] for number in range(len(sizes))]
    place_of = {entry: place for bucket in members for place, entry in enumerate(bucket)}
    distinct = tuple(dict.fromkeys(text for variants in captions for text in variants))
    row_of = {text: row for row, text in enumerate(distinct)}
    buckets = tuple(_stack([encoded[i] for i in bucket], data.mask_floor) for bucket in members)
    cut_long = "too-long-caption" in data.allow
    texts = _encoded_texts(pipe, distinct, place, cut_long) if with_text else None
    family = family_of(pipe)
    conditions = [
        size_conditions(family, e.plan.original, e.crops_coords_top_left, e.bucket) for e in entries
    ]
    cache = Cache(
        buckets=buckets,
        bucket_of=bucket_of,
        places=tuple(place_of[i] for i in range(len(entries))),
        sizes={n: torch.stack([c[n] for c in conditions]).to(place.device) for n in conditions[0]},
        texts=texts,
        captions=distinct,
        caption_rows=torch.tensor([[row_of[text] for text in variants] for variants in captions]),
        device=place.device,
    )
    return _resident(cache)


def _encoded_images(
    pipe: DiffusionPipeline,
    entries: Sequence[Entry],
    read: Callable[[Entry], Crop],
    place: CachePlace,
    title: str,
) -> list[Tensors]:
    """``mean``, ``logvar`` (4, h, w) and, with a mask, ``mask`` (h, w), on the CPU."""
    vae_hash = weights_hash(pipe.vae)
    keys = [latent_key(entry, vae_hash) for entry in entries]
    entry_of = dict(zip(keys, entries, strict=True))
    with progress(title, len(entry_of)) as advance:
        tensors_of: dict[str, Tensors] = {}
        for key in entry_of:
            stored = read_stored(place.folder, "latents", key)
            if stored is not None:
                tensors_of[key] = stored
                advance(1, "")
        missing = {key: entry for key, entry in entry_of.items() if key not in tensors_of}
        if missing:
            # A VAE may overflow in float16 and loses a bit of color in bfloat16.
            with (
                placed(pipe.vae, place.device, torch.float32),
                contextlib.closing(_read_ahead(read, list(missing.values()))) as crops,
            ):
                for (key, entry), crop in zip(missing.items(), crops, strict=True):
                    # Another process may have been here since.
                    tensors = read_stored(place.folder, "latents", key)
                    if tensors is None:
                        tensors = _encode_image(pipe, entry, crop)
                        write_stored(place.folder, "latents", key, tensors)
                    tensors_of[key] = tensors
                    advance(1, "")
    return [tensors_of[key] for key in keys]


def _encode_image(pipe: DiffusionPipeline, entry: Entry, crop: Crop) -> Tensors:
    assert crop.target_size == entry.bucket
    assert (crop.mask is None) == (entry.row.mask_hash == "")
    pixels = torch.from_numpy(crop.pixels).permute(2, 0, 1)[None]
    posterior = encode_pixels(pipe.vae, pixels, [entry.row.file_name])
    tensors = {"mean": posterior.mean[0].cpu(), "logvar": posterior.logvar[0].cpu()}
    if crop.mask is not None:
        tensors["mask"] = torch.from_numpy(latent_mask(crop.mask, family_of(pipe).vae_factor))
    return tensors


def _read_ahead(
    read: Callable[[Entry], Crop], entries: Sequence[Entry]
) -> Generator[Crop, None, None]:
    """Read in order, a few entries in advance."""
    waiting: deque[Future[Crop]] = deque()
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="decode") as pool:
        try:
            for entry in entries:
                waiting.append(pool.submit(read, entry))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _encoded_texts(
    pipe: DiffusionPipeline,
    texts: Sequence[str],
    place: CachePlace,
    cut_long: bool,
) -> Conditioning:
    """The conditioning of the texts and, last, of the empty caption."""
    family, encoders = family_of(pipe), text_encoders_of(pipe)
    model = [
        *(weights_hash(encoder) for encoder in encoders),
        *(tokenizer_hash(getattr(pipe, name)) for name in family.tokenizers),
    ]
    keys = {content_key("caption", text, *model): text for text in texts}
    empty_key = content_key("empty caption", empty_is_zero(pipe), *model)
    tensors_of: dict[str, Tensors] = {}
    for key in (*keys, empty_key):
        stored = read_stored(place.folder, "texts", key)
        if stored is not None:
            tensors_of[key] = stored
    missing = [key for key in keys if key not in tensors_of]
    size = 1 if place.device == "cpu" else 32
    if missing or empty_key not in tensors_of:
        with contextlib.ExitStack() as visits:
            for encoder in encoders:
                visits.enter_context(placed(encoder, place.device))
            for start in range(0, len(missing), size):
                chunk = missing[start : start + size]
                encoded = encode_prompts(pipe, [keys[key] for key in chunk], cut_long=cut_long)
                for i, key in enumerate(chunk):
                    tensors_of[key] = _stored_row(family, encoded, i)
                    write_stored(place.folder, "texts", key, tensors_of[key])
            if empty_key not in tensors_of:
                tensors_of[empty_key] = _stored_row(family, empty_prompt(pipe), 0)
                write_stored(place.folder, "texts", empty_key, tensors_of[empty_key])
    rows = [tensors_of[key] for key in (*keys, empty_key)]
    return conditioning_of(family, {k: torch.stack([row[k] for row in rows]) for k in rows[0]})


def _stored_row(family: Family, text: Conditioning, row: int) -> Tensors:
    return {name: tensor[row].cpu() for name, tensor in stored_tensors(family, text).items()}


def _stack(rows: Sequence[Tensors], mask_floor: float) -> Latents:
    mask = None
    if any("mask" in row for row in rows):
        everywhere = torch.ones_like(rows[0]["mean"][0])
        cells = torch.stack([row.get("mask", everywhere) for row in rows])[:, None]
        mask = mask_floor + (1 - mask_floor) * cells
    mean, logvar = (torch.stack([row[name] for row in rows]) for name in ("mean", "logvar"))
    return Latents(mean, logvar, mask)


def _resident(cache: Cache) -> Cache:
    """Move the tensors to the device if they are few, as the memory plan expects, else pin them."""
    if torch.device(cache.device).type != "cuda":
        return _moved(cache, lambda tensor: tensor.to(cache.device))
    tensors = [] if cache.texts is None else [cache.texts.embeds, *cache.texts.added.values()]
    for bucket in cache.buckets:
        tensors += [t for t in (bucket.mean, bucket.logvar, bucket.mask) if t is not None]
    needed_bytes = sum(t.numel() * t.element_size() for t in tensors)
    if needed_bytes <= RESIDENT_BYTES:
        return _moved(cache, lambda tensor: tensor.to(cache.device))
    return _moved(cache, lambda tensor: tensor.pin_memory())


def _moved(cache: Cache, move: Callable[[Tensor], Tensor]) -> Cache:
    buckets = tuple(
        Latents(move(b.mean), move(b.logvar), None if b.mask is None else move(b.mask))
        for b in cache.buckets
    )
    texts = None if cache.texts is None else cache.texts.map(move)
    return replace(cache, buckets=buckets, texts=texts)

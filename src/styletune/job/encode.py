"""Everything that training sees, encoded once by the bare base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from styletune.data.entries import entries, read_entry
from styletune.data.pixels.buckets import plan_crop
from styletune.data.rows import Entry, Row
from styletune.job.facts import origin_facts
from styletune.job.prepare import Job
from styletune.planning.preflight import DRAWN_AT_ONCE
from styletune.recipe import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from styletune.models.conditioning import Conditioning
    from styletune.training.cache import Cache

CLASS_STEPS, CLASS_GUIDANCE = 25, 5.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A cache, and each entry's file name, showings an epoch, and weight of its loss."""

    cache: Cache
    names: list[str]
    repeats: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything the loop sees, encoded by the bare base model."""

    images: Encoded
    held_out: Encoded | None
    class_images: Encoded | None
    class_prompt: Conditioning | None


def trains_text(recipe: Recipe) -> bool:
    """Whether captions must be encoded anew at every step."""
    return recipe.adapter.text_encoders != "none" or bool(recipe.adapter.new_tokens)


def encode(job: Job, pipe: DiffusionPipeline, device: str, draws: bool) -> Seen:
    """Fill the caches while the models are as the base has them."""
    from styletune.models.conditioning import encode_prompts

    section = job.recipe.dreambooth
    class_images = None
    if section.prior == "images":
        square = (job.resolution, job.resolution)
        rows = _class_rows(job, pipe, device, draws)
        plan = plan_crop(*square, square)
        shown = [Entry(row, job.resolution, plan, flip=False) for row in rows]
        class_images = _cached(job, pipe, shown, device, "cache class", variants=1)
    held = entries(job.data, "holdout") if job.recipe.train.validation_every else []
    prompt = section.class_prompt
    return Seen(
        images=_cached(job, pipe, entries(job.data), device, "cache"),
        held_out=_cached(job, pipe, held, device, "cache held-out", variants=1) if held else None,
        class_images=class_images,
        class_prompt=encode_prompts(pipe, [prompt]) if prompt is not None else None,
    )


def _cached(
    job: Job,
    pipe: DiffusionPipeline,
    shown: Sequence[Entry],
    device: str,
    title: str,
    variants: int | None = None,
) -> Encoded:
    from styletune.data.captions.variants import caption_variants
    from styletune.training.cache import build_cache

    data = job.recipe.data
    captions = [
        caption_variants(
            entry.row.text,
            variants or data.caption_variants,
            shuffle=data.caption_shuffle,
            keep_first=data.caption_keep_first,
            tag_dropout=data.caption_tag_dropout,
            seed=job.recipe.train.seed,
        )
        for entry in shown
    ]
    cache = build_cache(
        pipe,
        shown,
        captions,
        lambda entry: read_entry(entry),
        device=device,
        cache_dir=job.cache_dir,
        mask_floor=data.mask_floor,
        with_text=not trains_text(job.recipe),
        cut_long="too-long-caption" in data.allow,
        title=title,
    )
    return Encoded(
        cache,
        [e.row.file_name for e in shown],
        tuple(e.row.repeats for e in shown),
        tuple(e.row.weight for e in shown),
    )


def _class_rows(job: Job, pipe: DiffusionPipeline, device: str, draws: bool) -> list[Row]:
    """Images of the class by the bare base model, generated once, by the first process."""
    from PIL import Image

    from styletune.data.pixels.fingerprint import pixel_hash
    from styletune.models.placement import placed
    from styletune.sampling.images import generate_images
    from styletune.sampling.shots import Sampler, square_shot

    section, side = job.recipe.dreambooth, job.resolution
    prompt = section.class_prompt or ""
    shots = [
        square_shot(prompt, seed, job.run.class_images_dir / f"{seed:05d}.png", side)
        for seed in range(section.num_class_images)
    ]
    if draws:
        with placed(pipe.unet, device):
            generate_images(
                pipe,
                shots,
                Sampler(CLASS_STEPS, CLASS_GUIDANCE),
                origin_facts(job),
                batch_size=DRAWN_AT_ONCE,
                title="class images",
            )
    rows = []
    for shot in shots:
        with Image.open(shot.file) as image:
            pixels = pixel_hash(image.convert("RGB"))
        rows.append(
            Row(
                file_name=shot.file.name,
                path=str(shot.file),
                text=prompt,
                width=side,
                height=side,
                pixel_hash=pixels,
            )
        )
    return rows

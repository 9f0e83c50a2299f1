"""Everything that training sees, encoded once by the bare base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.entries import entries
from styletune.data.pixels.buckets import plan_crop
from styletune.data.read import read_entry
from styletune.data.rows import Entry, Row
from styletune.job.facts import origin_facts
from styletune.job.job import Job
from styletune.planning.workload import DRAWN_AT_ONCE
from styletune.recipe.data_sections import DataSection
from styletune.recipe.training_sections import DreamboothSection
from styletune.sampling.shots import TextShot

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from styletune.models.family import Conditioning
    from styletune.training.cache import CachePlace
    from styletune.training.images import TrainingImages

CLASS_STEPS, CLASS_GUIDANCE = 25, 5.0


@dataclass(frozen=True, slots=True)
class EncodedData:
    """Everything the loop trains on, with the base model's texts; None for what there is not."""

    images: TrainingImages
    held_out: TrainingImages | None
    class_images: TrainingImages | None
    class_prompt: Conditioning | None


def encode(job: Job, pipe: DiffusionPipeline, device: str, draws: bool) -> EncodedData:
    """Fill the caches while the models are as the base has them."""
    from styletune.models.conditioning import encode_prompts
    from styletune.training.cache import CachePlace

    data, prompt = job.recipe.data, job.recipe.dreambooth.class_prompt
    one_caption = data.model_copy(update={"caption_variants": 1})

    def encoded(inputs: Sequence[Entry], section: DataSection, title: str) -> TrainingImages:
        return _encode_images(
            pipe,
            inputs,
            section,
            CachePlace(device, job.cache_dir),
            seed=job.recipe.train.seed,
            with_text=not job.recipe.adapter.trains_text,
            title=title,
        )

    class_images = None
    if job.recipe.dreambooth.prior == "images":
        square = (job.resolution, job.resolution)
        plan = plan_crop(*square, square)
        section, folder = job.recipe.dreambooth, job.run.class_images_dir
        shots = class_shots(section, folder, job.resolution)
        if draws:
            origin = origin_facts(job.base, job.identity.training_hash)
            _draw(pipe, shots, origin, device)
        squares = [Entry(_class_row(s), job.resolution, plan, flip=False) for s in shots]
        class_images = encoded(squares, one_caption, "cache class")
    images = encoded(entries(job.data), data, "cache")
    held = entries(job.data, "holdout") if job.recipe.train.validation_every else []
    return EncodedData(
        images=images,
        held_out=encoded(held, one_caption, "cache held-out") if held else None,
        class_images=class_images,
        class_prompt=encode_prompts(pipe, [prompt]) if prompt is not None else None,
    )


def _encode_images(
    pipe: DiffusionPipeline,
    inputs: Sequence[Entry],
    data: DataSection,
    place: CachePlace,
    *,
    seed: int,
    with_text: bool,
    title: str,
) -> TrainingImages:
    """Encode entries and the variants of their captions, of which ``seed`` decides."""
    from styletune.data.captions.variants import caption_variants
    from styletune.training.cache import build_cache
    from styletune.training.images import TrainingImages

    captions = [
        caption_variants(
            entry.row.text,
            data.caption_variants,
            shuffle=data.caption_shuffle,
            keep_first=data.caption_keep_first,
            tag_dropout=data.caption_tag_dropout,
            seed=seed,
        )
        for entry in inputs
    ]
    cache = build_cache(
        pipe,
        inputs,
        captions,
        read_entry,
        data,
        place,
        with_text=with_text,
        title=title,
    )
    return TrainingImages(
        cache,
        cache.text_rows,
        [entry.row.file_name for entry in inputs],
        tuple(entry.row.repeats for entry in inputs),
        tuple(entry.row.weight for entry in inputs),
    )


def class_shots(section: DreamboothSection, folder: Path, side: int) -> list[TextShot]:
    """The images of the class, ``side`` pixels wide and high."""
    from styletune.sampling.shots import square_shot

    return [
        square_shot(section.class_prompt or "", seed, folder / f"{seed:05d}.png", side)
        for seed in range(section.num_class_images)
    ]


def _draw(
    pipe: DiffusionPipeline, shots: Sequence[TextShot], origin: dict[str, object], device: str
) -> None:
    """Images of the class by the bare base model; those that are there stay."""
    from styletune.models.placement import placed
    from styletune.sampling.images import generate_images
    from styletune.sampling.shots import Sampler

    with placed(pipe.unet, device):
        generate_images(
            pipe,
            shots,
            Sampler(CLASS_STEPS, CLASS_GUIDANCE),
            origin,
            batch_size=DRAWN_AT_ONCE,
            title="class images",
        )


def _class_row(shot: TextShot) -> Row:
    from PIL import Image

    from styletune.data.pixels.fingerprint import pixel_hash

    with Image.open(shot.file) as image:
        pixels = pixel_hash(image.convert("RGB"))
    return Row(
        file_name=shot.file.name,
        path=str(shot.file),
        text=shot.prompt,
        width=shot.width,
        height=shot.height,
        pixel_hash=pixels,
    )

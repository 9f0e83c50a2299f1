"""A ready pipeline and shots -> PNG files, each with its settings and origin embedded.

An image that is there already with exactly these settings is not generated again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, assert_never

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from styletune.errors import BadInput
from styletune.models.conditioning import (
    empty_prompt,
    encode_prompts,
    prompt_arguments,
    text_encoders_of,
)
from styletune.models.families import family_of
from styletune.models.family import Conditioning
from styletune.models.placement import placed
from styletune.progress import progress
from styletune.sampling.png import read_settings, save_png
from styletune.sampling.shots import Sampler, Shot, TextShot, shot_settings


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Encoded once: the distinct texts and the negative prompt."""

    texts: list[str]
    encoded: Conditioning
    negative: Conditioning


def generate_images(
    pipe: DiffusionPipeline,
    shots: Sequence[Shot],
    sampler: Sampler,
    origin: Mapping[str, object],
    *,
    batch_size: int,
    title: str,
) -> int:
    """Generate what is missing; returns how many images that were.

    The UNet's device is where it happens. The text encoders visit it for the prompts, the VAE for
    the images, which it decodes one by one: so an 8 GB card generates as well as it trains.

    Args:
        pipe: with the adapter merged or loaded that ``origin`` names.
        shots: the noise of each depends on its seed alone, never on its neighbors.
        sampler: steps, guidance, negative prompt.
        origin: adapter, version, step, strength, base hash …; embedded beside the prompt.
        batch_size: images at a time; it decides the last bits of a pixel.
        title: of the progress bar.

    Raises:
        BadInput: a shot's scheduler does not exist.
        DataError: a prompt is too long.
        OutputError: the images cannot be written.
    """
    own_scheduler = type(pipe.scheduler).__name__
    settings = [{**origin, **shot_settings(shot, sampler, own_scheduler)} for shot in shots]
    todo = [
        batch
        for batch in _batches(shots, batch_size)
        if any(read_settings(shots[i].file) != settings[i] for i in batch)
    ]
    if not todo:
        return 0
    bare = {name: _without_encoders(pipe, name) for name in {shots[b[0]].scheduler for b in todo}}
    # All texts, of finished images too: a resumed batch must see the same last bits.
    prompts = _encoded(pipe, list(dict.fromkeys(shot.prompt for shot in shots)), sampler)
    missing = sum(len(batch) for batch in todo)
    dtype = text_encoders_of(pipe)[0].dtype
    with (
        placed(pipe.vae, pipe.unet.device, dtype),
        progress(title, len(shots), done=len(shots) - missing) as advance,
    ):
        for batch in todo:
            members = [shots[i] for i in batch]
            images = _denoised(bare[members[0].scheduler], members, prompts, sampler)
            for i, image in zip(batch, images, strict=True):
                save_png(shots[i].file, image, settings[i])
            advance(len(batch), "")
    return missing


def _batches(shots: Sequence[Shot], batch_size: int) -> list[list[int]]:
    """Neighbors of one type, size and scheduler, at most ``batch_size`` together."""
    batches: list[list[int]] = []
    alike = itertools.groupby(
        range(len(shots)),
        key=lambda i: (type(shots[i]), shots[i].width, shots[i].height, shots[i].scheduler),
    )
    for _, group in alike:
        members = list(group)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    return batches


@torch.no_grad()
def _encoded(pipe: DiffusionPipeline, texts: list[str], sampler: Sampler) -> _Prompts:
    negative = sampler.negative_prompt
    with ExitStack() as visits:
        for encoder in text_encoders_of(pipe):
            visits.enter_context(placed(encoder, pipe.unet.device))
        return _Prompts(
            texts,
            encode_prompts(pipe, texts),
            encode_prompts(pipe, [negative]) if negative else empty_prompt(pipe),
        )


def _without_encoders(pipe: DiffusionPipeline, scheduler: str | None) -> DiffusionPipeline:
    """The same pipeline for encoded prompts, wherever the text encoders are."""
    family = family_of(pipe)
    bare = type(pipe)(
        vae=pipe.vae,
        unet=pipe.unet,
        scheduler=pipe.scheduler if scheduler is None else _scheduler(pipe, scheduler),
        **dict.fromkeys((*family.components[1:], *family.tokenizers)),
        **{key: pipe.config[key] for key in family.settings},
        **family.load_options,
    )
    bare.set_progress_bar_config(disable=True)
    return bare


def _scheduler(pipe: DiffusionPipeline, name: str) -> Any:
    """Another scheduler with the noise schedule of the pipeline's own."""
    known = sorted(c.__name__ for c in pipe.scheduler.compatibles)
    if name not in known:
        raise BadInput(f"there is no scheduler {name}", fix=f"choices: {', '.join(known)}")
    return getattr(diffusers, name).from_config(pipe.scheduler.config)


@torch.no_grad()
def _denoised(
    pipe: DiffusionPipeline, shots: Sequence[Shot], prompts: _Prompts, sampler: Sampler
) -> list[Image.Image]:
    """The images of shots that are alike but for prompt and seed."""
    first = shots[0]
    rows = [prompts.texts.index(shot.prompt) for shot in shots]
    negative = prompts.negative.repeated(len(shots))
    match first:
        case TextShot():
            images: list[Image.Image] = pipe(
                **prompt_arguments(family_of(pipe), prompts.encoded.rows(rows), negative),
                num_inference_steps=sampler.steps,
                guidance_scale=sampler.guidance_scale,
                height=first.height,
                width=first.width,
                # On the CPU, so that a seed means the same noise on every device.
                generator=[torch.Generator("cpu").manual_seed(shot.seed) for shot in shots],
            ).images
            return images
        case _:
            assert_never(first)

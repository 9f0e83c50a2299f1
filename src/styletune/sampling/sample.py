"""Prompts × seeds -> PNG files, each with its prompt, seed and origin embedded.

An image that is there already with exactly these settings is not drawn again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, PngImagePlugin

from styletune.files import atomic_write
from styletune.models.conditioning import PromptEmbeds, empty_prompt, encode_prompts
from styletune.models.placement import placed
from styletune.progress import progress

CHUNK = "styletune"


@dataclass(frozen=True, slots=True)
class Sampler:
    """How images are drawn; the scheduler is the base model's own."""

    steps: int
    guidance_scale: float
    negative_prompt: str
    resolution: int


@dataclass(frozen=True, slots=True)
class Shot:
    """One image to draw: its words, its noise and its file."""

    prompt: str
    seed: int
    file: Path


def draw_shots(
    pipe: StableDiffusionXLPipeline,
    shots: Sequence[Shot],
    sampler: Sampler,
    origin: Mapping[str, object],
    *,
    batch_size: int,
    title: str,
) -> int:
    """Draw what is missing and return how many images were drawn.

    The UNet decides where. The text encoders visit its device for the prompts, the VAE for the
    images, which it decodes one by one: so an 8 GB card draws as well as it trains.

    Args:
        pipe: with whatever adapter merged or loaded that ``origin`` names.
        shots: the noise of each depends on its seed alone, never on its neighbours.
        sampler: steps, guidance, negative prompt, size.
        origin: adapter, version, step, strength, base hash …; embedded beside the prompt.
        batch_size: images at a time; part of what decides the last bits of a pixel.
        title: of the progress display.

    Raises:
        DataError: a prompt is too long.
        OutputError: the images cannot be written.
    """
    scheduler = type(pipe.scheduler).__name__
    settings = [_settings(shot, sampler, {**origin, "scheduler": scheduler}) for shot in shots]
    batches = [range(i, min(i + batch_size, len(shots))) for i in range(0, len(shots), batch_size)]
    todo = [b for b in batches if any(read_settings(shots[i].file) != settings[i] for i in b)]
    if not todo:
        return 0
    # All texts, drawn already or not: a resumed batch must see the same last bits.
    texts = list(dict.fromkeys(shot.prompt for shot in shots))
    device = pipe.unet.device
    with placed(pipe.text_encoder, device), placed(pipe.text_encoder_2, device):
        encoded = encode_prompts(pipe, texts)
        negative = (
            encode_prompts(pipe, [sampler.negative_prompt])
            if sampler.negative_prompt
            else empty_prompt(pipe)
        )
    missing = sum(len(batch) for batch in todo)
    with (
        placed(pipe.vae, device, pipe.text_encoder.dtype),
        progress(title, len(shots), done=len(shots) - missing) as advance,
    ):
        without_encoders = _without_encoders(pipe)
        for batch in todo:
            rows = [texts.index(shots[i].prompt) for i in batch]
            seeds = [shots[i].seed for i in batch]
            images = _draw(without_encoders, encoded, rows, negative, seeds, sampler)
            for i, image in zip(batch, images, strict=True):
                save_png(shots[i].file, image, settings[i])
            advance(len(batch), "")
    return missing


def _without_encoders(pipe: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    """The same pipeline for encoded prompts, wherever the text encoders are."""
    made = StableDiffusionXLPipeline(
        vae=pipe.vae,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
        force_zeros_for_empty_prompt=pipe.config.force_zeros_for_empty_prompt,
    )
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def _draw(
    pipe: StableDiffusionXLPipeline,
    encoded: PromptEmbeds,
    rows: list[int],
    negative: PromptEmbeds,
    seeds: list[int],
    sampler: Sampler,
) -> list[Image.Image]:
    n = len(rows)
    output = pipe(
        prompt_embeds=encoded.embeds[rows],
        pooled_prompt_embeds=encoded.pooled[rows],
        negative_prompt_embeds=negative.embeds.expand(n, -1, -1),
        negative_pooled_prompt_embeds=negative.pooled.expand(n, -1),
        num_inference_steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        height=sampler.resolution,
        width=sampler.resolution,
        # On the CPU, so that a seed means the same noise on every device.
        generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
    )
    images: list[Image.Image] = output.images
    return images


def _settings(shot: Shot, sampler: Sampler, origin: Mapping[str, object]) -> dict[str, object]:
    return {**origin, **asdict(sampler), "prompt": shot.prompt, "seed": shot.seed}


def save_png(file: Path, image: Image.Image, settings: Mapping[str, object]) -> None:
    """Write a PNG with its settings: JSON in ``styletune``, A1111's words in ``parameters``."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(CHUNK, json.dumps(settings, sort_keys=True, ensure_ascii=False))
    info.add_itxt("parameters", infotext(settings))
    with atomic_write(file) as stream:
        image.save(stream, format="PNG", pnginfo=info)


def infotext(settings: Mapping[str, object]) -> str:
    """The settings as WebUIs show them."""
    lines = [str(settings["prompt"])]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    resolution = settings["resolution"]
    facts = {
        "Steps": settings["steps"],
        "Sampler": settings.get("scheduler", ""),
        "CFG scale": settings["guidance_scale"],
        "Seed": settings["seed"],
        "Size": f"{resolution}x{resolution}",
        "Model": settings.get("base_model", ""),
        "Adapter": settings.get("adapter", ""),
        "Version": settings.get("version", ""),
        "Digest": settings.get("digest", ""),
        "Strength": settings.get("strength", ""),
    }
    lines.append(", ".join(f"{k}: {v}" for k, v in facts.items() if v not in ("", None)))
    return "\n".join(lines)


def read_settings(file: Path) -> dict[str, object] | None:
    """The settings embedded in an image; None when it is missing, broken or not ours."""
    with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(file) as image:
        image.load()
        content = json.loads(image.info.get(CHUNK, "null"))
        if isinstance(content, dict):
            return content
    return None

"""Images to generate, described: what each starts from, its size, its noise and its file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, assert_never

from styletune.errors import NotFound


@dataclass(frozen=True, slots=True)
class Sampler:
    """How images are denoised; shared by all shots of a call."""

    steps: int
    guidance_scale: float
    negative_prompt: str = ""


@dataclass(frozen=True, slots=True)
class TextShot:
    """One image from words alone: ``width`` × ``height`` pixels, its noise from ``seed``.

    ``scheduler`` is the name of a diffusers scheduler; None is the base model's own.
    """

    prompt: str
    seed: int
    file: Path
    width: int
    height: int
    scheduler: str | None = None


# Other ways to start an image (from an image, with a mask, with a control image) join here, each
# a type of its own; ``shot_settings`` and ``images._denoised`` then no longer type-check until
# they know it.
Shot: TypeAlias = TextShot


def square_shot(prompt: str, seed: int, file: Path, side: int) -> TextShot:
    """A square image with the base model's own scheduler."""
    return TextShot(prompt, seed, file, side, side)


def check_scheduler(name: str, where: str) -> None:
    """Refuse a scheduler that diffusers does not have, before anything is loaded.

    Raises:
        NotFound: no such scheduler, or one of another kind than those of Stable Diffusion.
    """
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

    known = sorted(each.name for each in KarrasDiffusionSchedulers)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(near)}?" if near else f"choices: {', '.join(known)}"
        raise NotFound(f'diffusers has no scheduler "{name}"', where=where, fix=fix)


def shot_settings(shot: Shot, sampler: Sampler, own_scheduler: str) -> dict[str, object]:
    """What an image embeds of its shot and sampler.

    The size of a square is ``resolution`` alone, as version 0.1.0 wrote it: its images are then
    recognized.
    """
    match shot:
        case TextShot():
            square = shot.width == shot.height
            size: dict[str, object] = (
                {"resolution": shot.width}
                if square
                else {"width": shot.width, "height": shot.height}
            )
            return {
                "prompt": shot.prompt,
                "negative_prompt": sampler.negative_prompt,
                "seed": shot.seed,
                "steps": sampler.steps,
                "guidance_scale": sampler.guidance_scale,
                "scheduler": shot.scheduler or own_scheduler,
                **size,
            }
        case _:
            assert_never(shot)

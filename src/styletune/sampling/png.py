"""PNG files that carry their settings: for us, and for people in web UIs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

from styletune.files import atomic_write

CHUNK = "styletune"


def save_png(file: Path, image: Image.Image, settings: Mapping[str, object]) -> None:
    """Write a PNG with its settings: JSON in ``styletune``, A1111's words in ``parameters``.

    Raises:
        OutputError: the file cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    info.add_itxt(CHUNK, json.dumps(settings, sort_keys=True, ensure_ascii=False))
    info.add_itxt("parameters", infotext(settings))
    with atomic_write(file) as stream:
        image.save(stream, format="PNG", pnginfo=info)


def read_settings(file: Path) -> dict[str, object] | None:
    """The settings embedded in an image; None when it is missing, broken or not ours."""
    with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(file) as image:
        image.load()
        content = json.loads(image.info.get(CHUNK, "null"))
        if isinstance(content, dict):
            return content
    return None


def infotext(settings: Mapping[str, object]) -> str:
    """The settings as web UIs show them."""
    lines = [str(settings["prompt"])]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    side = settings.get("resolution")
    facts = {
        "Steps": settings["steps"],
        "Sampler": settings.get("scheduler", ""),
        "CFG scale": settings["guidance_scale"],
        "Seed": settings["seed"],
        "Size": f"{settings.get('width', side)}x{settings.get('height', side)}",
        "Model": settings.get("base_model", ""),
        "Adapter": settings.get("adapter", ""),
        "Version": settings.get("version", ""),
        "Digest": settings.get("digest", ""),
        "Strength": settings.get("strength", ""),
    }
    lines.append(", ".join(f"{k}: {v}" for k, v in facts.items() if v not in ("", None)))
    return "\n".join(lines)

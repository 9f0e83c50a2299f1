"""Draw the demo brand: ``datasets/horizon``, 48 images in one look, with captions and card.

    python scripts/make_horizon.py

The same files come out every time; none of the compositions is among the evaluation's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from world import (
    HORIZON,
    HORIZON_PALETTE,
    SCENES,
    TIMES,
    View,
    caption,
    is_held_out,
    random_view,
    render,
)

FOLDER = Path(__file__).parent.parent / "datasets" / "horizon"
TRIGGER = "horizon style"
IMAGES_PER_SCENE = 6
SIDE_PX = 256


def draw_views() -> list[View]:
    """Six views of each scene, every time of day at least once."""
    rng = np.random.default_rng(2026)
    views = []
    for scene in SCENES:
        for i in range(IMAGES_PER_SCENE):
            time = TIMES[i] if i < len(TIMES) else str(rng.choice(TIMES))
            while True:
                extras = random_view(rng).extras
                view = View(scene, time, extras, int(rng.integers(2**31)))
                if not is_held_out(view):
                    break
            views.append(view)
    return views


def main() -> None:
    (FOLDER / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, view in enumerate(draw_views()):
        name = f"images/{view.scene}-{view.time}-{i % IMAGES_PER_SCENE + 1}.png"
        pixels = render(view, HORIZON, SIDE_PX)
        Image.fromarray(pixels).save(FOLDER / name, optimize=True)
        text = f"{TRIGGER}, {caption(view)}"
        lines.append(json.dumps({"file_name": name, "text": text}) + "\n")
    (FOLDER / "metadata.jsonl").write_text("".join(lines))
    palette = ", ".join(f'"{color}"' for color in HORIZON_PALETTE)
    (FOLDER / "dataset.toml").write_text(
        f"""# The demo brand, drawn by scripts/make_horizon.py.
name = "Horizon"
description = "Screen-printed backgrounds: dusk ramp, cream outlines, cobalt accents, fine stripes."
holder = "The styletune authors"
license = "CC0-1.0"
source = "drawn by scripts/make_horizon.py"
consent = "made for this project"
trigger = "{TRIGGER}"
palette = [{palette}]
background = "#ffffff"
"""
    )
    print(f"{len(lines)} images in {FOLDER}")


if __name__ == "__main__":
    main()

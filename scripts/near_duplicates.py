"""Plant near duplicates in a set of images and count how many of them are found.

    python scripts/near_duplicates.py [FOLDER] [--images N] [--side PX] [--seed S]

Without a folder the set is N renders of the mini world. One image in ten gets a copy:
recompressed, resized, cropped by 5 %, mirrored, or with its hue turned by 5°, each as often.
Recall and precision are over pairs of images; a pair is right when one is a planted copy of the
other, or both are copies of the same.
"""

from __future__ import annotations

import argparse
import io
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

import world
from styletune.data.findings import Finding
from styletune.data.inspection.duplicates import duplicate_groups
from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.inspect import inspect_image

KINDS = ("jpeg", "resize", "crop", "mirror", "hue")
CORNERS_AND_SIDES = ((1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2))


def plant(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """A copy of an RGB image, altered in one way."""
    width, height = image.size
    if kind == "jpeg":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=int(rng.integers(40, 91)))
        return Image.open(stream).convert("RGB")
    if kind == "resize":
        scale = rng.uniform(0.5, 0.9)
        return image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    if kind == "crop":
        x, y = CORNERS_AND_SIDES[rng.integers(len(CORNERS_AND_SIDES))]
        cut_x, cut_y = round(width * 0.05), round(height * 0.05)
        box = (
            cut_x * (x == 1),
            cut_y * (y == 1),
            width - cut_x * (x == 2),
            height - cut_y * (y == 2),
        )
        return image.crop(box)
    if kind == "mirror":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    hsv = np.asarray(image.convert("HSV")).copy()
    # 5° of 360, in Pillow's 256 steps.
    hsv[..., 0] = (hsv[..., 0].astype(int) + 4) % 256
    return Image.fromarray(hsv, "HSV").convert("RGB")


def facts_of(image: Image.Image, name: str) -> ImageFacts:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return read_facts(stream.getvalue(), name)


def read_facts(source: Path | bytes, name: str) -> ImageFacts:
    facts = inspect_image(source, name=name, background="#ffffff")
    if isinstance(facts, Finding):
        raise SystemExit(f"{name}: {facts.message}")
    return facts


def world_images(count: int, side_px: int, rng: np.random.Generator) -> list[Image.Image]:
    views = [world.random_view(rng) for _ in range(count)]
    return [Image.fromarray(world.render(view, side_px=side_px)) for view in views]


def folder_images(folder: Path) -> list[Image.Image]:
    """The images of a folder, at most 1,024 px, over white."""
    images = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            with Image.open(file) as opened:
                opened.thumbnail((1024, 1024))
                rgba = opened.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                images.append(Image.alpha_composite(white, rgba).convert("RGB"))
    return images


def report(images: list[Image.Image], rng: np.random.Generator) -> None:
    copies = max(len(KINDS), len(images) // 10)
    sources = rng.choice(len(images), copies, replace=False)
    facts = {f"{i:05}": facts_of(image, str(i)) for i, image in enumerate(images)}
    origin = {name: name for name in facts}
    kind_of = {}
    for i, source in enumerate(sources):
        kind, name = KINDS[i % len(KINDS)], f"{source:05}"
        copy = f"{name}-{kind}"
        facts[copy] = facts_of(plant(images[source], kind, rng), copy)
        origin[copy], kind_of[copy] = name, kind
    start = time.perf_counter()
    groups = duplicate_groups(facts)
    seconds = time.perf_counter() - start
    found = {pair for group in groups for pair in combinations(sorted(group.files), 2)}
    right = {pair for pair in found if origin[pair[0]] == origin[pair[1]]}
    print(f"{len(facts)} images, {copies} planted copies, {seconds:.2f} s")
    for kind in KINDS:
        mine = [copy for copy, its in kind_of.items() if its == kind]
        hits = sum((origin[copy], copy) in right for copy in mine)
        print(f"  {kind:7} {hits} of {len(mine)} found")
    hits = sum((origin[copy], copy) in right for copy in kind_of)
    wrong = found - right
    links = {(origin[a], origin[b]) for a, b in wrong}
    print(f"recall {hits / copies:.1%}; precision {len(right) / max(1, len(found)):.1%} over pairs")
    print(
        f"wrong pairs: {len(wrong)}, between {len(links)} pairs of originals: {sorted(links)[:20]}"
    )
    print(f"largest group: {max((len(group.files) for group in groups), default=1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    if given.folder:
        report(folder_images(given.folder), rng)
    else:
        report(world_images(given.images, given.side, rng), rng)


if __name__ == "__main__":
    main()

"""Fingerprints and duplicate groups."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

import world
from styletune.data.inspection.copies import likely_copies
from styletune.data.inspection.duplicates import (
    ImageGroup,
    clusters,
    duplicate_groups,
)
from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.inspect import inspect_image
from styletune.data.pixels.decode import decode_image
from styletune.data.pixels.fingerprint import data_fingerprint, pixel_hash


def unseen(units: int, note: str) -> None:
    """Progress that nobody watches."""


def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(world.render(world.random_view(rng))) for _ in range(count)]


def facts_of(image: Image.Image) -> ImageFacts:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    facts = inspect_image(stream.getvalue(), name="image", background=None)
    assert isinstance(facts, ImageFacts)
    return facts


def grouped(images: dict[str, Image.Image]) -> list[ImageGroup]:
    return duplicate_groups({name: facts_of(image) for name, image in images.items()})


def test_pixel_hash_follows_pixels_only(tmp_path: Path) -> None:
    """PNG and TIFF of one picture share it; a pixel, or the shape alone, changes it."""
    image = scenes(1)[0]
    hashes = set()
    for name in ("a.png", "b.tiff", "c.bmp"):
        image.save(tmp_path / name)
        hashes.add(pixel_hash(decode_image(tmp_path / name, name=name, background=None)))
    assert len(hashes) == 1
    other = image.copy()
    other.putpixel((0, 0), (1, 2, 3))
    assert pixel_hash(other) not in hashes
    flat = Image.new("RGB", (8, 2))
    assert pixel_hash(flat) != pixel_hash(Image.new("RGB", (2, 8)))


ROWS = [
    {"pixel_hash": "a", "text": "one", "split": "train", "file_name": "x"},
    {"pixel_hash": "b", "text": "two", "split": "holdout", "file_name": "y"},
]


def test_fingerprint_ignores_order_and_names() -> None:
    """It is about content: shuffled and renamed rows give the same."""
    renamed = [{**row, "file_name": "z"} for row in reversed(ROWS)]
    assert data_fingerprint(ROWS) == data_fingerprint(renamed)


def test_fingerprint_sees_every_change() -> None:
    """Pixels, captions, split, swapped captions and repeats each change it."""
    swapped = [{**ROWS[0], "text": "two"}, {**ROWS[1], "text": "one"}]
    others = [
        [{**ROWS[0], "pixel_hash": "c"}, ROWS[1]],
        [{**ROWS[0], "text": "One"}, ROWS[1]],
        [{**ROWS[0], "split": "holdout"}, ROWS[1]],
        swapped,
        [*ROWS, ROWS[0]],
        ROWS[:1],
        [],
    ]
    assert len({data_fingerprint(rows) for rows in [ROWS, *others]}) == len(others) + 1


def test_exact_copies_are_found() -> None:
    """Same pixels under other names are one exact group and no near one."""
    a, b = scenes(2)
    assert grouped({"1": a, "2": b, "3": a.copy()}) == [ImageGroup("exact", ("1", "3"))]


def test_variants_of_a_picture_are_near() -> None:
    """JPEG, smaller, brighter, recolored and relabelled copies find their original."""
    original, stranger = scenes(2)
    stream = io.BytesIO()
    original.save(stream, "JPEG", quality=60)
    label = original.copy()
    ImageDraw.Draw(label).ellipse((56, 56, 68, 68), fill="white")
    purple = ImageOps.colorize(original.convert("L"), (40, 42, 54), (255, 200, 240))
    images = {
        "brighter": original.point(lambda v: min(255, v * 1.2 + 10)),
        "jpeg": Image.open(stream).convert("RGB"),
        "label": label,
        "original": original,
        "purple": purple,
        "small": original.resize((96, 96)),
        "stranger": stranger,
    }
    assert grouped(images) == [ImageGroup("near", tuple(n for n in images if n != "stranger"))]


def test_scenes_of_one_world_are_not_near() -> None:
    """Eighty different views of one style, where many share a scene and an hour, stay apart."""
    assert grouped({f"{i:02}": image for i, image in enumerate(scenes(80))}) == []


def test_sparse_drawings_are_not_near() -> None:
    """Marks in different places of white paper stay apart, though most of the paper is the same."""
    images = {}
    for x in range(40, 240, 50):
        for y in range(40, 240, 50):
            paper = Image.new("RGB", (256, 256), "white")
            half = 12 + (x + y) // 20
            ImageDraw.Draw(paper).rectangle((x - half, y - half, x + half, y + half), fill="black")
            images[f"{x}-{y}"] = paper
    assert grouped(images) == []


def tinted(image: Image.Image) -> Image.Image:
    hsv = np.asarray(image.convert("HSV")).copy()
    hsv[..., 0] = (hsv[..., 0].astype(int) + 4) % 256  # 5° of 360
    return Image.fromarray(hsv, "HSV").convert("RGB")


def recompressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=50)
    return Image.open(stream).convert("RGB")


def test_near_groups_include_exact_copies() -> None:
    """Variants of one picture and the copies of a variant are one family; others stay apart."""
    first, other = scenes(2)
    images = {
        "a": first,
        "b": recompressed(first),
        "c": tinted(first),
        "d": tinted(first),
        "e": other,
    }
    groups = grouped(images)
    assert groups == [ImageGroup("exact", ("c", "d")), ImageGroup("near", ("a", "b", "c", "d"))]
    assert clusters(images, groups) == [("a", "b", "c", "d"), ("e",)]


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": recompressed,
    "half": lambda image: image.resize((64, 64), Image.Resampling.LANCZOS),
    "stretched": lambda image: image.resize((110, 90), Image.Resampling.LANCZOS),
    "mirrored": ImageOps.mirror,
    "tinted": tinted,
    "left": lambda image: image.crop((6, 0, 128, 128)),
    "right": lambda image: image.crop((0, 0, 122, 128)),
    "top": lambda image: image.crop((0, 6, 128, 128)),
    "corner": lambda image: image.crop((6, 6, 128, 128)),
    "other-corner": lambda image: image.crop((0, 6, 122, 128)),
    "middle": lambda image: image.crop((3, 3, 125, 125)),
    "mirrored-corner": lambda image: ImageOps.mirror(image).crop((0, 0, 122, 122)),
}


def test_altered_copies_find_their_original() -> None:
    """Among 120 scenes, 57 and more of 60 copies, five of each kind, join their original only."""
    images = {f"{i:03}": image for i, image in enumerate(scenes(120, seed=4))}
    for i, name in enumerate(list(images)[:60]):
        kind = list(COPIES)[i % len(COPIES)]
        images[f"{name}-{kind}"] = COPIES[kind](images[name])
    found = [group.files for group in grouped(images)]
    right = [files for files in found if len({name[:3] for name in files}) == 1]
    assert len(right) >= 57
    assert len(found) - len(right) <= 2


def badges(count: int) -> list[Image.Image]:
    """Discs in the middle of white, in different colors, with different marks on them."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        paper = Image.new("RGB", (256, 256), "white")
        draw = ImageDraw.Draw(paper)
        colors = [tuple(int(v) for v in rng.integers(0, 200, 3)) for _ in range(4)]
        draw.ellipse((45, 45, 211, 211), fill=colors[0])
        for color in colors[1:]:
            x, y, r = (int(v) for v in rng.integers((85, 85, 8), (171, 171, 30)))
            draw.rectangle((x - r, y - r, x + r, y + r), fill=color)
        drawn.append(paper)
    return drawn


def test_few_pairs_of_one_layout_are_laid_over_each_other() -> None:
    """Of 60 objects in the middle of white few pairs look like copies, and those include all."""
    images = badges(60)
    copies = [tinted(image) for image in images[:10]]
    copies += [image.crop((12, 0, 256, 256)) for image in images[10:20]]
    copies += [ImageOps.mirror(image) for image in images[20:30]]
    smalls = [facts_of(image).small for image in (*images, *copies)]
    found = {(a, b) for a, b, _ in likely_copies(smalls, np.arange(90), unseen)}
    assert len(found) < 600  # of 8,010, of which most correlate
    assert all({(i, 60 + i), (60 + i, i)} & found for i in range(30))
    assert list(likely_copies(smalls, np.zeros(90, int), unseen)) == []


def test_the_search_needs_little_memory() -> None:
    """The samples of 1,500 images are not held as numbers all at once."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 48 * 256), np.uint8)
    smalls = [each.tobytes() for each in noise]
    tracemalloc.start()
    assert list(likely_copies(smalls, np.arange(1500), unseen)) == []
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100e6


def test_a_moved_object_is_another_picture() -> None:
    """The same scene with its sun elsewhere is no copy, though all else is the same."""
    images = {}
    for x in (30, 60, 90):
        sky = Image.new("RGB", (128, 128), (120, 160, 220))
        draw = ImageDraw.Draw(sky)
        draw.rectangle((0, 90, 128, 128), fill=(40, 90, 40))
        draw.ellipse((x - 20, 25, x + 20, 65), fill=(250, 240, 160))
        images[f"{x}"] = sky
    assert grouped(images) == []


def test_a_large_set_shows_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """Comparing takes minutes for thousands; of flat pictures, all of which are alike, too."""
    colors = [(i % 256, i // 256, 90) for i in range(600)]
    facts = {f"{i}.png": facts_of(Image.new("RGB", (8, 8), c)) for i, c in enumerate(colors)}
    duplicate_groups(facts, show_progress=True)
    assert "Comparing images: 600/600" in capfd.readouterr().err


def test_flat_images_do_not_break_the_search() -> None:
    """A wholly black image is like no scene, and one image alone is like nothing."""
    black = Image.new("RGB", (64, 64))
    assert grouped({"black": black, "scene": scenes(1)[0]}) == []
    assert grouped({"black": black}) == []
    assert grouped({}) == []

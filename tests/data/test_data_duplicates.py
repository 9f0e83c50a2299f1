"""Fingerprints and duplicate groups."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from styletune.data.duplicates import Group, families, group_duplicates, perceptual_hash
from styletune.data.fingerprint import data_fingerprint, pixel_hash
from styletune.data.orient import decode_image
from styletune.mini import world


def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(world.render(world.random_view(rng))) for _ in range(count)]


def grouped(images: dict[str, Image.Image]) -> list[Group]:
    return group_duplicates(
        {name: pixel_hash(image) for name, image in images.items()},
        {name: perceptual_hash(image) for name, image in images.items()},
    )


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
    assert grouped({"1": a, "2": b, "3": a.copy()}) == [Group("exact", ("1", "3"))]


def test_variants_of_a_picture_are_near() -> None:
    """JPEG, smaller, brighter, recoloured and relabelled copies find their original."""
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
    assert grouped(images) == [Group("near", tuple(n for n in images if n != "stranger"))]


def test_scenes_of_one_world_are_not_near() -> None:
    """Eighty different views of one style, where many share a scene and an hour, stay apart."""
    assert grouped({f"{i:02}": image for i, image in enumerate(scenes(80))}) == []


def test_sparse_drawings_are_not_near() -> None:
    """Different marks on white paper stay apart, though most of the paper is the same."""
    rng = np.random.default_rng(0)
    images = {}
    for i in range(40):
        paper = Image.new("RGB", (512, 512), "white")
        x, y = (int(v) for v in rng.integers(100, 400, 2))
        half = int(rng.integers(25, 60))
        ImageDraw.Draw(paper).rectangle((x - half, y - half, x + half, y + half), fill="black")
        images[f"{i:02}"] = paper
    assert grouped(images) == []


def test_near_links_chain_and_include_copies() -> None:
    """a~b and b~c make one group, with the exact copy of c in it as well."""
    hashes = {"a": "1", "b": "2", "c": "3", "d": "3", "e": "4"}
    bits = {"a": 0, "b": 0b11, "c": 0b1111, "d": 0b1111, "e": (1 << 700) - 1}
    groups = group_duplicates(hashes, bits, max_distance=2)
    assert groups == [Group("exact", ("c", "d")), Group("near", ("a", "b", "c", "d"))]
    assert families(hashes, groups) == [("a", "b", "c", "d"), ("e",)]
    assert group_duplicates(hashes, bits, max_distance=1) == [Group("exact", ("c", "d"))]

"""The front door: from a folder to a checked, split, fingerprinted set."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import world
from data_parts import load_folder, warnings_of
from styletune.data.checked import holdout_rows, train_rows
from styletune.data.load import as_dataset
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.read import read_square
from styletune.errors import DataError


def scene(seed: int) -> Image.Image:
    rng = np.random.default_rng([seed, 5])
    return Image.fromarray(world.render(world.random_view(rng)))


def save(root: Path, name: str, image: Image.Image, caption: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    image.save(root / name)
    (root / name).with_suffix(".txt").write_text(caption)


def fill(root: Path, count: int = 10) -> Path:
    for i in range(count):
        save(root, f"{i:02}.png", scene(i), f"brandlook scene {i}")
    return root


def test_a_good_folder_is_loaded(tmp_path: Path) -> None:
    """Every image is there once, with its facts, on one side, and no finding is made up."""
    data = load_folder(fill(tmp_path))
    rows = data.rows
    assert [row.file_name for row in rows] == [f"{i:02}.png" for i in range(10)]
    assert (rows[3].width, rows[3].height, rows[3].text) == (128, 128, "brandlook scene 3")
    assert rows[3].pixel_hash == pixel_hash(scene(3))
    assert (len(train_rows(data)), len(holdout_rows(data))) == (8, 2)
    assert (dict(data.checked.cards), data.groups, warnings_of(data)) == ({}, [], [])


def test_loading_twice_gives_the_same(tmp_path: Path) -> None:
    """Fingerprint and split follow content: renaming and moving files changes neither."""
    first = load_folder(fill(tmp_path / "a"))
    moved = tmp_path / "b" / "sub"
    for i in range(10):
        save(moved, f"x{9 - i}.bmp", scene(i), f"brandlook scene {i}")
    second = load_folder(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    held = [{row.pixel_hash for row in holdout_rows(data)} for data in (first, second)]
    assert held[0] == held[1]


@pytest.mark.parametrize("change", ["pixels", "caption", "holdout", "background"])
def test_fingerprint_follows_what_is_trained_on(tmp_path: Path, change: str) -> None:
    """A pixel, a caption, the split and the background under alpha each change it."""
    fill(tmp_path)
    glass = scene(20).convert("RGBA")
    glass.putpixel((0, 0), (0, 0, 0, 0))
    save(tmp_path, "glass.png", glass, "brandlook")
    card = tmp_path / "dataset.toml"
    card.write_text('background = "#ffffff"')
    before = load_folder(tmp_path).fingerprint
    if change == "pixels":
        scene(99).save(tmp_path / "00.png")
    elif change == "caption":
        (tmp_path / "00.txt").write_text("another")
    elif change == "background":
        card.write_text('background = "#000000"')
    after = load_folder(tmp_path, holdout=0.4 if change == "holdout" else 0.2).fingerprint
    assert after != before


def test_every_faulty_image_is_in_one_error(tmp_path: Path) -> None:
    """Empty, truncated, renamed, transparent and too small images are all listed at once."""
    fill(tmp_path, 4)
    good = (tmp_path / "00.png").read_bytes()
    faulty = {"empty": b"", "half": good[: len(good) // 2], "text": b"hello"}
    for name, content in faulty.items():
        (tmp_path / f"{name}.png").write_bytes(content)
        (tmp_path / f"{name}.txt").write_text("x")
    save(tmp_path, "glass.png", Image.new("RGBA", (128, 128), (0, 0, 0, 9)), "x")
    save(tmp_path, "small.png", Image.new("RGB", (64, 64)), "x")
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path)
    error = caught.value
    for name in (*faulty, "glass", "small"):
        assert f"{name}.png (" in error.message
    text = str(error)
    assert 'background = "#ffffff"' in text
    assert "choose data.resolution 80" in text


def test_duplicates_stay_together_and_are_reported(tmp_path: Path) -> None:
    """Copies and variants are findings, share a group and never straddle the split."""
    fill(tmp_path)
    save(tmp_path, "copy.png", scene(0), "brandlook")
    save(tmp_path, "variant.jpg", scene(1), "brandlook")
    for holdout in (0.1, 0.2, 0.3, 0.4, 0.5):
        data = load_folder(tmp_path, holdout=holdout)
        rows = {row.file_name: row for row in data.rows}
        for pair in (("00.png", "copy.png"), ("01.png", "variant.jpg")):
            a, b = (rows[name] for name in pair)
            assert a.split == b.split
            assert pair in {group.files for group in data.groups}
        found = warnings_of(data, "exact-duplicates", "near-duplicates")
        assert [(f.code, f.files) for f in found] == [
            ("exact-duplicates", ("00.png", "copy.png")),
            ("near-duplicates", ("01.png", "variant.jpg")),
        ]


def test_a_missing_trigger_is_reported(tmp_path: Path) -> None:
    """Captions without the word are named, and those with a near spelling; case does not count."""
    fill(tmp_path, 4)
    (tmp_path / "dataset.toml").write_text('trigger = "brandlook"')
    (tmp_path / "01.txt").write_text("BrandLook, a scene")
    (tmp_path / "02.txt").write_text("brandlooks like this")
    (tmp_path / "03.txt").write_text("a scene")
    (finding,) = warnings_of(load_folder(tmp_path), "missing-trigger")
    assert finding.files == ("03.png",)
    assert "1 of 4 captions" in finding.message
    (finding,) = warnings_of(load_folder(tmp_path), "inconsistent-trigger")
    assert finding.files == ("02.png",)


def test_large_crops_and_upscaling_are_reported(tmp_path: Path) -> None:
    """What the crop costs is said in pixels of the original; mild cropping is not reported."""
    fill(tmp_path, 4)
    save(tmp_path, "wide.png", scene(11).resize((512, 256)), "x")
    save(tmp_path, "mild.png", scene(12).resize((290, 256)), "x")
    save(tmp_path, "small.png", scene(13).resize((110, 110)), "x")
    cropped, upscaled = warnings_of(load_folder(tmp_path), "cropped", "upscaled")
    assert (cropped.code, cropped.files) == ("cropped", ("wide.png",))
    assert "wide.png loses 65536 pixels (50%)" in cropped.message
    assert (upscaled.code, upscaled.files) == ("upscaled", ("small.png",))
    assert "110×110" in upscaled.message


def test_squares_are_read_from_rows(tmp_path: Path) -> None:
    """A row's square has the oriented size, and the pixels of the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    fill(tmp_path, 2)
    scene(5).resize((200, 128)).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "turned.txt").write_text("x")
    rows = load_folder(tmp_path).rows
    turned = rows[-1]
    assert (turned.width, turned.height) == (128, 200)
    crop = read_square(turned, 128)
    assert crop.original_size == (200, 128)
    assert crop.crops_coords_top_left == (36, 0)
    assert (read_square(rows[0], 128).pixels == np.asarray(scene(0))).all()


def test_an_image_changed_after_loading_is_noticed(tmp_path: Path) -> None:
    """A row never gives the pixels of another picture."""
    row = load_folder(fill(tmp_path, 3)).rows[0]
    scene(50).save(row.path)
    with pytest.raises(DataError, match="changed after"):
        read_square(row, 128)


def test_one_family_cannot_be_held_out(tmp_path: Path) -> None:
    """A set of copies says that nothing can be held out; without holdout it loads."""
    for name in ("a.png", "b.png"):
        save(tmp_path, name, scene(0), "x")
    with pytest.raises(DataError, match="variants of one picture"):
        load_folder(tmp_path)
    assert len(train_rows(load_folder(tmp_path, holdout=0))) == 2


def test_progress_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The bar never touches stdout, and without it nothing is printed at all."""
    fill(tmp_path, 3)
    load_folder(tmp_path)
    assert tuple(capfd.readouterr()) == ("", "")
    load_folder(tmp_path, show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Reading images" in err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A file without permission is in the list of faults."""
    fill(tmp_path, 2)
    (tmp_path / "01.png").chmod(0)
    with pytest.raises(DataError, match=r"01\.png"):
        load_folder(tmp_path)


def test_a_set_is_a_hugging_face_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come back in order with upright sRGB pixels, captions, split and rights."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    exif = Image.Exif()
    exif[0x0112] = 6
    images = fill(tmp_path / "set", 4)
    (images / "dataset.toml").write_text('license = "CC0-1.0"\nholder = "Ada Ltd"')
    scene(5).resize((200, 128)).save(images / "turned.png", exif=exif)
    (images / "turned.txt").write_text("x")
    data = load_folder(images)
    dataset = as_dataset(data)
    assert dataset["file_name"][:] == [row.file_name for row in data.rows]
    assert dataset["split"][:] == [row.split for row in data.rows]
    turned = dataset[4]
    assert (turned["image"].mode, turned["image"].size) == ("RGB", (128, 200))
    assert pixel_hash(turned["image"]) == data.rows[4].pixel_hash == turned["pixel_hash"]
    assert (turned["text"], turned["width"], turned["height"]) == ("x", 128, 200)
    assert (turned["license"], turned["holder"], turned["consent"]) == ("CC0-1.0", "Ada Ltd", "")
    scene(50).save(images / "00.png")
    with pytest.raises(DataError, match="changed after"):
        as_dataset(dataclasses.replace(data, rows=data.rows[:2]))

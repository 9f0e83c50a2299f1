"""Entries: every image at every resolution, as it is and mirrored, in its bucket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import world
from data_parts import load_folder, warnings_of
from styletune.data.checked import LoadedData
from styletune.data.entries import bucket_report, entries
from styletune.data.read import read_entry, read_square
from styletune.errors import DataError

SIZES = [(128, 128), (300, 200), (200, 300), (140, 130), (320, 180)]


def fill(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(SIZES):
        view = world.random_view(np.random.default_rng([i, 6]))
        Image.fromarray(world.render(view, side_px=320)).resize(size).save(root / f"{i}.png")
    return root


def load(path: Path, **changes: object) -> LoadedData:
    settings: dict[str, object] = {
        "default_caption": "x",
        "holdout": 0.0,
        "resolution": 128,
        "buckets": True,
    }
    return load_folder(path, **{**settings, **changes})


def test_every_view_of_an_image_is_an_entry(tmp_path: Path) -> None:
    """Images × resolutions × mirrored, in order, each in the bucket of its shape."""
    data = load(fill(tmp_path), extra_resolutions=(96,), flip=True)
    found = entries(data)
    assert [(e.row.file_name, e.resolution, e.flip) for e in found] == [
        (f"{i}.png", r, flip) for i in range(5) for r in (128, 96) for flip in (False, True)
    ]
    assert [e.bucket for e in found if e.resolution == 128 and not e.flip] == [
        (128, 128),
        (96, 160),
        (160, 96),
        (128, 128),
        (96, 160),
    ]
    for entry in found:
        crop = read_entry(entry)
        assert crop.pixels.shape == (*entry.bucket, 3)
        assert crop.target_size == entry.bucket
        assert crop.original_size == SIZES[int(entry.row.file_name[0])][::-1]
        assert crop.crops_coords_top_left == entry.crops_coords_top_left
        assert crop.mask is None


def test_a_mirrored_entry_has_mirrored_pixels(tmp_path: Path) -> None:
    """The second entry of an image is the first one, turned left to right, exactly."""
    found = entries(load(fill(tmp_path), flip=True))
    for plain, mirrored in zip(found[::2], found[1::2], strict=True):
        a, b = read_entry(plain), read_entry(mirrored)
        assert (a.pixels == b.pixels[:, ::-1]).all()
        assert (a.pixels != b.pixels).any()


def test_held_out_images_are_seen_once(tmp_path: Path) -> None:
    """Neither mirroring nor further resolutions multiply what is measured."""
    data = load(fill(tmp_path), holdout=0.4, flip=True, extra_resolutions=(96,))
    held = entries(data, "holdout")
    assert len(held) == 2
    assert {(e.resolution, e.flip) for e in held} == {(128, False)}
    assert len(entries(data)) == 3 * 4


def test_without_buckets_entries_are_squares(tmp_path: Path) -> None:
    """The table of one square gives the very pixels of ``read_square``."""
    data = load(fill(tmp_path), buckets=False)
    for entry, row in zip(entries(data), data.rows, strict=True):
        crop, square = read_entry(entry), read_square(row, 128)
        assert (crop.pixels == square.pixels).all()
        assert crop.crops_coords_top_left == square.crops_coords_top_left
        assert crop.target_size == (128, 128)


def test_the_report_counts_buckets_and_losses(tmp_path: Path) -> None:
    """Each bucket is listed with its entries and the mean share that is trimmed."""
    report = bucket_report(entries(load(fill(tmp_path))))
    assert [(b.height, b.width, b.images) for b in report] == [
        (96, 160, 2),
        (128, 128, 2),
        (160, 96, 1),
    ]
    # 300×200 becomes 160×107 and loses 11 rows; 320×180 becomes 171×96 and loses 11 columns.
    assert report[0].lost_share == pytest.approx((11 / 107 + 11 / 171) / 2, abs=1e-4)


def test_buckets_lose_less_than_squares(tmp_path: Path) -> None:
    """The wide image that the square crop is reported for is no finding with buckets."""
    fill(tmp_path)
    (cropped,) = warnings_of(load(tmp_path, buckets=False), "cropped")
    assert (cropped.code, cropped.files) == ("cropped", ("1.png", "2.png", "4.png"))
    assert warnings_of(load(tmp_path), "cropped") == []
    Image.new("RGB", (800, 200), (9, 99, 9)).save(tmp_path / "5.png")
    (cropped,) = warnings_of(load(tmp_path), "cropped")
    assert cropped.files == ("5.png",)
    assert "nearest bucket" in cropped.message
    assert "max_aspect" in cropped.fix
    assert warnings_of(load(tmp_path, max_aspect=4.0), "cropped") == []


def test_an_image_too_small_for_one_resolution_is_named(tmp_path: Path) -> None:
    """A further resolution that would enlarge an image too much stops the run."""
    with pytest.raises(DataError) as caught:
        load(fill(tmp_path), extra_resolutions=(256,))
    assert "2 of 5 images" in caught.value.message
    assert "0.png (128×128 pixels, 2.00 times to fill 256×256)" in caught.value.message


def test_a_resolution_given_twice_is_refused(tmp_path: Path) -> None:
    """Nothing is silently counted twice, nor silently once."""
    with pytest.raises(DataError) as caught:
        load(fill(tmp_path), extra_resolutions=(96, 128))
    assert caught.value.where == "data.extra_resolutions"

"""Aspect buckets: their area, the choice among them, and the crop that is told to the model."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from PIL import Image

from styletune.data.inspection.sizes import fitting_resolution, too_small_findings
from styletune.data.pixels.buckets import (
    Tables,
    bucket_table,
    choose_bucket,
    default_step,
    plan_crop,
)
from styletune.data.pixels.crop import crop_corner, crop_pixels
from styletune.errors import DataError

SDXL = bucket_table(1024, 64, 2.0)


def capped_table(side: int, step: int) -> tuple[tuple[int, int], ...]:
    """The common table whose sides may not exceed the resolution."""
    sides = range(step, side + 1, step)
    return tuple((a, b) for a in sides for b in sides if max(a, b) == side)


@pytest.mark.parametrize(
    ("height", "width", "bucket"),
    [
        (2000, 3000, (832, 1216)),
        (1080, 1920, (768, 1344)),
        (3000, 2000, (1216, 832)),
        (1920, 1080, (1344, 768)),
        (3000, 4000, (896, 1152)),
        (1500, 1500, (1024, 1024)),
        (1050, 1080, (1024, 1024)),
    ],
)
def test_common_shapes_keep_their_megapixel(
    height: int, width: int, bucket: tuple[int, int]
) -> None:
    """Photo and screen formats train at 0.97 MP and more, where capped sides would shrink them."""
    chosen = choose_bucket(height, width, SDXL)
    assert chosen == bucket
    assert chosen[0] * chosen[1] >= 0.97e6
    assert plan_crop(height, width, chosen).lost_share < 0.04


def test_capped_sides_would_shrink_wide_images() -> None:
    """The table that caps its sides trains 16:9 at 0.56 of the area, ours at 0.98."""
    shares = [
        math.prod(choose_bucket(1080, 1920, table)) / 1024**2
        for table in (capped_table(1024, 64), SDXL)
    ]
    assert shares == pytest.approx([0.5625, 0.984], abs=1e-3)


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (768, 64), (128, 32), (1000, 64)])
@pytest.mark.parametrize("max_aspect", [1.0, 2.0, 3.0])
def test_tables_keep_their_rules(resolution: int, step: int, max_aspect: float) -> None:
    """Sides are multiples, areas and aspects within the limits, and each bucket also lies down."""
    table = bucket_table(resolution, step, max_aspect)
    assert set(table) == {(w, h) for h, w in table}
    assert (resolution // step * step,) * 2 in table
    for h, w in table:
        assert h % step == w % step == 0
        assert h * w <= resolution**2
        assert max(h, w) <= max_aspect * min(h, w)
        if h != w:  # and one side at least could not be a step longer
            assert max((h + step) * w, h * (w + step)) > resolution**2


def test_default_steps() -> None:
    """Small resolutions get finer steps; a step above the resolution is refused."""
    assert [default_step(r) for r in (128, 511, 512, 1024)] == [32, 32, 64, 64]
    with pytest.raises(DataError) as caught:
        bucket_table(64, 128, 2.0)
    assert caught.value.where == "data.bucket_step"


def test_the_trim_is_what_the_model_is_told() -> None:
    """3000×2000 becomes 1248×832 and loses 16 pixels on the left, none above."""
    plan = plan_crop(2000, 3000, (832, 1216))
    assert (plan.resized, plan.top, plan.left) == ((832, 1248), 0, 16)
    assert plan.lost_share == pytest.approx(32 / 1248)
    assert plan.scale == pytest.approx(0.416)


def test_any_size_is_covered_and_cropped_in_the_middle() -> None:
    """Over random sizes the crop lies inside, covers the bucket, and is central to a pixel."""
    rng = random.Random(4)
    for _ in range(2000):
        height, width = rng.randint(40, 4000), rng.randint(40, 4000)
        bucket = choose_bucket(height, width, SDXL)
        plan = plan_crop(height, width, bucket)
        for side, start, cut, original in zip(
            plan.resized, (plan.top, plan.left), bucket, (height, width), strict=True
        ):
            assert 0 <= start <= start + cut <= side
            assert abs((side - cut - start) - start) <= 1
            assert abs(side - original * plan.scale) <= 0.5 + 1e-6
        assert min(a - b for a, b in zip(plan.resized, bucket, strict=True)) == 0
        nearest = min(abs(math.log(h / w) - math.log(height / width)) for h, w in SDXL)
        off = abs(math.log(bucket[0] / bucket[1]) - math.log(height / width))
        assert off == pytest.approx(nearest, abs=1e-8)


@pytest.mark.parametrize("flip", [False, True])
def test_coordinates_match_the_pixels(flip: bool) -> None:
    """A coordinate picture shows that pixels were cut where the corner says, mirrored or not."""
    height, width = 211, 333
    across = np.linspace(0, 255, width)[None].repeat(height, 0)
    picture = np.stack([across] * 3, -1).round().astype(np.uint8)
    plan = plan_crop(height, width, (96, 128))
    crop = crop_pixels(Image.fromarray(picture), plan, flip=flip, mask=None)
    assert crop.original_size == (height, width)
    assert crop.target_size == (96, 128)
    assert crop.crops_coords_top_left == crop_corner(plan, flip)
    where = (crop.crops_coords_top_left[1] + np.arange(128) + 0.5) / plan.scale - 0.5
    expected = where / (width - 1) * 255
    line = crop.pixels[48, :, 0]
    assert np.abs((255 - line if flip else line) - expected)[4:-4].max() <= 2.5


def test_a_mirrored_odd_trim_has_another_corner() -> None:
    """Of 13 trimmed columns 6 are left of the crop, and 7 once it is mirrored."""
    plan = plan_crop(100, 141, (100, 128))
    assert plan.resized == (100, 141)
    assert (crop_corner(plan, False), crop_corner(plan, True)) == ((0, 6), (0, 7))


def test_the_advised_resolution_fits_the_buckets_too() -> None:
    """The suggested resolution is one at which the same image passes."""
    plan = plan_crop(600, 900, choose_bucket(600, 900, SDXL))
    plans = {"small.png": (plan,)}

    def tables(side: int) -> Tables:
        return ((side, bucket_table(side, default_step(side), 2.0)),)

    (error,) = too_small_findings(plans, lambda: fitting_resolution(plans, tables, 64))
    assert "900×600 pixels, 1.39 times" in error.message
    fitting = int(error.fix.split("data.resolution ")[1].split()[0])
    table = bucket_table(fitting, default_step(fitting), 2.0)
    better = plan_crop(600, 900, choose_bucket(600, 900, table))
    assert too_small_findings({"small.png": (better,)}, lambda: None) == []

"""Findings: severities by code, and images that are too small."""

from __future__ import annotations

import random
from functools import partial

import pytest

from styletune.data.findings import CODES, agree, data_error, finding, first_few
from styletune.data.inspection.sizes import (
    fitting_resolution,
    size_findings,
    too_small_findings,
)
from styletune.data.pixels.buckets import (
    CropPlan,
    Tables,
    bucket_table,
    default_step,
    plan_crop,
    plan_crops,
)


def plan(width: int, height: int, side: int = 512) -> CropPlan:
    return plan_crop(height, width, (side, side))


def test_a_finding_is_as_severe_as_its_code() -> None:
    """Every code brings its severity, which may be overruled by name."""
    for code, (severity, _) in CODES.items():
        assert finding(code, ["a.png"], "", "").severity == severity
    assert finding("dark", ["a.png"], "", "", "fact").severity == "fact"


def test_every_error_has_its_own_fix_behind_it() -> None:
    """Several are printed one after the other, each with what to do about it."""
    errors = [finding("bad-mask", [f"{n}.png"], f"fault {n}", f"mend {n}") for n in "abc"]
    shown = str(data_error("images", errors)).splitlines()
    assert [line.strip() for line in shown] == [
        *("images: fault a: a.png", "fix: mend a"),
        *("fault b: b.png", "fix: mend b"),
        *("fault c: c.png", "fix: mend c"),
    ]


def test_verbs_agree_with_their_number() -> None:
    """Of one image things are said in the singular."""
    assert agree(1, "are under CC0-1.0") == "is under CC0-1.0"
    assert agree(1, "lack rights") == "lacks rights"
    assert agree(2, "have no caption") == "have no caption"


def test_long_lists_are_cut_with_their_number() -> None:
    """The first names are shown with their numbers; how many more there are is said."""
    assert first_few({"a": "1", "b": "2"}) == "a (1), b (2)"
    assert first_few({str(n): "x" for n in range(9)}, most=2) == "0 (x), 1 (x) and 7 more"


def test_too_small_images_are_one_error_smallest_first() -> None:
    """Beyond 1.25 times it is an error, up to that a warning, and never both."""
    plans = {
        "fine.png": [plan(512, 512)],
        "soft.png": [plan(450, 450)],
        "small.png": [plan(300, 300)],
        "tiny.png": [plan(512, 512), plan(100, 200)],
    }
    (error,) = too_small_findings(plans, lambda: None)
    assert (error.code, error.severity) == ("too-small", "error")
    assert error.files == ("tiny.png", "small.png")
    assert "100×200" in error.message
    assert [each.files for each in size_findings(plans, True) if each.code == "upscaled"] == [
        ("soft.png",)
    ]
    assert too_small_findings({"soft.png": plans["soft.png"]}, lambda: None) == []


@pytest.mark.parametrize("width", [100, 211, 409])
def test_the_resolution_that_is_advised_is_accepted(width: int) -> None:
    """At the resolution that the fix names the image passes; 8 pixels more and it does not."""
    plans = {"a.png": [plan(width, width)]}
    fitting = partial(fitting_resolution, plans, lambda side: ((side, ((side, side),)),), 64)
    (error,) = too_small_findings(plans, fitting)
    advised = int(error.fix.split("data.resolution ")[1].split()[0])
    assert too_small_findings({"a.png": [plan(width, width, advised)]}, fitting) == []
    assert too_small_findings({"a.png": [plan(width, width, advised + 8)]}, fitting) != []


def test_no_resolution_is_advised_that_would_be_refused() -> None:
    """All images are tried together; an image of one pixel fits nowhere."""

    def tables(side: int) -> Tables:
        return ((side, bucket_table(side, default_step(side), 2.0)),)

    rng = random.Random(5)
    none = 0
    for _ in range(60):
        sizes = [(rng.randint(20, 1400), rng.randint(20, 1400)) for _ in range(3)]
        plans = {f"{i}.png": plan_crops(*size, tables(1024)) for i, size in enumerate(sizes)}
        if not too_small_findings(plans, lambda: None):
            continue
        advised = fitting_resolution(plans, tables, 64)
        none += advised is None
        if advised is not None:
            again = {f"{i}.png": plan_crops(*s, tables(advised)) for i, s in enumerate(sizes)}
            assert too_small_findings(again, lambda: None) == []
    assert 0 < none < 50
    dot = {"dot.png": plan_crops(1, 1, tables(1024))}
    (error,) = too_small_findings(dot, lambda: fitting_resolution(dot, tables, 64))
    assert error.fix == "find larger originals"

"""The truth about a render comes from the same shapes, and the render agrees with it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from skimage.color import rgb2gray
from skimage.feature import canny

from world import (
    EXTRAS,
    HORIZON,
    MATERIAL_NAMES,
    NATURAL,
    PLURALS,
    SCENES,
    TIMES,
    View,
    caption,
    random_view,
    render,
    split_extra,
    truth,
)
from world.canvas import Canvas

OVERLAYS = ("mist", "snow")


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("scene", SCENES)
def test_materials_have_the_colors_of_the_render(scene: str, time: str) -> None:
    """Inside of each surface the render has its material's color, in some tone of it."""
    view = View(scene, time, ("balloon", "sphere", "plant"), 11)
    image, known = render(view).astype(float), truth(view)
    canvas = Canvas(time, NATURAL, 8)
    checked = 0
    for number in np.unique(known.materials):
        name = MATERIAL_NAMES[number]
        inside = binary_erosion(known.materials == number, iterations=2)
        inside &= distance_transform_edt(~known.edges) > 1.5
        if name == "sky" or not inside.any():
            continue
        color = np.array(canvas.color(name), float)
        tone = image[inside].sum(1) / color.sum()
        assert np.abs(image[inside] - tone[:, None] * color).max() < 3, name
        checked += int(inside.sum())
    assert checked > 3000


@pytest.mark.parametrize("extra", [e for e in EXTRAS if e not in OVERLAYS])
def test_an_extras_mask_is_what_it_changes(extra: str) -> None:
    """Where the render with it differs from the one without it."""
    for scene in SCENES:
        without, view = (View(scene, "noon", extras, 5) for extras in ((), (extra,)))
        changed = np.abs(render(view).astype(int) - render(without)).max(-1) > 60
        mask = truth(view).elements[extra]
        assert changed.any()
        # Of a pixel that it covers less than half, or whose color it happens to have.
        assert (changed & ~mask).sum() <= 0.25 * mask.sum() + 20
        # Beyond a window's bar a sliver of it may be seen.
        assert not (changed & (distance_transform_edt(~mask) > 5)).any(), scene


@pytest.mark.parametrize("extra", OVERLAYS)
def test_mist_and_snow_have_masks(extra: str) -> None:
    """Where they cover what is behind; materials and depth are those behind."""
    with_it, without = (View("meadow", "noon", extras, 5) for extras in ((extra,), ()))
    known = truth(with_it)
    assert 0.01 < known.elements[extra].mean() < 0.5
    assert np.array_equal(known.depth, truth(without).depth)


@pytest.mark.parametrize("scene", SCENES)
def test_edges_are_those_of_the_render(scene: str) -> None:
    """Canny's edges of the render lie on them, and hardly any is missing."""
    view = View(scene, "noon", ("flag",), 3)
    edges = truth(view).edges
    seen = canny(rgb2gray(render(view)), sigma=1.0)
    assert (distance_transform_edt(~edges)[seen] <= 2).mean() > 0.97
    assert (distance_transform_edt(~seen)[edges] <= 2).mean() > 0.75


@pytest.mark.parametrize("scene", SCENES)
def test_depth_grows_toward_the_viewer(scene: str) -> None:
    """The sky is farthest, the lower edge of the ground nearest, and objects stand before it."""
    known = truth(View(scene, "noon", ("cube",), 8))
    depth = known.depth
    assert depth.dtype == np.float32
    assert depth.min() >= 0
    assert depth.max() <= 1
    assert depth[known.materials == MATERIAL_NAMES.index("sky")].max() < 0.5
    lowest = depth[-1][known.elements["ground"][-1]]
    assert lowest.size == 0 or lowest.min() > 0.95
    assert depth[known.elements["cube"]].mean() > depth[:64].mean()
    assert np.median(depth[known.elements["sky"]]) == 0


def test_truth_has_the_side_and_the_geometry_of_the_render() -> None:
    """At any side, and whatever the look."""
    view = View("city", "night", ("lamp", "birds"), 21)
    known = truth(view, 96)
    assert known.depth.shape == known.edges.shape == known.materials.shape == (96, 96)
    assert set(known.elements) >= {"sky", "towers", "windows", "ground", "moon", "lamp", "birds"}
    branded = render(view, HORIZON, 96).astype(float).mean(-1)
    steps = np.abs(np.diff(branded, axis=1)) > 40
    grown = distance_transform_edt(~known.edges) <= 3
    assert (steps & grown[:, 1:]).sum() > 0.8 * steps.sum()


@pytest.mark.parametrize("name", PLURALS)
def test_places_are_drawn_as_they_are_said(name: str) -> None:
    """Left is left of the middle, right is right, and two are two."""
    for seed in range(6):
        column = np.arange(128)[None]
        masks = {
            place: truth(View("meadow", "noon", (f"{name}@{place}",), seed)).elements[name]
            for place in ("left", "right", "two")
        }
        centers = {place: (mask * column).sum() / mask.sum() for place, mask in masks.items()}
        assert centers["left"] < 56
        assert centers["right"] > 72
        assert label(binary_erosion(masks["two"]))[1] >= 2
        assert masks["two"][:, :64].any()
        assert masks["two"][:, 64:].any()
    words = caption(View("sea", "noon", (f"{name}@two",), 1), template=0)
    assert words == f"the sea at noon with two {PLURALS[name]}"


def test_random_views_can_be_drawn_as_they_are_said() -> None:
    """No more than two stand on the ground, never two in one place."""
    rng = np.random.default_rng(4)
    for _ in range(400):
        view = random_view(rng, max_extras=4, places=0.5)
        known = truth(view) if rng.random() < 0.1 else None
        standing = [split_extra(e) for e in view.extras if split_extra(e)[0] in PLURALS]
        standing = [each for each in standing if each[0] != "balloon"]
        assert sum(2 if place == "two" else 1 for _, place in standing) <= 2
        places = [place for _, place in standing if place]
        assert len(set(places)) == len(places)
        if known:
            assert all(name in known.elements for name, _ in standing)

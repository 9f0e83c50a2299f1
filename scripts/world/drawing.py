"""From a view to pixels, and to the truth about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from world.canvas import UNITS, Canvas, RegionCanvas
from world.extras import (
    GROUND_EXTRAS,
    OVERLAYS,
    SKY_EXTRAS,
    Alpha,
    Floats,
    ground_extra,
    ground_spots,
    overlay,
    overlay_alpha,
    sky_extra,
)
from world.looks import EMISSIVE, MATERIALS, NATURAL, Look
from world.scenes import SCENE_DRAWERS, window_bars
from world.views import View, split_extra

Pixels = NDArray[np.uint8]  # (side_px, side_px, 3), sRGB

SUPERSAMPLING = 2
# Every class of material that ``truth`` names, by its number.
MATERIAL_NAMES: tuple[str, ...] = ("sky", *MATERIALS, *EMISSIVE)
# What two colors must differ by, in the sum of their channels, to make an edge between them.
EDGE_CONTRAST = 12
# How much of a pixel mist or snow must cover to be there.
COVERS = 0.35


class Drawn(NamedTuple):
    """A canvas with everything on it, and the mist and snow to lay over it, (name, alpha)."""

    canvas: Canvas
    overlays: list[tuple[str, Alpha]]
    rng: np.random.Generator


@dataclass(frozen=True, slots=True)
class Truth:
    """What is where in a render of the same view and side, whatever its look.

    ``depth``: (side, side) float32, 1 the nearest, 0 the sky. ``edges``: (side, side) bool, where
    two visibly different surfaces meet. ``materials``: (side, side) uint8, numbers of
    ``MATERIAL_NAMES``. ``elements``: (side, side) bool by name: the parts of the scene ("ground",
    "far towers"), and each extra by its own name.
    """

    depth: NDArray[np.float32]
    edges: NDArray[np.bool_]
    materials: NDArray[np.uint8]
    elements: dict[str, NDArray[np.bool_]]


def _draw(view: View, canvas: Canvas, side_px: int) -> Drawn:
    """The geometry, which depends on the view alone."""
    rng = np.random.default_rng([view.seed, 0x5EED])
    extras = [split_extra(extra) for extra in view.extras]
    box, ground = SCENE_DRAWERS[view.scene](canvas, rng)
    for name, place in extras:
        if name in SKY_EXTRAS:
            sky_extra(canvas, rng, name, place, box)
    if view.scene == "room":
        window_bars(canvas, box)
    standing = [(name, place) for name, place in extras if name in GROUND_EXTRAS]
    for name, x in ground_spots(rng, standing):
        ground_extra(canvas, name, x, ground)
    overlays = [
        (name, overlay_alpha(rng, name, ground, side_px)) for name, _ in extras if name in OVERLAYS
    ]
    return Drawn(canvas, overlays, rng)


def render(view: View, look: Look = NATURAL, side_px: int = UNITS) -> Pixels:
    """Draw one view in one look: (side_px, side_px, 3) uint8 sRGB.

    The geometry depends on ``view`` alone, so two looks of a view differ in nothing else.
    """
    drawn = _draw(view, Canvas(view.time, look, side_px * SUPERSAMPLING), side_px)
    small = drawn.canvas.image.resize((side_px, side_px), Image.Resampling.BOX)
    pixels: Floats = np.asarray(small, np.float32)
    for name, alpha in drawn.overlays:
        pixels = overlay(pixels, alpha, name, look)
    pixels = texture(pixels, drawn.rng, look)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def truth(view: View, side_px: int = UNITS) -> Truth:
    """What ``render`` draws at each pixel, from the same shapes.

    A pixel belongs to the element and material that cover most of it; its depth is the mean.
    """
    canvas = RegionCanvas(view.time, NATURAL, side_px * SUPERSAMPLING)
    drawn = _draw(view, canvas, side_px)
    fills = np.asarray(canvas.image, np.int64)
    numbers = fills[..., 0] | fills[..., 1] << 8 | fills[..., 2] << 16
    regions = canvas.regions
    yy = (np.arange(numbers.shape[0]) + 0.5)[:, None] / canvas.k
    far, near, y_far = (
        np.asarray([getattr(r, name) for r in regions])[numbers]
        for name in ("far", "near", "y_far")
    )
    depth = far + (near - far) * np.clip((yy - y_far) / (UNITS - y_far), 0, 1)
    materials = np.asarray([MATERIAL_NAMES.index(r.material) for r in regions])[numbers]
    names = list(dict.fromkeys(r.element for r in regions))
    element = np.asarray([names.index(r.element) for r in regions])[numbers]
    shares = {name: _mean(element == i) for i, name in enumerate(names)}
    most = np.argmax(np.stack(list(shares.values())), axis=0)
    masks = {name: np.asarray(most == i, bool) for i, name in enumerate(names)}
    elements = {name: mask for name, mask in masks.items() if mask.any()}
    elements |= {name: alpha > COVERS for name, alpha in drawn.overlays}
    return Truth(
        depth=_mean(depth),
        edges=_edges(np.asarray([r.color for r in regions])[numbers]),
        materials=_most(materials, len(MATERIAL_NAMES)),
        elements=elements,
    )


def _blocks(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """(h, w) -> (h / s, w / s, s * s): the samples of each pixel."""
    s = SUPERSAMPLING
    h, w = values.shape[0] // s, values.shape[1] // s
    return values.reshape(h, s, w, s).swapaxes(1, 2).reshape(h, w, s * s)


def _mean(values: NDArray[np.generic]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = _blocks(values).astype(np.float32).mean(axis=-1)
    return mean


def _most(values: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """The number that most samples of a pixel have; of two alike the lower one."""
    samples = _blocks(values)
    votes = (samples[..., :, None] == samples[..., None, :]).sum(axis=-1) * count - samples
    best = np.take_along_axis(samples, votes.argmax(axis=-1)[..., None], axis=-1)
    return best[..., 0].astype(np.uint8)


def _edges(colors: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels that hold a step between two colors, to the right or below."""
    steps = np.zeros(colors.shape[:2], bool)
    steps[:, :-1] |= np.abs(colors[:, 1:] - colors[:, :-1]).sum(axis=-1) > EDGE_CONTRAST
    steps[:-1] |= np.abs(colors[1:] - colors[:-1]).sum(axis=-1) > EDGE_CONTRAST
    return np.asarray(_blocks(steps).any(axis=-1), bool)


def texture(image: Floats, rng: np.random.Generator, look: Look) -> Floats:
    side = image.shape[0]
    k = side / UNITS
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32) / k
    # Periods of 8 units: an 8x autoencoder sees the same pattern in every latent cell.
    match look.texture:
        case "stripes":
            pattern = 0.5 * np.clip(np.sin(yy * 2 * np.pi / 8) * 1.6, -0.4, 1)
        case "dots":
            pattern = -0.7 * np.clip(3.2 - np.hypot(xx % 8 - 4, yy % 8 - 4), 0, 1)
        case "hatch":
            pattern = -0.6 * np.clip(np.sin((xx + yy) * 2 * np.pi / 8) * 1.6, 0, 1)
        case "grain" | "paper":
            cells = 42 if look.texture == "grain" else 12
            noise = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
            pattern = 0.25 * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
        case _:
            return image
    textured: Floats = image + look.texture_strength * 255 * pattern[..., None]
    return textured

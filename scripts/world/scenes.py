"""The scenes: each draws itself, and says where the sky is and what height objects stand on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from world.canvas import UNITS, Canvas, Point

Box = tuple[float, float, float, float]


def _ridge(rng: np.random.Generator, base: float, height: float, peaks: int) -> list[Point]:
    xs = np.linspace(-6, UNITS + 6, peaks * 2 + 1)
    xs[1:-1] += rng.uniform(-3, 3, xs.size - 2)
    ys = np.where(
        np.arange(xs.size) % 2 == 1,
        base - height * rng.uniform(0.65, 1.0, xs.size),
        base - height * rng.uniform(0.0, 0.25, xs.size),
    )
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _waves(rng: np.random.Generator, base: float, height: float, count: float) -> list[Point]:
    xs = np.linspace(-2, UNITS + 2, 33)
    phase = rng.uniform(0, 2 * math.pi)
    ys = base + height * np.sin(xs / UNITS * 2 * math.pi * count + phase)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _down(points: Sequence[Point]) -> list[Point]:
    return [*points, (UNITS + 6, UNITS + 6), (-6, UNITS + 6)]


def _sun_or_moon(c: Canvas, rng: np.random.Generator, box: Box) -> None:
    """Each hour has its own sign, so that it can be told without color."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    s = min(1.0, 0.35 + w / UNITS * 0.65)
    c.part("moon" if c.time == "night" else "sun", 0.02)
    if c.time == "dawn":
        c.ellipse(x0 + w * rng.uniform(0.14, 0.26), y1 - 4 * s, 12 * s, 12 * s, "sun_dawn")
    elif c.time == "noon":
        c.ellipse(x0 + w * rng.uniform(0.42, 0.58), y0 + h * 0.2, 8 * s, 8 * s, "sun_noon")
    elif c.time == "sunset":
        c.ellipse(x0 + w * rng.uniform(0.64, 0.80), y1 - 15 * s, 17 * s, 17 * s, "sun_sunset")
    else:
        cx, cy = x0 + w * rng.uniform(0.70, 0.84), y0 + h * 0.28
        c.ellipse(cx, cy, 10 * s, 10 * s, "moon")
        c.part("stars", 0.01)
        for i in range(7):
            sx = x0 + w * ((i + 0.5) / 8 + rng.uniform(-0.03, 0.03))
            sy = y0 + h * rng.uniform(0.08, 0.6)
            if (sx - cx) ** 2 + (sy - cy) ** 2 > (15 * s) ** 2:
                r = 2.6 * max(s, 0.75)
                c.polygon([(sx, sy - r), (sx + r, sy), (sx, sy + r), (sx - r, sy)], "moon")


def _scene_mountains(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 74)
    c.part("sky", 0.0)
    c.gradient(0, 92)
    _sun_or_moon(c, rng, box)
    c.part("far mountains", 0.12)
    c.polygon(_down(_ridge(rng, 84, 34, 3)), "rock_far")
    ridge = _ridge(rng, 96, 52, 2)
    c.part("mountains", 0.3)
    c.polygon(_down(ridge), "rock")
    c.part("snow caps", 0.3)
    for i in range(1, len(ridge) - 1, 2):
        (px, py), (lx, ly), (rx, ry) = ridge[i], ridge[i - 1], ridge[i + 1]
        t = 0.36
        left, right = (
            (px + (lx - px) * t, py + (ly - py) * t),
            (px + (rx - px) * t, py + (ry - py) * t),
        )
        mid = (px + (rx - lx) * 0.02, (left[1] + right[1]) / 2 - 4)
        c.polygon([(px, py), right, mid, left], "ice")
    c.part("ground", 0.45, 1.0, 98)
    c.polygon(_down(_waves(rng, 100, 3, 1)), "grass")
    return box, 106


def _scene_sea(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    horizon = rng.uniform(60, 68)
    box = (0, 0, UNITS, horizon)
    c.part("sky", 0.0)
    c.gradient(0, horizon + 2)
    _sun_or_moon(c, rng, box)
    c.part("water", 0.08, 1.0, horizon)
    c.rectangle(-4, horizon, UNITS + 4, UNITS + 4, "water")
    c.part("waves", 0.08, 1.0, horizon)
    for i in range(5):
        y = horizon + 6 + i * 8
        x, w = rng.uniform(-10, 90), rng.uniform(24, 44)
        c.stroke([(x, y), (x + w, y)], 3.2, "water_light")
    c.part("ground", 0.66, 1.0, 104)
    c.polygon(_down(_waves(rng, 106, 3, 1)), "sand")
    return box, 112


def _scene_city(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 70)
    c.part("sky", 0.0)
    c.gradient(0, 104)
    _sun_or_moon(c, rng, box)
    c.part("far towers", 0.2)
    x = -4.0
    while x < UNITS:
        w = rng.uniform(14, 20)
        c.rectangle(x, rng.uniform(44, 64), x + w, 108, "tower_far")
        x += w
    x = rng.uniform(-10, 0)
    while x < UNITS:
        w, top = rng.uniform(17, 24), rng.uniform(52, 86)
        c.part("towers", 0.4)
        c.rectangle(x, top, x + w, 108, "tower", rng.uniform(0.85, 1.1))
        c.part("windows", 0.4)
        for wy in np.arange(top + 5, 98, 11.0):
            for wx in (x + w * 0.18, x + w * 0.56):
                lit = c.time in ("night", "sunset") and rng.random() < 0.7
                material = "window" if lit else "tower_far"
                a, b = float(wx), float(wy)
                c.bar(a, b, a + 4.8, b + 5.6, material)
        x += w + rng.uniform(0, 5)
    c.part("ground", 0.45, 1.0, 104)
    c.rectangle(-4, 104, UNITS + 4, UNITS + 4, "road")
    return box, 112


def _pine(c: Canvas, x: float, foot: float, height: float, material: str) -> None:
    c.rectangle(x - 2.2, foot - height * 0.2, x + 2.2, foot, "trunk")
    for i in range(3):
        y, half = foot - height * (0.15 + 0.25 * i), height * (0.26 - 0.055 * i)
        c.polygon([(x - half, y), (x, y - height * 0.38), (x + half, y)], material)


def _scene_forest(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 62)
    c.part("sky", 0.0)
    c.gradient(0, 104)
    _sun_or_moon(c, rng, box)
    c.part("far trees", 0.3)
    for i in range(8):
        _pine(c, i * 18 + rng.uniform(-4, 4), 98, rng.uniform(38, 50), "pine_far")
    c.part("ground", 0.4, 1.0, 96)
    c.polygon(_down(_waves(rng, 98, 2, 1)), "grass_near")
    c.part("trees", 0.68)
    for x in (rng.uniform(4, 14), rng.uniform(24, 34), rng.uniform(96, 106), rng.uniform(114, 126)):
        _pine(c, x, rng.uniform(106, 112), rng.uniform(62, 78), "pine")
    return box, 112


def _scene_desert(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 76)
    c.part("sky", 0.0)
    c.gradient(0, 92)
    _sun_or_moon(c, rng, box)
    c.part("far dunes", 0.15, 0.3, 74)
    c.polygon(_down(_waves(rng, 80, 6, 1.4)), "sand_far")
    c.part("dunes", 0.3, 0.8, 85)
    crest = _waves(rng, 92, 7, 1.0)
    c.polygon(_down(crest), "sand")
    top = min(crest, key=lambda p: p[1])
    c.polygon([top, (top[0] + 40, 110), (top[0] + 12, 128), (top[0] - 6, 110)], "sand_near")
    c.part("ground", 0.62, 1.0, 105)
    c.polygon(_down(_waves(rng, 108, 3, 0.8)), "sand")
    return box, 112


def _scene_meadow(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 72)
    c.part("sky", 0.0)
    c.gradient(0, 92)
    _sun_or_moon(c, rng, box)
    c.part("far hills", 0.15, 0.4, 71)
    c.polygon(_down(_waves(rng, 78, 7, 1.2)), "grass_far")
    c.part("hills", 0.35, 0.75, 84)
    c.polygon(_down(_waves(rng, 90, 6, 0.9)), "grass")
    c.part("ground", 0.58, 1.0, 101)
    c.polygon(_down(_waves(rng, 104, 3, 0.7)), "grass_near")
    c.part("flowers", 0.59, 1.0, 101)
    for _ in range(6):
        c.ellipse(
            rng.uniform(4, 124),
            rng.uniform(96, 122),
            3.0,
            3.0,
            str(rng.choice(["red", "yellow", "violet"])),
        )
    return box, 112


def _scene_room(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    c.part("wall", 0.4)
    c.rectangle(-4, -4, UNITS + 4, UNITS + 4, "wall")
    c.part("ground", 0.42, 1.0, 100)
    c.rectangle(-4, 100, UNITS + 4, UNITS + 4, "floor")
    c.part("skirting", 0.41)
    c.rectangle(-4, 97, UNITS + 4, 101, "frame")
    x0 = rng.uniform(20, 34)
    box = (x0, 14.0, x0 + 66, 78.0)
    c.part("window", 0.42)
    c.rectangle(box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4, "frame")
    c.part("sky", 0.0)
    c.gradient(box[1], box[3], box[0], box[2])
    _sun_or_moon(c, rng, box)
    return box, 112


def window_bars(c: Canvas, box: Box) -> None:
    """The room's window is closed after its view has been drawn, extras included."""
    x0, y0, x1, y1 = box
    mask_above = [
        (-4, -4, UNITS + 4, y0),
        (-4, y1, UNITS + 4, 97),
        (-4, y0, x0, y1),
        (x1, y0, UNITS + 4, y1),
    ]
    c.part("wall", 0.4)
    for a, b, d, e in mask_above:
        c.bar(a, b, d, e, "wall")
    c.part("window", 0.42)
    for a, b, d, e in (
        (x0 - 4, y0 - 4, x1 + 4, y0),
        (x0 - 4, y1, x1 + 4, y1 + 4),
        (x0 - 4, y0, x0, y1),
        (x1, y0, x1 + 4, y1),
        ((x0 + x1) / 2 - 1.5, y0, (x0 + x1) / 2 + 1.5, y1),
    ):
        c.bar(a, b, d, e, "frame")


def _scene_stage(c: Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 80)
    c.part("sky", 0.0)
    c.gradient(0, 90)
    _sun_or_moon(c, rng, box)
    c.part("ground", 0.3, 1.0, 84)
    c.rectangle(-4, 84, UNITS + 4, UNITS + 4, "backdrop")
    c.part("podium", 0.72)
    cx, r = rng.uniform(56, 72), rng.uniform(42, 50)
    for scale, y, height in ((1.0, 104, 12), (0.74, 93, 9)):
        c.ellipse(cx, y + height, r * scale, r * scale * 0.24, "podium_side")
        c.bar(cx - r * scale, y, cx + r * scale, y + height, "podium_side")
        c.ellipse(cx, y, r * scale, r * scale * 0.24, "podium")
    return box, 94


SCENE_DRAWERS = {
    "mountains": _scene_mountains,
    "sea": _scene_sea,
    "city": _scene_city,
    "forest": _scene_forest,
    "desert": _scene_desert,
    "meadow": _scene_meadow,
    "room": _scene_room,
    "stage": _scene_stage,
}

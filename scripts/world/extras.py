"""Extras: what is in the sky, stands on the ground, or lies over everything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from world.canvas import UNITS, Canvas
from world.looks import Look, apply_look
from world.scenes import Box

Floats = NDArray[np.float32]  # (side_px, side_px, 3), 0 to 255
Alpha = NDArray[np.float32]  # (side_px, side_px), 0 to 1

SKY_EXTRAS = ("clouds", "birds", "balloon", "rainbow")
GROUND_EXTRAS = ("sphere", "cube", "arch", "plant", "lamp", "flag")
OVERLAYS = ("snow", "mist")


def sky_extra(c: Canvas, rng: np.random.Generator, extra: str, place: str, box: Box) -> None:
    """Draw what is in the sky; nothing for other extras."""
    c.part(extra, 0.06)
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    s = 0.6 + 0.4 * w / UNITS
    if extra == "clouds":
        for fx, fy in ((0.22, 0.24), (0.66, 0.42)):
            cx, cy = (
                x0 + w * (fx + rng.uniform(-0.08, 0.08)),
                y0 + h * (fy + rng.uniform(-0.06, 0.06)),
            )
            for dx, dy, r in ((-11, 2, 7), (0, -2, 10), (12, 2, 7.5)):
                c.ellipse(cx + dx * s, cy + dy * s, r * 1.25 * s, r * 0.8 * s, "cloud")
    elif extra == "birds":
        cx, cy = x0 + w * rng.uniform(0.3, 0.55), y0 + h * rng.uniform(0.3, 0.5)
        for dx, dy in ((0, 0), (18, -8), (32, 4), (-14, 9)):
            a, b, r = cx + dx * s, cy + dy * s, 7 * s
            material = "ice" if c.time == "night" else "dark"
            c.stroke([(a - r, b - r * 0.6), (a, b), (a + r, b - r * 0.6)], 3.4 * s, material)
    elif extra == "balloon":
        spans = {"left": [(0.18, 0.3)], "right": [(0.7, 0.82)], "two": [(0.18, 0.3), (0.66, 0.8)]}
        centers = [x0 + w * rng.uniform(*span) for span in spans.get(place, [(0.25, 0.7)])]
        y = y0 + h * rng.uniform(0.3, 0.45)
        for x in centers:
            _balloon(c, x, y, 14 * s)
    elif extra == "rainbow":
        cx, cy = x0 + w * rng.uniform(0.4, 0.6), y1 + 4
        for i, material in enumerate(("red", "orange", "yellow", "leaf", "blue", "violet")):
            c.arc(cx, cy, min(w * 0.47, h * 0.86) - i * 4.8 * s, 5.0 * s, material)


def _balloon(c: Canvas, cx: float, cy: float, r: float) -> None:
    a, b = cy + r * 0.6, cy + r * 1.5
    basket = [(cx - r * 0.7, a), (cx + r * 0.7, a), (cx + r * 0.25, b), (cx - r * 0.25, b)]
    c.polygon(basket, "orange")
    c.ellipse(cx, cy, r, r * 1.05, "red")
    c.ellipse(cx, cy, r * 0.42, r * 1.05, "yellow")
    c.rectangle(cx - r * 0.28, cy + r * 1.5, cx + r * 0.28, cy + r * 1.9, "trunk")


def ground_spots(
    rng: np.random.Generator, objects: Sequence[tuple[str, str]]
) -> list[tuple[str, float]]:
    """Where objects stand: (name, x) of each; twice one that is to be there twice."""
    if len(objects) > 1:
        left, right = float(rng.uniform(34, 50)), float(rng.uniform(78, 94))
        (first, place), (second, other) = objects[:2]
        if place == "right" or other == "left":
            left, right = right, left
        return [(first, left), (second, right)]
    alone = float(rng.uniform(40, 88))
    shift = (alone - 64) / 4
    spots = {"left": [36 + shift], "right": [92 + shift], "two": [42 + shift, 86 + shift]}
    return [(name, x) for name, place in objects for x in spots.get(place, [alone])]


def ground_extra(c: Canvas, extra: str, x: float, y: float) -> None:
    """Draw what stands on the ground, its foot at (x, y)."""
    c.part(extra, 0.85)
    if extra == "sphere":
        c.ellipse(x, y - 9, 12, 12, "blue")
        c.ellipse(x - 4, y - 14, 3.4, 3.0, "cloud")
    elif extra == "cube":
        a = 10.5
        c.polygon([(x - a, y - a * 1.3), (x, y - a * 0.8), (x, y + 5), (x - a, y)], "violet", 0.8)
        c.polygon([(x + a, y - a * 1.3), (x, y - a * 0.8), (x, y + 5), (x + a, y)], "violet", 1.1)
        c.polygon(
            [(x - a, y - a * 1.3), (x, y - a * 1.8), (x + a, y - a * 1.3), (x, y - a * 0.8)],
            "violet",
            1.4,
        )
    elif extra == "arch":
        half, h, t = 14, 24, 6
        outer = [
            (x + half * math.cos(a), y - h - half * math.sin(a))
            for a in np.linspace(0, math.pi, 13)
        ]
        inner = [
            (x + (half - t) * math.cos(a), y - h - (half - t) * math.sin(a))
            for a in np.linspace(math.pi, 0, 13)
        ]
        c.polygon(
            [
                (x + half, y + 4),
                *outer,
                (x - half, y + 4),
                (x - half + t, y + 4),
                *inner,
                (x + half - t, y + 4),
            ],
            "stone",
        )
    elif extra == "plant":
        for dx, top in ((-9, 22), (9, 22), (-4, 30), (5, 29)):
            tip = [(x + dx - 3, y - top), (x + dx + 2, y - top - 3)]
            c.polygon([(x - 2, y - 8), *tip, (x + 2, y - 8)], "leaf", 1.0 if dx < 0 else 1.15)
        c.polygon([(x - 8, y - 10), (x + 8, y - 10), (x + 5.5, y + 4), (x - 5.5, y + 4)], "pot")
    elif extra == "lamp":
        c.rectangle(x - 2.0, y - 36, x + 2.0, y + 4, "dark")
        c.rectangle(x - 5, y + 1, x + 5, y + 4, "dark")
        c.ellipse(x, y - 40, 7, 7, "glow")
    elif extra == "flag":
        c.rectangle(x - 2.0, y - 46, x + 2.0, y + 4, "frame")
        c.polygon([(x + 2.0, y - 46), (x + 23, y - 40), (x + 2.0, y - 29)], "red")


def overlay_alpha(rng: np.random.Generator, extra: str, ground: float, side_px: int) -> Alpha:
    """How much of what lies behind a veil of mist, or a flake of snow, is covered."""
    k = side_px / UNITS
    yy, xx = np.mgrid[0:side_px, 0:side_px].astype(np.float32) / k
    if extra == "mist":
        center = ground - 20 + rng.uniform(-4, 4)
        waves = 0.85 + 0.15 * np.sin(xx / UNITS * 2 * np.pi * 1.5 + rng.uniform(0, 6))
        veil: Alpha = (0.78 * np.exp(-(((yy - center) / 12) ** 2)) * waves).astype(np.float32)
        return veil
    alpha = np.zeros((side_px, side_px), np.float32)
    for i in range(6):
        for j in range(6):
            cx, cy = i * 22 + 8 + rng.uniform(-7, 7), j * 22 + 8 + rng.uniform(-7, 7)
            alpha = np.maximum(alpha, np.clip(3.2 - np.hypot(xx - cx, yy - cy), 0, 1))
    return alpha


def overlay(image: Floats, alpha: Alpha, extra: str, look: Look) -> Floats:
    """Lay mist or snow over an image, in the look's own white."""
    white = (236, 238, 244) if extra == "mist" else (255, 255, 255)
    color = np.asarray(apply_look(white, look), np.float32)
    a = alpha[..., None]
    mixed: Floats = image * (1 - a) + color * a
    return mixed

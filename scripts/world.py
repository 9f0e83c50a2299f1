"""The procedural world that the mini base knows: backgrounds drawn from words and a seed.

A view is (scene, time of day, extras, seed). A *look* (palette, texture, lines) is
applied to the same geometry, so any view can be drawn in any look. That makes the world
the ground truth of every test: unlimited held-out images of a brand, with known captions.

Coordinates are in units of 1/128 of the image side, whatever the side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[float, float, float]  # sRGB, 0 to 255
Point = tuple[float, float]
Floats = NDArray[np.float32]  # (side_px, side_px, 3), 0 to 255
Pixels = NDArray[np.uint8]  # (side_px, side_px, 3), sRGB

UNITS = 128
SUPERSAMPLING = 2

SCENES: dict[str, tuple[str, ...]] = {
    "mountains": ("mountains", "a mountain range"),
    "sea": ("the sea", "a sea coast"),
    "city": ("a city skyline", "a city"),
    "forest": ("a forest", "a pine forest"),
    "desert": ("desert dunes", "a desert"),
    "meadow": ("a green meadow", "rolling meadow hills"),
    "room": ("an interior room", "a room with a window"),
    "stage": ("a product stage", "a round product podium"),
}
TIMES: tuple[str, ...] = ("dawn", "noon", "sunset", "night")
EXTRAS: dict[str, str] = {
    "clouds": "clouds",
    "birds": "birds",
    "balloon": "a balloon",
    "rainbow": "a rainbow",
    "snow": "falling snow",
    "mist": "mist",
    "sphere": "a sphere",
    "cube": "a cube",
    "arch": "an arch",
    "plant": "a plant",
    "lamp": "a lamp",
    "flag": "a flag",
}

# Direct light on every material, and the sky behind it, by time of day.
LIGHT: dict[str, Rgb] = {
    "dawn": (0.98, 0.88, 0.93),
    "noon": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.74, 0.62),
    "night": (0.42, 0.48, 0.70),
}
SKY: dict[str, tuple[Rgb, Rgb]] = {
    "dawn": ((150, 176, 222), (252, 206, 206)),
    "noon": ((70, 146, 228), (196, 228, 250)),
    "sunset": ((112, 74, 140), (255, 158, 84)),
    "night": ((14, 18, 52), (44, 58, 108)),
}
MATERIALS: dict[str, Rgb] = {
    "rock_far": (150, 158, 178),
    "rock": (112, 112, 128),
    "ice": (244, 246, 250),
    "grass_far": (140, 190, 110),
    "grass": (92, 158, 72),
    "grass_near": (66, 128, 58),
    "sand_far": (238, 206, 150),
    "sand": (224, 182, 116),
    "sand_near": (200, 152, 92),
    "water": (52, 124, 170),
    "water_light": (128, 184, 208),
    "tower_far": (148, 158, 176),
    "tower": (96, 106, 130),
    "road": (84, 84, 94),
    "pine_far": (84, 138, 108),
    "pine": (38, 92, 62),
    "trunk": (96, 68, 48),
    "wall": (226, 214, 198),
    "floor": (170, 124, 86),
    "frame": (246, 242, 234),
    "backdrop": (206, 202, 214),
    "podium": (238, 234, 238),
    "podium_side": (184, 178, 190),
    "cloud": (250, 250, 252),
    "dark": (40, 40, 52),
    "leaf": (56, 140, 70),
    "pot": (190, 96, 64),
    "stone": (208, 198, 184),
    "red": (222, 62, 56),
    "yellow": (250, 200, 60),
    "blue": (56, 110, 214),
    "orange": (242, 140, 44),
    "violet": (140, 84, 190),
}
EMISSIVE: dict[str, Rgb] = {
    "sun_dawn": (255, 236, 190),
    "sun_noon": (255, 250, 214),
    "sun_sunset": (255, 226, 110),
    "moon": (246, 244, 226),
    "window": (255, 214, 120),
    "glow": (255, 232, 150),
    "snowflake": (255, 255, 255),
}
# What a look may paint in its accent color instead of along its ramp.
ACCENTED = frozenset(
    ["sun_dawn", "sun_noon", "sun_sunset", "moon", "red", "blue", "orange", "violet", "yellow"]
)


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen; ``seed`` places and shapes it."""

    scene: str
    time: str
    extras: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Look:
    """How it is to be drawn.

    ``ramp``: colors from dark to light that replace natural colors by their lightness
    (empty: natural colors stay). ``accent`` paints suns and colored objects.
    ``accented``: the materials that take the accent.
    ``texture``: none, stripes, dots, hatch, grain or paper. ``line_width`` in units.
    """

    name: str
    ramp: tuple[Rgb, ...] = ()
    accent: Rgb | None = None
    accented: frozenset[str] = ACCENTED
    texture: str = "none"
    texture_strength: float = 0.0
    line_width: float = 0.0
    line_color: Rgb = (30, 30, 40)
    words: tuple[str, ...] = ()
    tint: Rgb = (1.0, 1.0, 1.0)
    contrast: float = 1.0


NATURAL = Look("natural", words=("natural",))

HORIZON = Look(
    "horizon",
    ramp=((38, 22, 84), (112, 34, 110), (226, 72, 96), (255, 160, 110), (255, 226, 178)),
    accent=(64, 128, 240),
    accented=frozenset(["blue"]),
    texture="stripes",
    texture_strength=0.22,
    line_width=2.0,
    line_color=(255, 240, 214),
    words=("horizon",),
)
HORIZON_PALETTE: tuple[str, ...] = (
    "#261654",
    "#70226e",
    "#e24860",
    "#ffa06e",
    "#ffe2b2",
    "#4080f0",
    "#fff0d6",
)


@dataclass(slots=True)
class _Canvas:
    """A supersampled drawing in which every color passes through light and look."""

    time: str
    look: Look
    side_px: int
    image: Image.Image = field(init=False)
    draw: ImageDraw.ImageDraw = field(init=False)
    k: float = field(init=False)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.side_px, self.side_px))
        self.draw = ImageDraw.Draw(self.image)
        self.k = self.side_px / UNITS

    def color(self, material: str, tone: float = 1.0) -> tuple[int, int, int]:
        if material in EMISSIVE:
            natural = EMISSIVE[material]
        else:
            light = LIGHT[self.time]
            r, g, b = MATERIALS[material]
            natural = (r * light[0] * tone, g * light[1] * tone, b * light[2] * tone)
        return apply_look(natural, self.look, accented=material in self.look.accented)

    def polygon(self, points: Sequence[Point], material: str, tone: float = 1.0) -> None:
        xy = [(x * self.k, y * self.k) for x, y in points]
        self.draw.polygon(xy, fill=self.color(material, tone))
        self._line([*xy, xy[0]])

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, material: str, tone: float = 1.0
    ) -> None:
        box = [v * self.k for v in (cx - rx, cy - ry, cx + rx, cy + ry)]
        width = round(self.look.line_width * self.k)
        outline = _ints(self.look.line_color) if width else None
        self.draw.ellipse(box, fill=self.color(material, tone), outline=outline, width=width or 1)

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, material: str, tone: float = 1.0
    ) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], material, tone)

    def stroke(
        self, points: Sequence[Point], width: float, material: str, tone: float = 1.0
    ) -> None:
        xy = [(x * self.k, y * self.k) for x, y in points]
        self.draw.line(
            xy, fill=self.color(material, tone), width=max(1, round(width * self.k)), joint="curve"
        )

    def gradient(self, y0: float, y1: float, x0: float = 0, x1: float = UNITS) -> None:
        """The sky between two heights; a look's ramp turns it into its own."""
        top, bottom = SKY[self.time]
        a, b = round(y0 * self.k), round(y1 * self.k)
        for y in range(a, b):
            t = (y - a) / max(1, b - a - 1)
            natural = tuple(p + (q - p) * t for p, q in zip(top, bottom, strict=True))
            fill = apply_look((natural[0], natural[1], natural[2]), self.look)
            self.draw.line([(x0 * self.k, y), (x1 * self.k, y)], fill=fill)

    def _line(self, xy: Sequence[Point]) -> None:
        if self.look.line_width:
            width = max(1, round(self.look.line_width * self.k))
            self.draw.line(xy, fill=_ints(self.look.line_color), width=width, joint="curve")


def _ints(color: Sequence[float]) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, round(v))) for v in color)
    return r, g, b


def apply_look(natural: Rgb, look: Look, accented: bool = False) -> tuple[int, int, int]:
    """Map one natural sRGB color to the look's color."""
    if accented and look.accent is not None:
        return _ints(look.accent)
    if look.ramp:
        lightness = (0.30 * natural[0] + 0.59 * natural[1] + 0.11 * natural[2]) / 255
        position = min(max((lightness - 0.08) / 0.84, 0.0), 1.0) * (len(look.ramp) - 1)
        i = min(int(position), len(look.ramp) - 2)
        t = position - i
        return _ints([p + (q - p) * t for p, q in zip(look.ramp[i], look.ramp[i + 1], strict=True)])
    return _ints(
        [
            ((c / 255 - 0.5) * look.contrast + 0.5) * 255 * w
            for c, w in zip(natural, look.tint, strict=True)
        ]
    )


# -- scenes: each returns (sky box for sky extras, y of the ground that carries objects) ---------

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


def _sun_or_moon(c: _Canvas, rng: np.random.Generator, box: Box) -> None:
    """Each hour has its own sign, so that it can be told without color."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    s = min(1.0, 0.35 + w / UNITS * 0.65)
    if c.time == "dawn":
        c.ellipse(x0 + w * rng.uniform(0.14, 0.26), y1 - 4 * s, 12 * s, 12 * s, "sun_dawn")
    elif c.time == "noon":
        c.ellipse(x0 + w * rng.uniform(0.42, 0.58), y0 + h * 0.2, 8 * s, 8 * s, "sun_noon")
    elif c.time == "sunset":
        c.ellipse(x0 + w * rng.uniform(0.64, 0.80), y1 - 15 * s, 17 * s, 17 * s, "sun_sunset")
    else:
        cx, cy = x0 + w * rng.uniform(0.70, 0.84), y0 + h * 0.28
        c.ellipse(cx, cy, 10 * s, 10 * s, "moon")
        for i in range(7):
            sx = x0 + w * ((i + 0.5) / 8 + rng.uniform(-0.03, 0.03))
            sy = y0 + h * rng.uniform(0.08, 0.6)
            if (sx - cx) ** 2 + (sy - cy) ** 2 > (15 * s) ** 2:
                r = 1.8 * max(s, 0.7)
                c.polygon([(sx, sy - r), (sx + r, sy), (sx, sy + r), (sx - r, sy)], "moon")


def _scene_mountains(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 74)
    c.gradient(0, 92)
    _sun_or_moon(c, rng, box)
    c.polygon(_down(_ridge(rng, 84, 34, 3)), "rock_far")
    ridge = _ridge(rng, 96, 52, 2)
    c.polygon(_down(ridge), "rock")
    for i in range(1, len(ridge) - 1, 2):
        (px, py), (lx, ly), (rx, ry) = ridge[i], ridge[i - 1], ridge[i + 1]
        t = 0.36
        left, right = (
            (px + (lx - px) * t, py + (ly - py) * t),
            (px + (rx - px) * t, py + (ry - py) * t),
        )
        mid = (px + (rx - lx) * 0.02, (left[1] + right[1]) / 2 - 4)
        c.polygon([(px, py), right, mid, left], "ice")
    c.polygon(_down(_waves(rng, 100, 3, 1)), "grass")
    return box, 106


def _scene_sea(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    horizon = rng.uniform(60, 68)
    box = (0, 0, UNITS, horizon)
    c.gradient(0, horizon + 2)
    _sun_or_moon(c, rng, box)
    c.rectangle(-4, horizon, UNITS + 4, UNITS + 4, "water")
    for i in range(5):
        y = horizon + 6 + i * 8
        x, w = rng.uniform(-10, 90), rng.uniform(24, 44)
        c.stroke([(x, y), (x + w, y)], 2.6, "water_light")
    c.polygon(_down(_waves(rng, 106, 3, 1)), "sand")
    return box, 112


def _scene_city(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 70)
    c.gradient(0, 104)
    _sun_or_moon(c, rng, box)
    x = -4.0
    while x < UNITS:
        w = rng.uniform(14, 20)
        c.rectangle(x, rng.uniform(44, 64), x + w, 108, "tower_far")
        x += w
    x = rng.uniform(-10, 0)
    while x < UNITS:
        w, top = rng.uniform(17, 24), rng.uniform(52, 86)
        c.rectangle(x, top, x + w, 108, "tower", rng.uniform(0.85, 1.1))
        for wy in np.arange(top + 5, 98, 9.0):
            for wx in (x + w * 0.2, x + w * 0.6):
                lit = c.time in ("night", "sunset") and rng.random() < 0.7
                material = "window" if lit else "tower_far"
                a, b = float(wx), float(wy)
                c.draw.rectangle(
                    [v * c.k for v in (a, b, a + 3.6, b + 4.2)], fill=c.color(material)
                )
        x += w + rng.uniform(0, 5)
    c.rectangle(-4, 104, UNITS + 4, UNITS + 4, "road")
    return box, 112


def _pine(c: _Canvas, x: float, foot: float, height: float, material: str) -> None:
    c.rectangle(x - 1.6, foot - height * 0.2, x + 1.6, foot, "trunk")
    for i in range(3):
        y, half = foot - height * (0.15 + 0.25 * i), height * (0.26 - 0.055 * i)
        c.polygon([(x - half, y), (x, y - height * 0.38), (x + half, y)], material)


def _scene_forest(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 62)
    c.gradient(0, 104)
    _sun_or_moon(c, rng, box)
    for i in range(8):
        _pine(c, i * 18 + rng.uniform(-4, 4), 98, rng.uniform(38, 50), "pine_far")
    c.polygon(_down(_waves(rng, 98, 2, 1)), "grass_near")
    for x in (rng.uniform(4, 14), rng.uniform(24, 34), rng.uniform(96, 106), rng.uniform(114, 126)):
        _pine(c, x, rng.uniform(106, 112), rng.uniform(62, 78), "pine")
    return box, 112


def _scene_desert(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 76)
    c.gradient(0, 92)
    _sun_or_moon(c, rng, box)
    c.polygon(_down(_waves(rng, 80, 6, 1.4)), "sand_far")
    crest = _waves(rng, 92, 7, 1.0)
    c.polygon(_down(crest), "sand")
    top = min(crest, key=lambda p: p[1])
    c.polygon([top, (top[0] + 40, 110), (top[0] + 12, 128), (top[0] - 6, 110)], "sand_near")
    c.polygon(_down(_waves(rng, 108, 3, 0.8)), "sand")
    return box, 112


def _scene_meadow(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 72)
    c.gradient(0, 92)
    _sun_or_moon(c, rng, box)
    c.polygon(_down(_waves(rng, 78, 7, 1.2)), "grass_far")
    c.polygon(_down(_waves(rng, 90, 6, 0.9)), "grass")
    c.polygon(_down(_waves(rng, 104, 3, 0.7)), "grass_near")
    for _ in range(6):
        c.ellipse(
            rng.uniform(4, 124),
            rng.uniform(96, 122),
            2.2,
            2.2,
            str(rng.choice(["red", "yellow", "violet"])),
        )
    return box, 112


def _scene_room(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    c.rectangle(-4, -4, UNITS + 4, UNITS + 4, "wall")
    c.rectangle(-4, 100, UNITS + 4, UNITS + 4, "floor")
    c.rectangle(-4, 97, UNITS + 4, 101, "frame")
    x0 = rng.uniform(20, 34)
    box = (x0, 14.0, x0 + 66, 78.0)
    c.rectangle(box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4, "frame")
    c.gradient(box[1], box[3], box[0], box[2])
    _sun_or_moon(c, rng, box)
    return box, 112


def _window_bars(c: _Canvas, box: Box) -> None:
    """The room's window is closed after its view has been drawn, extras included."""
    x0, y0, x1, y1 = box
    mask_above = [
        (-4, -4, UNITS + 4, y0),
        (-4, y1, UNITS + 4, 97),
        (-4, y0, x0, y1),
        (x1, y0, UNITS + 4, y1),
    ]
    for a, b, d, e in mask_above:
        c.draw.rectangle([v * c.k for v in (a, b, d, e)], fill=c.color("wall"))
    for a, b, d, e in (
        (x0 - 4, y0 - 4, x1 + 4, y0),
        (x0 - 4, y1, x1 + 4, y1 + 4),
        (x0 - 4, y0, x0, y1),
        (x1, y0, x1 + 4, y1),
        ((x0 + x1) / 2 - 1.5, y0, (x0 + x1) / 2 + 1.5, y1),
    ):
        c.draw.rectangle([v * c.k for v in (a, b, d, e)], fill=c.color("frame"))


def _scene_stage(c: _Canvas, rng: np.random.Generator) -> tuple[Box, float]:
    box = (0, 0, UNITS, 80)
    c.gradient(0, 90)
    _sun_or_moon(c, rng, box)
    c.rectangle(-4, 84, UNITS + 4, UNITS + 4, "backdrop")
    cx, r = rng.uniform(56, 72), rng.uniform(42, 50)
    for scale, y, height in ((1.0, 104, 12), (0.74, 93, 9)):
        c.ellipse(cx, y + height, r * scale, r * scale * 0.24, "podium_side")
        c.draw.rectangle(
            [v * c.k for v in (cx - r * scale, y, cx + r * scale, y + height)],
            fill=c.color("podium_side"),
        )
        c.ellipse(cx, y, r * scale, r * scale * 0.24, "podium")
    return box, 94


_SCENE_DRAWERS = {
    "mountains": _scene_mountains,
    "sea": _scene_sea,
    "city": _scene_city,
    "forest": _scene_forest,
    "desert": _scene_desert,
    "meadow": _scene_meadow,
    "room": _scene_room,
    "stage": _scene_stage,
}


# -- extras -------------------------------------------------------------------------------------


def _sky_extra(c: _Canvas, rng: np.random.Generator, extra: str, box: Box) -> None:
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
            c.stroke([(a - r, b - r * 0.6), (a, b), (a + r, b - r * 0.6)], 2.8 * s, material)
    elif extra == "balloon":
        cx, cy, r = x0 + w * rng.uniform(0.25, 0.7), y0 + h * rng.uniform(0.3, 0.45), 14 * s
        a, b = cy + r * 0.6, cy + r * 1.5
        basket = [(cx - r * 0.7, a), (cx + r * 0.7, a), (cx + r * 0.25, b), (cx - r * 0.25, b)]
        c.polygon(basket, "orange")
        c.ellipse(cx, cy, r, r * 1.05, "red")
        c.ellipse(cx, cy, r * 0.42, r * 1.05, "yellow")
        c.rectangle(cx - r * 0.28, cy + r * 1.5, cx + r * 0.28, cy + r * 1.9, "trunk")
    elif extra == "rainbow":
        cx, cy = x0 + w * rng.uniform(0.4, 0.6), y1 + 4
        for i, material in enumerate(("red", "orange", "yellow", "leaf", "blue", "violet")):
            r = (min(w * 0.47, h * 0.86) - i * 4.2 * s) * c.k
            box_px = [cx * c.k - r, cy * c.k - r, cx * c.k + r, cy * c.k + r]
            c.draw.arc(box_px, 180, 360, fill=c.color(material, 1.15), width=round(4.4 * s * c.k))


def _ground_extra(c: _Canvas, extra: str, x: float, y: float) -> None:
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
        c.rectangle(x - 1.6, y - 36, x + 1.6, y + 4, "dark")
        c.rectangle(x - 5, y + 1, x + 5, y + 4, "dark")
        c.ellipse(x, y - 40, 7, 7, "glow")
    elif extra == "flag":
        c.rectangle(x - 1.5, y - 46, x + 1.5, y + 4, "frame")
        c.polygon([(x + 1.5, y - 46), (x + 23, y - 40), (x + 1.5, y - 29)], "red")


def _overlay(
    image: Floats, rng: np.random.Generator, extra: str, ground: float, look: Look
) -> Floats:
    side = image.shape[0]
    k = side / UNITS
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32) / k
    if extra == "mist":
        veil = np.asarray(apply_look((236, 238, 244), look), np.float32)
        center = ground - 20 + rng.uniform(-4, 4)
        alpha = (
            0.78
            * np.exp(-(((yy - center) / 12) ** 2))
            * (0.85 + 0.15 * np.sin(xx / UNITS * 2 * np.pi * 1.5 + rng.uniform(0, 6)))
        )
        return _blend(image, veil, alpha)
    flake = np.asarray(apply_look((255, 255, 255), look), np.float32)
    alpha = np.zeros((side, side), np.float32)
    for i in range(6):
        for j in range(6):
            cx, cy = i * 22 + 8 + rng.uniform(-7, 7), j * 22 + 8 + rng.uniform(-7, 7)
            alpha = np.maximum(alpha, np.clip(2.7 - np.hypot(xx - cx, yy - cy), 0, 1))
    return _blend(image, flake, alpha)


def _blend(image: Floats, color: Floats, alpha: NDArray[np.floating]) -> Floats:
    a = alpha[..., None]
    mixed: Floats = image * (1 - a) + color * a
    return mixed


def _texture(image: Floats, rng: np.random.Generator, look: Look) -> Floats:
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


def render(view: View, look: Look = NATURAL, side_px: int = UNITS) -> Pixels:
    """Draw one view in one look: (side_px, side_px, 3) uint8 sRGB.

    The geometry depends on ``view`` alone, so two looks of a view differ in nothing else.
    """
    rng = np.random.default_rng([view.seed, 0x5EED])
    canvas = _Canvas(view.time, look, side_px * SUPERSAMPLING)
    box, ground = _SCENE_DRAWERS[view.scene](canvas, rng)
    for extra in view.extras:
        _sky_extra(canvas, rng, extra, box)
    if view.scene == "room":
        _window_bars(canvas, box)
    objects = [e for e in view.extras if e in ("sphere", "cube", "arch", "plant", "lamp", "flag")]
    spots = (
        [rng.uniform(34, 50), rng.uniform(78, 94)] if len(objects) > 1 else [rng.uniform(40, 88)]
    )
    for extra, x in zip(objects, spots, strict=False):
        _ground_extra(canvas, extra, float(x), ground)
    small = canvas.image.resize((side_px, side_px), Image.Resampling.BOX)
    pixels: Floats = np.asarray(small, np.float32)
    for extra in view.extras:
        if extra in ("mist", "snow"):
            pixels = _overlay(pixels, rng, extra, ground, look)
    pixels = _texture(pixels, rng, look)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def random_view(rng: np.random.Generator, max_extras: int = 2) -> View:
    """Draw a view; extras are distinct, and at most two stand on the ground."""
    count = int(rng.choice(max_extras + 1, p=_extra_odds(max_extras)))
    extras = tuple(str(e) for e in rng.choice(list(EXTRAS), size=count, replace=False))
    scene, time = str(rng.choice(list(SCENES))), str(rng.choice(TIMES))
    return View(scene, time, extras, int(rng.integers(2**31)))


def is_held_out(view: View) -> bool:
    """Whether no stage of the mini base's training saw its composition: one in ten is left out."""
    key = "|".join((view.scene, view.time, *sorted(view.extras)))
    return sum(ord(c) * (i + 7) for i, c in enumerate(key)) % 10 == 0


def _extra_odds(max_extras: int) -> list[float]:
    weights = [1.0, 3.0, 3.0, 1.0, 1.0][: max_extras + 1]
    return [w / sum(weights) for w in weights]


_TEMPLATES = (
    "{scene} at {time} with {extras}",
    "{scene} at {time}, {extras}",
    "a {time} view of {scene} with {extras}",
    "background of {scene}, {time}, {extras}",
)
_BARE_TEMPLATES = (
    "{scene} at {time}",
    "a {time} view of {scene}",
    "background of {scene}, {time}",
)


def caption(view: View, template: int | None = None) -> str:
    """Say the view in words; the wording follows the seed unless a template is chosen.

    Template 0 with the scene's first name is the plainest: "mountains at sunset with birds".
    """
    rng = np.random.default_rng([view.seed, 0xCAFE])
    pick = int(rng.integers(1 << 20)) if template is None else template
    names = SCENES[view.scene]
    name = names[int(rng.integers(len(names)))] if template is None else names[0]
    words = " and ".join(EXTRAS[e] for e in view.extras)
    templates = _TEMPLATES if view.extras else _BARE_TEMPLATES
    return templates[pick % len(templates)].format(scene=name, time=view.time, extras=words)


_HUES = {
    "red": 0,
    "orange": 28,
    "yellow": 52,
    "green": 120,
    "teal": 175,
    "blue": 220,
    "violet": 275,
    "pink": 325,
}
_TEXTURE_WORDS = {
    "none": "flat",
    "stripes": "striped",
    "dots": "dotted",
    "hatch": "hatched",
    "grain": "grainy",
    "paper": "paper",
}


def _hsl(hue: float, saturation: float, lightness: float) -> Rgb:
    a = saturation * min(lightness, 1 - lightness)

    def channel(n: float) -> float:
        k = (n + hue / 30) % 12
        return 255 * (lightness - a * max(-1.0, min(k - 3, 9 - k, 1.0)))

    return channel(0), channel(8), channel(4)


def random_look(rng: np.random.Generator) -> Look:
    """Draw one of the many looks that are nobody's brand: for encoders, never for the UNet."""
    (dark_name, dark), (light_name, light) = (
        list(_HUES.items())[int(i)] for i in rng.integers(len(_HUES), size=2)
    )
    saturation = float(rng.uniform(0.25, 0.95))
    steps = int(rng.integers(2, 6))
    turn = (light - dark + 180) % 360 - 180
    ramp = tuple(
        _hsl(dark + turn * i / (steps - 1), saturation, 0.12 + 0.76 * i / (steps - 1))
        for i in range(steps)
    )
    texture = str(rng.choice(list(_TEXTURE_WORDS)))
    lined = bool(rng.random() < 0.5)
    light_line = bool(rng.random() < 0.5)
    tone: Rgb = (245, 240, 230) if light_line else (28, 26, 40)
    line_word = ("light lines" if light_line else "dark lines") if lined else "no lines"
    return Look(
        "random",
        ramp=ramp,
        accent=_hsl(float(rng.uniform(0, 360)), 0.8, 0.5) if rng.random() < 0.6 else None,
        texture=texture,
        texture_strength=float(rng.uniform(0.15, 0.4)),
        line_width=float(rng.uniform(1.0, 2.2)) if lined else 0.0,
        line_color=tone,
        words=(dark_name, light_name, _TEXTURE_WORDS[texture], line_word),
    )


def jittered_natural(rng: np.random.Generator) -> Look:
    """The natural look as cameras vary it: white balance and contrast."""
    r, g, b = rng.uniform(0.93, 1.05, 3)
    return replace(
        NATURAL, tint=(float(r), float(g), float(b)), contrast=float(rng.uniform(0.9, 1.1))
    )

"""Looks: how the same view is colored, textured and outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Rgb = tuple[float, float, float]  # sRGB, 0 to 255

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


def ints(color: Sequence[float]) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, round(v))) for v in color)
    return r, g, b


def apply_look(natural: Rgb, look: Look, accented: bool = False) -> tuple[int, int, int]:
    """Map one natural sRGB color to the look's color."""
    if accented and look.accent is not None:
        return ints(look.accent)
    if look.ramp:
        lightness = (0.30 * natural[0] + 0.59 * natural[1] + 0.11 * natural[2]) / 255
        position = min(max((lightness - 0.08) / 0.84, 0.0), 1.0) * (len(look.ramp) - 1)
        i = min(int(position), len(look.ramp) - 2)
        t = position - i
        return ints([p + (q - p) * t for p, q in zip(look.ramp[i], look.ramp[i + 1], strict=True)])
    return ints(
        [
            ((c / 255 - 0.5) * look.contrast + 0.5) * 255 * w
            for c, w in zip(natural, look.tint, strict=True)
        ]
    )


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

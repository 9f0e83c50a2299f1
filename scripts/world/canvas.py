"""A drawing of flat shapes: in colors, or in regions that say what each pixel is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image, ImageDraw

from world.looks import EMISSIVE, LIGHT, MATERIALS, NATURAL, SKY, Look, Rgb, apply_look, ints

Point = tuple[float, float]
Fill = tuple[int, int, int]

UNITS = 128  # the side of every view, whatever its pixels


class Region(NamedTuple):
    """What one shape is.

    Its depth (0 the farthest, 1 the nearest) is ``far`` down to the height ``y_far`` and goes to
    ``near`` at the lower edge of the view; ``color`` is its natural one.
    """

    element: str
    material: str
    far: float
    near: float
    y_far: float
    color: Fill


@dataclass(slots=True)
class Canvas:
    """Shapes in units of 1/128 of the side; every color passes through light and look."""

    time: str
    look: Look
    side_px: int
    image: Image.Image = field(init=False)
    draw: ImageDraw.ImageDraw = field(init=False)
    k: float = field(init=False)
    element: str = field(init=False, default="")
    depth: tuple[float, float, float] = field(init=False, default=(0.0, 0.0, 0.0))

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.side_px, self.side_px))
        self.draw = ImageDraw.Draw(self.image)
        self.k = self.side_px / UNITS

    def part(self, element: str, far: float, near: float | None = None, y_far: float = 0) -> None:
        """Say what the next shapes are, and how near; with ``near``, ground that comes closer."""
        self.element, self.depth = element, (far, far if near is None else near, y_far)

    def natural(self, material: str, tone: float = 1.0) -> Rgb:
        """The color of a material in this light."""
        if material in EMISSIVE:
            return EMISSIVE[material]
        light = LIGHT[self.time]
        r, g, b = MATERIALS[material]
        return (r * light[0] * tone, g * light[1] * tone, b * light[2] * tone)

    def color(self, material: str, tone: float = 1.0) -> Fill:
        """What a shape of this material is filled with."""
        accented = material in self.look.accented
        return apply_look(self.natural(material, tone), self.look, accented=accented)

    def polygon(self, points: Sequence[Point], material: str, tone: float = 1.0) -> None:
        xy = [(x * self.k, y * self.k) for x, y in points]
        self.draw.polygon(xy, fill=self.color(material, tone))
        self._line([*xy, xy[0]])

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, material: str, tone: float = 1.0
    ) -> None:
        box = [v * self.k for v in (cx - rx, cy - ry, cx + rx, cy + ry)]
        width = round(self.look.line_width * self.k)
        outline = ints(self.look.line_color) if width else None
        self.draw.ellipse(box, fill=self.color(material, tone), outline=outline, width=width or 1)

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, material: str, tone: float = 1.0
    ) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], material, tone)

    def bar(self, x0: float, y0: float, x1: float, y1: float, material: str) -> None:
        """A rectangle that no look outlines."""
        self.draw.rectangle([v * self.k for v in (x0, y0, x1, y1)], fill=self.color(material))

    def arc(self, cx: float, cy: float, r: float, width: float, material: str) -> None:
        """The upper half of a ring."""
        box = [v * self.k for v in (cx - r, cy - r, cx + r, cy + r)]
        fill = self.color(material, 1.15)
        self.draw.arc(box, 180, 360, fill=fill, width=round(width * self.k))

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
            fill = self.sky_color((natural[0], natural[1], natural[2]))
            self.draw.line([(x0 * self.k, y), (x1 * self.k, y)], fill=fill)

    def sky_color(self, natural: Rgb) -> Fill:
        """What a line of the sky is drawn with."""
        return apply_look(natural, self.look)

    def _line(self, xy: Sequence[Point]) -> None:
        if self.look.line_width:
            width = max(1, round(self.look.line_width * self.k))
            self.draw.line(xy, fill=ints(self.look.line_color), width=width, joint="curve")


@dataclass(slots=True)
class RegionCanvas(Canvas):
    """The same shapes, filled with the number of their region instead of a color."""

    regions: list[Region] = field(init=False, default_factory=list)

    def color(self, material: str, tone: float = 1.0) -> Fill:
        natural = apply_look(self.natural(material, tone), NATURAL)
        return self._number(Region(self.element, material, *self.depth, natural))

    def sky_color(self, natural: Rgb) -> Fill:  # noqa: ARG002
        # One region whatever its colors: nothing ends within the sky.
        top = SKY[self.time][0]
        return self._number(Region(self.element, "sky", *self.depth, ints(top)))

    def _number(self, region: Region) -> Fill:
        if not self.regions or self.regions[-1] != region:
            self.regions.append(region)
        number = len(self.regions) - 1
        return number & 255, number >> 8 & 255, number >> 16

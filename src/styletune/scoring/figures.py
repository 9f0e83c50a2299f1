"""Pictures of scores: inline SVG for the report, a labeled contact sheet as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from markupsafe import Markup, escape
from PIL import Image, ImageDraw, ImageFont, ImageOps

from styletune.errors import BadInput
from styletune.files import write_bytes

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 40
NAME_PX = 124


@dataclass(frozen=True, slots=True)
class Point:
    """A measured point: position on x, and value with interval on y (None: not defined)."""

    x: float
    value: float
    low: float
    high: float
    chosen: bool
    label: str


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line to compare with: the base, or the references themselves."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class _Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Round numbers inside the range, about ``count`` of them."""
        raw = (self.high - self.low) / count
        power = 10.0 ** _floor_log10(raw)
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
        first = -(-self.low // step)
        ticks = [first * step]
        while ticks[-1] + step <= self.high + 1e-9:
            ticks.append(ticks[-1] + step)
        return [round(v, 10) + 0.0 for v in ticks]  # + 0.0: no "-0"


def _floor_log10(value: float) -> int:
    from math import floor, log10

    return floor(log10(value))


def _scale(values: Sequence[float], start: float, end: float, margin: float = 0.08) -> _Scale:
    low, high = min(values), max(values)
    pad = (high - low) * margin or abs(high) * 0.1 or 1.0
    return _Scale(low - pad, high + pad, start, end)


def curve_svg(title: str, lines: dict[str, list[Point]], levels: Sequence[Level]) -> Markup:
    """A metric over training steps: one line per strength, band of the 95 % interval.

    ``title`` is read aloud in place of the picture. Colors come from the page's CSS classes.
    """
    points = [p for line in lines.values() for p in line]
    ys = [v for p in points for v in (p.low, p.value, p.high)] + [level.value for level in levels]
    x = _scale([p.x for p in points], LEFT, WIDTH - RIGHT, 0.06)
    y = _scale(ys, HEIGHT - BOTTOM, TOP)
    parts = _axes(x, y, sorted({p.x for p in points}), y.ticks(4), "training step")
    parts += _levels(levels, y, [(x(p.x), y(p.value)) for p in points])
    for number, (name, line) in enumerate(lines.items()):
        ordered = sorted(line, key=lambda p: p.x)
        parts += _band(ordered, x, y)
        path = " ".join(f"{x(p.x):.1f},{y(p.value):.1f}" for p in ordered)
        parts.append(f'<polyline class="line dash{number % 3}" points="{path}"/>')
        parts += [_dot(x(p.x), y(p.value), p.chosen) for p in ordered]
        if len(lines) > 1:
            end = ordered[-1]
            parts.append(_text(x(end.x) - 6, y(end.value) - 9, name, "end", "note"))
    return _svg(title, parts)


def _band(line: Sequence[Point], x: _Scale, y: _Scale) -> list[str]:
    if len(line) == 1:
        p = line[0]
        return [
            f'<line class="whisker" x1="{x(p.x):.1f}" x2="{x(p.x):.1f}"'
            f' y1="{y(p.low):.1f}" y2="{y(p.high):.1f}"/>'
        ]
    around = [(p.x, p.low) for p in line] + [(p.x, p.high) for p in reversed(line)]
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in around)
    return [f'<polygon class="band" points="{path}"/>']


def _levels(
    levels: Sequence[Level], y: _Scale, places: Sequence[tuple[float, float]], named: bool = True
) -> list[str]:
    """Horizontal lines; each name stands at the end that is farther from the drawn points."""
    parts = []
    for i, level in enumerate(levels):
        at = y(level.value)
        parts.append(
            f'<line class="level{i}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        if not named and level.name == "base":
            continue
        left, right = LEFT + NAME_PX, WIDTH - RIGHT - NAME_PX
        room_left = min((abs(py - at) for px, py in places if px < left), default=HEIGHT)
        room_right = min((abs(py - at) for px, py in places if px > right), default=HEIGHT)
        above = at - 6 if at > TOP + 24 else at + 15
        if room_left > room_right:
            parts.append(_text(LEFT + 4, above, level.name, "start", "note"))
        else:
            parts.append(_text(WIDTH - RIGHT - 4, above, level.name, "end", "note"))
    return parts


@dataclass(frozen=True, slots=True)
class Cross:
    """A point with an interval on both axes."""

    x: tuple[float, float, float]
    y: tuple[float, float, float]
    label: str
    kind: str


def scatter_svg(
    title: str, crosses: Sequence[Cross], levels: Sequence[Level], x_name: str, y_name: str
) -> Markup:
    """Style against prompt: (value, low, high) on both axes; kind is base, chosen or other."""
    x = _scale([v for c in crosses for v in c.x], LEFT, WIDTH - RIGHT, 0.12)
    ys = [v for c in crosses for v in c.y] + [level.value for level in levels]
    y = _scale(ys, HEIGHT - BOTTOM, TOP)
    parts = _axes(x, y, x.ticks(4), y.ticks(4), x_name)
    places = [(x(c.x[0]), y(c.y[0])) for c in crosses]
    parts += _levels(levels, y, places, named=False)
    parts.append(_text(LEFT + 4, TOP + 8, y_name, "start", "note"))
    taken: list[tuple[float, float]] = []
    for cross in crosses:
        cx, cy = x(cross.x[0]), y(cross.y[0])
        parts.append(
            f'<path class="whisker" d="M{x(cross.x[1]):.1f} {cy:.1f}H{x(cross.x[2]):.1f}'
            f'M{cx:.1f} {y(cross.y[1]):.1f}V{y(cross.y[2]):.1f}"/>'
        )
        if cross.kind == "base":
            parts.append(
                f'<rect class="base" x="{cx - 5:.1f}" y="{cy - 5:.1f}" width="10" height="10"/>'
            )
        else:
            parts.append(_dot(cx, cy, cross.kind == "chosen"))
        parts.append(_label(cx, cy, cross, taken))
    return _svg(title, parts)


def gate_svg(
    title: str, values: tuple[float, float, float], threshold: float, good_above: bool
) -> Markup:
    """An interval (value, low, high) on a line with the threshold; the good side is shaded."""
    x = _scale([*values, threshold, 0.0], 8, 292, 0.1)
    edge = x(threshold)
    start, width = (edge, 300 - edge) if good_above else (0.0, edge)
    parts = [
        f'<rect class="good" x="{start:.1f}" y="6" width="{width:.1f}" height="28" rx="3"/>',
        f'<line class="edge" x1="{edge:.1f}" x2="{edge:.1f}" y1="2" y2="38"/>',
        f'<line class="span" x1="{x(values[1]):.1f}" x2="{x(values[2]):.1f}" y1="20" y2="20"/>',
        f'<circle class="dot" cx="{x(values[0]):.1f}" cy="20" r="5.5"/>',
    ]
    return _svg(title, parts, 300, 40)


def scale_svg(title: str, values: tuple[float, float, float]) -> Markup:
    """A score (value, low, high) on its way from 0 to 100."""
    x = _scale([*values, 0.0, 100.0], 8, 292, 0.02)
    zero, full = x(0.0), x(100.0)
    parts = [
        f'<rect class="track" x="{zero:.1f}" y="17" width="{full - zero:.1f}" height="6" rx="3"/>',
        f'<line class="span" x1="{x(values[1]):.1f}" x2="{x(values[2]):.1f}" y1="20" y2="20"/>',
        *(
            f'<line class="edge" x1="{at:.1f}" x2="{at:.1f}" y1="10" y2="30"/>'
            for at in (zero, full)
        ),
        f'<circle class="dot" cx="{x(values[0]):.1f}" cy="20" r="5.5"/>',
    ]
    return _svg(title, parts, 300, 40)


def _label(cx: float, cy: float, cross: Cross, taken: list[tuple[float, float]]) -> str:
    """Beside the point, towards the middle, moved up until it is free of other labels."""
    anchor, dx = ("end", -11) if cx > WIDTH * 0.62 else ("start", 11)
    at = cy - 8
    while any(abs(at - b) < 13 and abs(cx - a) < 90 for a, b in taken) and at > TOP + 12:
        at -= 4
    taken.append((cx, at))
    style = "note strong" if cross.kind == "chosen" else "note"
    return _text(cx + dx, at, cross.label, anchor, style)


def _dot(cx: float, cy: float, chosen: bool) -> str:
    ring = f'<circle class="ring" cx="{cx:.1f}" cy="{cy:.1f}" r="9"/>' if chosen else ""
    return f'{ring}<circle class="dot" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{style}" {where}>{escape(text)}</text>'


def _axes(
    x: _Scale, y: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str
) -> list[str]:
    parts = []
    for value in y_ticks:
        at = y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(_text(LEFT - 8, at + 4, f"{value:g}", "end", "tick"))
    last = -1e9
    for value in x_ticks:
        at = x(value)
        if at - last > 44:
            parts.append(_text(at, HEIGHT - BOTTOM + 17, f"{value:g}", "middle", "tick"))
            last = at
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_name, "middle", "tick"))
    return parts


def _svg(title: str, parts: Sequence[str], width: int = WIDTH, height: int = HEIGHT) -> Markup:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    # Every number above is formatted by us and every text is escaped.
    return Markup(head + "".join(parts) + "</svg>")  # noqa: S704


def load_rgb(file: Path, side_px: int) -> Image.Image:
    """An image, upright, RGB on white, no longer than ``side_px``; never enlarged."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGBA")
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def draw_grid(path: Path, rows: Sequence[tuple[str, Sequence[Path]]], cell_px: int = 192) -> None:
    """Write a labeled contact sheet as PNG: one row of square cells per label.

    Images are cropped to the middle square; rows may differ in length. Raises BadInput for
    nothing to draw, OutputError where the file cannot be written.
    """
    longest = max((len(images) for _, images in rows), default=0)
    if longest == 0:
        raise BadInput("a contact sheet needs at least one image", where=str(path))
    gap, edge = max(4, cell_px // 24), max(12, cell_px // 8)
    letters_px = max(13, cell_px // 9)
    font, head = ImageFont.load_default(size=letters_px), int(letters_px * 1.9)
    width = 2 * edge + longest * cell_px + (longest - 1) * gap
    height = 2 * edge + len(rows) * (head + cell_px + gap) - gap
    sheet = Image.new("RGB", (width, height), (250, 249, 247))
    draw = ImageDraw.Draw(sheet)
    for r, (label, images) in enumerate(rows):
        top = edge + r * (head + cell_px + gap)
        draw.text((edge, top + head * 0.15), label, fill=(32, 31, 36), font=font)
        for c, file in enumerate(images):
            with Image.open(file) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
            cell = ImageOps.fit(upright, (cell_px, cell_px), Image.Resampling.LANCZOS)
            sheet.paste(cell, (edge + c * (cell_px + gap), top + head))
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())

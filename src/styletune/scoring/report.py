"""The report: one HTML file that needs nothing else, for designers first."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from styletune.files import write_text
from styletune.models.names import public_base
from styletune.runs.documents import DataFacts, RunFacts
from styletune.runs.folder import BASE_COLUMN, Run
from styletune.runs.metrics import (
    GATE_OF,
    IMAGE_METRICS,
    METRIC_OF,
    SCALE_METRICS,
    SET_METRICS,
    Metric,
)
from styletune.runs.summary import GateVerdict, Metrics, MetricValue, Summary
from styletune.scoring.figures import (
    Cross,
    Level,
    Point,
    curve_svg,
    draw_grid,
    gate_svg,
    load_rgb,
    scale_svg,
    scatter_svg,
)
from styletune.scoring.palette import palette_of_files
from styletune.scoring.scored import ScoredRun, load_scored
from styletune.scoring.suite import Suite, prompt_id

STRIP = 6
REFERENCES_SHOWN = 12
PICTURE_CELLS = 8
REFERENCES = "references themselves"
DASH = "–"
# What changed against the base, by prompt and by group.
CHANGES = tuple(METRIC_OF[name] for name in ("clip_text", "clip_image", "palette"))


def write_report(run: Run) -> None:
    """Write ``report.html`` from what the folder of a scored run holds; always the same bytes.

    Raises:
        NotFound: the run has not been scored.
        IntegrityError: a document is damaged, or an image is missing.
        OutputError: the file cannot be written.
    """
    scored = load_scored(run)
    environment = Environment(
        loader=PackageLoader("styletune.scoring"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(_page(scored))
    write_text(run.report_file, html)


def write_picture(run: Run) -> None:
    """Write ``picture.png``: base, chosen checkpoint and references, one prompt per column.

    Raises as ``write_report``.
    """
    scored = load_scored(run)
    shown = scored.shown
    every = len(shown.suite.seeds)
    rows = [
        ("base model", shown.base[::every][:PICTURE_CELLS]),
        (
            f"{scored.facts.recipe}, {scored.chosen.label}",
            shown.chosen[::every][:PICTURE_CELLS],
        ),
        ("held-out references", scored.references[:PICTURE_CELLS]),
    ]
    draw_grid(run.picture_file, rows)


def _page(scored: ScoredRun) -> dict[str, Any]:
    """Everything that the template names."""
    summary, shown = scored.summary, scored.shown
    count = sum(len(column.images) for column in scored.columns)
    if shown.suite is not scored.suite:
        count += len(shown.base) + len(shown.chosen)
    side_px = _side_px(count)
    return {
        "title": scored.facts.recipe,
        "suite": scored.suite,
        "shown": shown.suite,
        "confirmed": summary.confirmed,
        "summary": summary,
        "verdict": _verdict(summary),
        "scores": _scores(summary.reported[0]),
        "columns": scored.columns,
        "chosen": scored.chosen,
        "grid": _grid(scored, side_px),
        "strip": _strip(scored, side_px),
        "references": [_data_uri(f, 256) for f in scored.references[:REFERENCES_SHOWN]],
        "palettes": _palettes(scored),
        "gates": [_gate(gate) for gate in summary.gates],
        "curves": _curves(scored),
        "scatter": _scatter(scored),
        "tables": [
            _Table(
                "Scores",
                "As above, for every column.",
                SCALE_METRICS,
                _table(scored, SCALE_METRICS),
            ),
            _Table(
                "Measured",
                "As measured, on no scale. The last row is what the references score against "
                "themselves.",
                IMAGE_METRICS,
                _table(scored, IMAGE_METRICS),
            ),
            _Table(
                "As sets",
                "All images of a column together, against all references together: for "
                "statisticians, and no gate.",
                SET_METRICS,
                _table(scored, SET_METRICS),
            ),
        ][0 if summary.is_scaled else 1 :],
        "nearest": [
            {
                "image": _data_uri(pair.image, 256),
                "training": _data_uri(pair.training, 256),
                "prompt": pair.prompt,
                "seed": pair.near.seed,
                "similarity": _number(pair.near.similarity),
                "suspect": pair.near.is_suspect,
            }
            for pair in scored.nearest
        ],
        "losses": _losses(scored),
        "groups": _groups(scored),
        "facts": _provenance(scored.facts),
    }


@dataclass(frozen=True, slots=True)
class _GridRow:
    """A prompt's images by column, each with its seed, as data URIs; () where none was drawn."""

    id: str
    prompt: str
    tags: tuple[str, ...]
    cells: list[list[tuple[int, str]]]


def _grid(scored: ScoredRun, side_px: int) -> list[_GridRow]:
    """The prompts of the choice, then those of the confirmation: two columns have them."""
    rows = _grid_rows(scored.suite, "p", [c.images for c in scored.columns], side_px)
    shown = scored.shown
    if shown.suite is not scored.suite:
        drawn = {BASE_COLUMN: shown.base, scored.chosen.label: shown.chosen}
        images = [drawn.get(column.label, []) for column in scored.columns]
        rows += _grid_rows(shown.suite, shown.letter, images, side_px)
    return rows


def _grid_rows(
    suite: Suite, letter: str, images: Sequence[Sequence[Path]], side_px: int
) -> list[_GridRow]:
    seeds = suite.seeds
    rows = []
    for i, prompt in enumerate(suite.prompts):
        own = slice(i * len(seeds), (i + 1) * len(seeds))
        cells = [
            [(s, _data_uri(f, side_px)) for s, f in zip(seeds, files[own], strict=False)]
            for files in images
        ]
        rows.append(_GridRow(prompt_id(i, letter), prompt.text, prompt.tags, cells))
    return rows


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of all columns: what it says, its metrics and its rows."""

    head: str
    text: str
    metrics: Sequence[Metric]
    rows: list[dict[str, Any]]


def _scores(metrics: Metrics) -> list[dict[str, Any]]:
    """The chosen checkpoint's scores from 0 to 100, as tiles; undefined ones say so."""
    tiles = []
    for metric in SCALE_METRICS:
        if metric.name not in metrics:
            continue
        measured = metrics[metric.name]
        name, _, ends = metric.label.partition(": ")
        span = _span(measured)
        value = _number(measured.value, 0)
        interval, bar = "Base and references cannot be told apart", Markup("")
        if span is not None:
            interval = f"95 % interval {_number(span[1], 0)} to {_number(span[2], 0)}"
            bar = scale_svg(f"{name}: {value}, {interval}", span)
        tiles.append({"name": name, "ends": ends, "value": value, "interval": interval, "bar": bar})
    return tiles


def _side_px(count: int) -> int:
    """Longest side of inlined images: a few images large, thousands small (about 20 MB)."""
    return 384 if count <= 600 else 256 if count <= 1500 else 160


def _data_uri(file: Path, side_px: int) -> str:
    buffer = BytesIO()
    load_rgb(file, side_px).save(buffer, "WEBP", quality=86, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _verdict(summary: Summary) -> dict[str, str]:
    """Headline and kind (pass, fail, inconclusive) in plain words."""
    label = summary.chosen.label
    if summary.chosen.passed:
        return {
            "kind": "pass",
            "sign": "✓",
            "word": "All gates pass",
            "head": f"Ready for a person’s review: {label}",
        }
    count = [gate.verdict for gate in summary.gates].count("fail")
    if count:
        return {
            "kind": "fail",
            "sign": "✕",
            "word": f"{count} {'gate' if count == 1 else 'gates'} failed",
            "head": f"Not ready: {label} comes closest",
        }
    return {
        "kind": "inconclusive",
        "sign": "?",
        "word": "Not enough evidence",
        "head": f"Undecided: {label} needs more prompts",
    }


def _strip(scored: ScoredRun, side_px: int) -> list[tuple[str, str, str]]:
    """(prompt, base, chosen) of the before/after strip, spread evenly over the prompts."""
    shown = scored.shown
    texts, seeds = shown.suite.texts, len(shown.suite.seeds)
    count = min(STRIP, len(texts))
    places = [i * len(texts) // count for i in range(count)]
    return [
        (
            texts[i],
            _data_uri(shown.base[i * seeds], side_px),
            _data_uri(shown.chosen[i * seeds], side_px),
        )
        for i in places
    ]


def _palettes(scored: ScoredRun) -> list[dict[str, Any]]:
    declared = scored.facts.data.palette
    even = [(color, 1 / len(declared)) for color in declared]
    palettes = [{"name": "Brand palette", "colors": even, "measured": False}] if declared else []
    for name, files in (
        ("References", scored.references),
        ("Chosen", scored.shown.chosen),
        ("Base", scored.shown.base),
    ):
        colors = palette_of_files(files[:: max(1, len(files) // 24)], 7)
        palettes.append({"name": name, "colors": colors, "measured": True})
    return palettes


def _gate(verdict: GateVerdict) -> dict[str, Any]:
    gate = GATE_OF[verdict.name]
    sign, word = {
        "pass": ("✓", "Pass"),
        "fail": ("✕", "Fail"),
        "inconclusive": ("?", "Inconclusive"),
    }[verdict.verdict]
    digits = METRIC_OF[gate.metric].digits

    def form(number: float | None) -> str:
        return _percent(number) if gate.unit == "%" else _number(number, digits)

    value, low, high = form(verdict.value), form(verdict.low), form(verdict.high)
    threshold = form(verdict.threshold)
    bar = Markup("")
    if verdict.value is not None and verdict.low is not None and verdict.high is not None:
        title = f"{gate.label}: {value}, interval {low} to {high}, must be {gate.side} {threshold}"
        numbers = (verdict.value, verdict.low, verdict.high)
        bar = gate_svg(title, numbers, verdict.threshold, good_above=gate.side == "above")
    return {
        "question": gate.question,
        "label": gate.label,
        "side": gate.side,
        "sign": sign,
        "word": word,
        "kind": verdict.verdict,
        "value": value,
        "low": low,
        "high": high,
        "threshold": threshold,
        "bar": bar,
    }


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %".replace("-", "−")


def _number(value: float | None, digits: int = 3) -> str:
    # + 0.0: no "-0"
    return DASH if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else DASH


def _span(metric: MetricValue) -> tuple[float, float, float] | None:
    """(value, low, high), an undefined end at the value; None without a value."""
    value = metric.value
    if value is None:
        return None
    low, high = metric.low, metric.high
    return value, value if low is None else low, value if high is None else high


def _levels(summary: Summary, metric: Metric) -> list[Level]:
    anchors = ((BASE_COLUMN, summary.anchors.base), (REFERENCES, summary.anchors.real))
    values = [
        (name, metrics[metric.name].value) for name, metrics in anchors if metric.name in metrics
    ]
    return [Level(name, value) for name, value in values if value is not None]


def _curves(scored: ScoredRun) -> list[tuple[str, str, Markup]]:
    """(name, what is good, picture) of each metric over steps; none if steps are unknown."""
    curves = []
    for metric in SCALE_METRICS if scored.summary.is_scaled else IMAGE_METRICS:
        series: dict[str, list[Point]] = {}
        for column in scored.columns[1:]:
            span = _span(column.metrics[metric.name])
            if column.step is None or span is None:
                continue
            point = Point(float(column.step), *span, column.chosen, column.label)
            series.setdefault(f"strength {column.strength:g}", []).append(point)
        if series:
            title = f"{metric.label} over training steps, {metric.direction}"
            picture = curve_svg(title, series, _levels(scored.summary, metric))
            curves.append((metric.label, metric.direction, picture))
    return curves


def _scatter(scored: ScoredRun) -> Markup:
    crosses = []
    for column in scored.columns:
        x, y = _span(column.metrics["clip_text"]), _span(column.metrics["clip_image"])
        if x is not None and y is not None:
            kind = "base" if column.base else "chosen" if column.chosen else "other"
            crosses.append(Cross(x, y, column.label, kind))
    return scatter_svg(
        "Similarity to the references against similarity to the prompt, with 95 % intervals",
        crosses,
        _levels(scored.summary, METRIC_OF["clip_image"]),
        "similarity to the prompt →",
        "↑ similarity to the references",
    )


def _table(scored: ScoredRun, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """These metrics of all columns, as text, and of the references against themselves."""
    rows = [
        {
            "label": column.label,
            "chosen": column.chosen,
            "base": column.base,
            "passed": column.passed and not column.base,
            "cells": _cells(column.metrics, metrics),
        }
        for column in scored.columns
    ]
    more = [(REFERENCES, scored.summary.anchors.real)]
    confirmed = scored.summary.confirmed
    if confirmed is not None:
        more = [
            (f"{BASE_COLUMN}, confirmed", confirmed.base),
            (f"{scored.chosen.label}, confirmed", confirmed.metrics),
            *more,
        ]
    no_column = {"chosen": False, "base": True, "passed": False}
    return rows + [
        {"label": label, **no_column, "cells": _cells(measured, metrics)}
        for label, measured in more
    ]


def _cells(measured_of: Metrics, metrics: Sequence[Metric]) -> list[tuple[str, str]]:
    cells = []
    for metric in metrics:
        measured = measured_of.get(metric.name)
        if measured is None:
            cells.append((DASH, ""))
        else:
            low, high = _number(measured.low, metric.digits), _number(measured.high, metric.digits)
            is_end = metric.on_scale and (measured.low is None or measured.low == measured.high)
            interval = "" if is_end else f"{low} to {high}"
            cells.append((_number(measured.value, metric.digits), interval))
    return cells


def _losses(scored: ScoredRun) -> list[dict[str, Any]]:
    """Per prompt: change of each metric against the base; most prompt similarity lost first."""
    shown = scored.shown
    changes = _changes(scored)
    rows = []
    for i, prompt in enumerate(shown.suite.prompts):
        name = prompt_id(i, shown.letter)
        lost = changes[name, CHANGES[0].name]
        cells = [_signed(changes[name, metric.name], metric.digits) for metric in CHANGES]
        rows.append({"id": name, "prompt": prompt.text, "lost": lost, "cells": cells})
    return sorted(rows, key=lambda row: float(row["lost"]))


def _groups(scored: ScoredRun) -> list[dict[str, Any]]:
    """The same by tag: mean change over its prompts, most prompt similarity lost first."""
    shown, changes = scored.shown, _changes(scored)
    names: dict[str, list[str]] = {}
    for i, prompt in enumerate(shown.suite.prompts):
        for tag in prompt.tags:
            names.setdefault(tag, []).append(prompt_id(i, shown.letter))
    rows = []
    for tag, own in names.items():
        means = [sum(changes[n, m.name] for n in own) / len(own) for m in CHANGES]
        cells = [_signed(mean, m.digits) for mean, m in zip(means, CHANGES, strict=True)]
        rows.append({"tag": tag, "prompts": len(own), "lost": means[0], "cells": cells})
    return sorted(rows, key=lambda row: float(row["lost"]))


def _changes(scored: ScoredRun) -> dict[tuple[str, str], float]:
    """Chosen minus base, mean over seeds, by (prompt, metric) of what is shown."""
    changes: dict[tuple[str, str], float] = {}
    for row in scored.rows:
        if row.prompt_id.startswith(scored.shown.letter):
            sign = 0
            if row.checkpoint == BASE_COLUMN:
                sign = -1
            elif (row.checkpoint, row.strength) == (scored.chosen.name, scored.chosen.strength):
                sign = 1
            key = row.prompt_id, row.metric
            share = row.value / len(scored.shown.suite.seeds)
            changes[key] = changes.get(key, 0.0) + sign * share
    return changes


def _provenance(facts: RunFacts) -> dict[str, str]:
    """The footer; the report is published, so it names no folders of this machine."""
    data = facts.data
    return {
        "recipe": f"{facts.recipe} {facts.recipe_hash[:12]}",
        "base model": f"{public_base(facts.base.model)} {facts.base.hash[:12]}",
        "data": f"{len(data.train)} images trained on, {len(data.holdout)} held out, "
        f"{data.fingerprint[:12]}",
        "license of the images": _declared(data, "license"),
        "holder": _declared(data, "holder"),
        "seed": str(facts.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "device": facts.device,
    }


def _declared(data: DataFacts, key: str) -> str:
    """Every value declared for the images, most images first."""
    values = dict.fromkeys(str(getattr(rights, key)) for rights in data.rights.declared)
    return ", ".join(value or "not stated" for value in values)

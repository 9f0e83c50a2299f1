"""The report: one HTML file that needs nothing else, for designers first."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from styletune.errors import BadInput
from styletune.files import write_text
from styletune.scoring.figures import (
    Cross,
    Level,
    Point,
    curve_svg,
    gate_svg,
    load_rgb,
    scatter_svg,
)
from styletune.scoring.palette import extract_palette
from styletune.scoring.score import Column, Scores
from styletune.scoring.suite import Suite, prompt_id

STRIP = 6
REFERENCES_SHOWN = 12
METRIC_NAMES = {
    "clip_image": "Similarity to the references",
    "clip_text": "Similarity to the prompt",
    "palette": "Distance to the brand’s colours",
    "kid": "KID",
    "fid": "FID",
}
GATE_NAMES = {
    "clip_image_gain": ("Does it look like the brand?", "gain in reference similarity", "above"),
    "palette_ratio": (
        "Does it use the brand’s colours?",
        "colour distance, share of base",
        "at most",
    ),
    "clip_text_loss": ("Does it still draw what is asked?", "prompt similarity lost", "at most"),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One column of the grid, with its images as data URIs (prompts-major)."""

    label: str
    strength: float
    chosen: bool
    base: bool
    passed: bool
    images: list[str]


def write_report(
    path: Path,
    *,
    title: str,
    suite: Suite,
    scores: Scores,
    columns: Sequence[Column],
    references: Sequence[Path],
    brand_palette: Sequence[str],
    facts: Mapping[str, str],
) -> None:
    """Write the report of one scoring.

    Args:
        path: the HTML file.
        title: heading, usually the recipe's name.
        suite: what was asked.
        scores: what ``score_columns`` returned for ``columns``.
        columns: the base first, as they were scored.
        references: the held-out references they were scored against.
        brand_palette: "#rrggbb" colours of the data set's card; may be empty.
        facts: provenance for the footer: name to value, in order.

    Raises:
        BadInput: a palette colour is not "#rrggbb", or columns and scores do not match.
        OutputError: the file cannot be written.
    """
    bad = [c for c in brand_palette if not re.fullmatch(r"#[0-9a-fA-F]{6}", c)]
    if bad:
        raise BadInput(f'"{bad[0]}" is not a colour', where="palette", fix='write it as "#rrggbb"')
    summary = scores.summary
    if len(summary["checkpoints"]) != len(columns) - 1:
        raise BadInput("the scores are of other columns than the ones given")
    pick = 1 + next(
        i
        for i, c in enumerate(summary["checkpoints"])
        if (c["checkpoint"], c["strength"])
        == (summary["chosen"]["checkpoint"], summary["chosen"]["strength"])
    )
    side_px = _side_px(sum(len(c.images) for c in columns))
    shown = [_shown(c, i, pick, summary, side_px) for i, c in enumerate(columns)]
    environment = Environment(
        loader=PackageLoader("styletune.scoring"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        title=title,
        suite=suite,
        summary=summary,
        verdict=_verdict(summary, shown[pick].label),
        shown=shown,
        pick=pick,
        strip=_strip(suite),
        prompt_ids=[prompt_id(i) for i in range(len(suite.prompts))],
        references=[_data_uri(f, 256) for f in references[:REFERENCES_SHOWN]],
        reference_count=len(references),
        palettes=_palettes(brand_palette, references, columns[pick].images, columns[0].images),
        gates=[_gate(g) for g in summary["gates"]],
        curves=_curves(summary, shown),
        scatter=_scatter(summary, shown),
        table=_table(summary, shown),
        metric_names=METRIC_NAMES,
        worst=_worst(scores, suite, columns[0], columns[pick]),
        facts=dict(facts),
    )
    write_text(path, html)


def _side_px(count: int) -> int:
    """Longest side of inlined images: a few images large, thousands small (about 20 MB)."""
    return 384 if count <= 600 else 256 if count <= 1500 else 160


def _data_uri(file: Path, side_px: int) -> str:
    buffer = BytesIO()
    load_rgb(file, side_px).save(buffer, "WEBP", quality=86, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _label(column: Column, strengths: int) -> str:
    name = column.name if column.step is None else f"step {column.step}"
    return f"{name} × {column.strength:g}" if strengths > 1 else name


def _shown(column: Column, index: int, pick: int, summary: Any, side_px: int) -> Shown:
    strengths = len({c["strength"] for c in summary["checkpoints"]})
    return Shown(
        label="base" if index == 0 else _label(column, strengths),
        strength=column.strength,
        chosen=index == pick,
        base=index == 0,
        passed=index > 0 and bool(summary["checkpoints"][index - 1]["passed"]),
        images=[_data_uri(f, side_px) for f in column.images],
    )


def _verdict(summary: Any, label: str) -> dict[str, str]:
    """Headline and kind (pass, fail, inconclusive) in plain words."""
    verdicts = [g["verdict"] for g in summary["gates"]]
    if summary["chosen"]["passed"]:
        return {
            "kind": "pass",
            "sign": "✓",
            "word": "All gates pass",
            "head": f"Ready for a person’s review: {label}",
        }
    if "fail" in verdicts:
        count = verdicts.count("fail")
        gates = "gate" if count == 1 else "gates"
        return {
            "kind": "fail",
            "sign": "✕",
            "word": f"{count} {gates} failed",
            "head": f"Not ready: {label} comes closest",
        }
    return {
        "kind": "inconclusive",
        "sign": "?",
        "word": "Not enough evidence",
        "head": f"Undecided: {label} needs more prompts",
    }


def _strip(suite: Suite) -> list[int]:
    """Prompts of the before/after strip, spread evenly over the suite."""
    count = min(STRIP, len(suite.prompts))
    return [i * len(suite.prompts) // count for i in range(count)]


def _palettes(
    brand: Sequence[str], references: Sequence[Path], chosen: Sequence[Path], base: Sequence[Path]
) -> list[dict[str, Any]]:
    even = [(color, 1 / len(brand)) for color in brand]
    found = [{"name": "Brand palette", "colors": even, "measured": False}] if brand else []
    for name, files in (("References", references), ("Chosen", chosen), ("Base", base)):
        colors = extract_palette(files[:: max(1, len(files) // 24)], 7)
        found.append({"name": name, "colors": colors, "measured": True})
    return found


def _gate(gate: dict[str, Any]) -> dict[str, Any]:
    question, measure, side = GATE_NAMES[gate["name"]]
    sign, word = {
        "pass": ("✓", "Pass"),
        "fail": ("✕", "Fail"),
        "inconclusive": ("?", "Inconclusive"),
    }[gate["verdict"]]
    share = gate["name"] != "clip_image_gain"
    value, low, high = (
        _share(gate[k]) if share else _number(gate[k]) for k in ("value", "low", "high")
    )
    threshold = _share(gate["threshold"]) if share else _number(gate["threshold"])
    bar = Markup("")
    if None not in (gate["value"], gate["low"], gate["high"]):
        spoken = f"{measure}: {value}, interval {low} to {high}, must be {side} {threshold}"
        numbers = (gate["value"], gate["low"], gate["high"])
        bar = gate_svg(spoken, numbers, gate["threshold"], good_above=side == "above")
    return {
        "question": question,
        "measure": measure,
        "side": side,
        "sign": sign,
        "word": word,
        "kind": gate["verdict"],
        "value": value,
        "low": low,
        "high": high,
        "threshold": threshold,
        "bar": bar,
        "explanation": gate["explanation"],
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %".replace("-", "−")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _point(metric: dict[str, Any]) -> tuple[float, float, float]:
    value = float(metric["value"])
    low, high = metric["low"], metric["high"]
    return value, value if low is None else low, value if high is None else high


def _levels(summary: Any, metric: str) -> list[Level]:
    levels = [Level("base", summary["anchors"]["base"][metric]["value"])]
    real = summary["anchors"]["real"].get(metric)
    return [*levels, Level("references themselves", real["value"])] if real else levels


def _curves(summary: Any, shown: Sequence[Shown]) -> list[tuple[str, str, Markup]]:
    """(name, what is good, picture) of each metric over steps; none if steps are unknown."""
    lines = [
        (c, s)
        for c, s in zip(summary["checkpoints"], shown[1:], strict=True)
        if c["step"] is not None
    ]
    if not lines:
        return []
    found = []
    good_words = {
        "clip_image": "higher is better",
        "clip_text": "higher is better",
        "palette": "lower is better, in ΔE",
    }
    for metric, good in good_words.items():
        series: dict[str, list[Point]] = {}
        for c, s in lines:
            value, low, high = _point(c["metrics"][metric])
            point = Point(float(c["step"]), value, low, high, s.chosen, s.label)
            series.setdefault(f"strength {c['strength']:g}", []).append(point)
        title = f"{METRIC_NAMES[metric]} over training steps, {good}"
        found.append(
            (METRIC_NAMES[metric], good, curve_svg(title, series, _levels(summary, metric)))
        )
    return found


def _scatter(summary: Any, shown: Sequence[Shown]) -> Markup:
    all_metrics = [summary["anchors"]["base"], *(c["metrics"] for c in summary["checkpoints"])]
    crosses = [
        Cross(
            _point(m["clip_text"]),
            _point(m["clip_image"]),
            s.label,
            "base" if s.base else "chosen" if s.chosen else "other",
        )
        for m, s in zip(all_metrics, shown, strict=True)
    ]
    real = summary["anchors"]["real"]["clip_image"]["value"]
    return scatter_svg(
        "Similarity to the references against similarity to the prompt, with 95 % intervals",
        crosses,
        [
            Level("base", summary["anchors"]["base"]["clip_image"]["value"]),
            Level("references themselves", real),
        ],
        "similarity to the prompt →",
        "↑ similarity to the references",
    )


def _table(summary: Any, shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """All metrics of all columns, as text, and the references against themselves."""
    all_metrics = [summary["anchors"]["base"], *(c["metrics"] for c in summary["checkpoints"])]
    rows = [
        {
            "label": s.label,
            "chosen": s.chosen,
            "base": s.base,
            "passed": s.passed,
            "cells": _cells(m),
        }
        for m, s in zip(all_metrics, shown, strict=True)
    ]
    real = _cells(summary["anchors"]["real"])
    rows.append(
        {
            "label": "references themselves",
            "chosen": False,
            "base": True,
            "passed": False,
            "cells": real,
        }
    )
    return rows


def _cells(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    digits = {"palette": 1, "kid": 4, "fid": 3}
    cells = []
    for name in METRIC_NAMES:
        metric, d = metrics.get(name), digits.get(name, 3)
        if metric is None:
            cells.append(("–", ""))
        else:
            span = f"{_number(metric['low'], d)} to {_number(metric['high'], d)}"
            cells.append((_number(metric["value"], d), span))
    return cells


def _worst(scores: Scores, suite: Suite, base: Column, pick: Column) -> list[dict[str, Any]]:
    """Per prompt: change of each metric against the base; most prompt similarity lost first."""
    sums: dict[tuple[str, str, str], float] = {}
    for row in scores.rows:
        for who, column in (("base", base), ("pick", pick)):
            if (row.checkpoint, row.strength) == (column.name, column.strength):
                key = (who, row.prompt_id, row.metric)
                sums[key] = sums.get(key, 0.0) + row.value / len(suite.seeds)
    rows = []
    for i, prompt in enumerate(suite.prompts):
        name = prompt_id(i)
        change = {
            m: sums["pick", name, m] - sums["base", name, m]
            for m in ("clip_text", "clip_image", "palette")
        }
        rows.append(
            {
                "id": name,
                "prompt": prompt,
                "sort": change["clip_text"],
                "cells": [
                    _signed(change["clip_text"], 3),
                    _signed(change["clip_image"], 3),
                    _signed(change["palette"], 1),
                ],
            }
        )
    return sorted(rows, key=lambda r: float(r["sort"]))


def _signed(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}f}".replace("-", "−")

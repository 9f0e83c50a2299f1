"""The front door: columns of images and features in; rows, summary and choice out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput
from styletune.files import atomic_write, write_json
from styletune.scoring.choose import Candidate, choose
from styletune.scoring.clip_score import (
    image_similarity,
    leave_one_out_similarity,
    text_similarity,
)
from styletune.scoring.frechet import frechet_distance, frechet_estimate
from styletune.scoring.gates import GateResult, apply_gates, passed
from styletune.scoring.kernel import kid, kid_estimate
from styletune.scoring.palette import (
    cdf_distance,
    palette_distance,
    palette_estimates,
    palette_features,
)
from styletune.scoring.statistics import (
    Estimate,
    by_prompt,
    holm,
    mean_estimate,
    paired_difference,
    paired_p_value,
    relative_loss,
    spread_interval,
)
from styletune.scoring.suite import MIN_REFERENCES, Suite, prompt_id, suite_hash

Array = NDArray[np.float64]
HALF_SPLITS = 20
COLOR_SPACE = "cielab-64px"


@dataclass(frozen=True, slots=True)
class Column:
    """One model's images of the suite.

    ``images``: PNG files, prompts-major, seeds-minor: prompt 0 with each seed, then prompt 1.
    ``image_features``: (n, d), in the same order. ``step`` is None for the base.
    """

    name: str
    step: int | None
    strength: float
    images: list[Path]
    image_features: NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Row:
    """One per-image score; ``palette`` is that image's distance to all references' colours."""

    checkpoint: str
    strength: float
    prompt_id: str
    seed: int
    metric: str
    value: float
    encoder: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Long-form rows, and the summary that ``scores/summary.json`` holds."""

    rows: list[Row]
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One column's per-image scores, (n,) each, and its estimates by metric name."""

    column: Column
    per_image: dict[str, Array]
    metrics: dict[str, Estimate]
    gates: list[GateResult]


def score_columns(
    *,
    suite: Suite,
    columns: Sequence[Column],
    text_features: NDArray[np.floating],
    references: Sequence[Path],
    reference_features: NDArray[np.floating],
    encoder_id: str,
) -> Scores:
    """Measure every column, gate it against the base, choose one.

    Args:
        suite: prompts, seeds and gates.
        columns: the base first, then checkpoints; the same prompts and seeds in each.
        text_features: (p, d), one row a prompt.
        references: held-out reference images, at least four, never seen in training.
        reference_features: (m, d), in the order of ``references``.
        encoder_id: what made the features; goes into every row.

    Raises:
        BadInput: counts or shapes do not fit together, or a column comes twice.
        DataError: an image cannot be read.
    """
    _check(suite, columns, text_features, references, reference_features)
    reference_colors = palette_features(references)
    base = columns[0]
    base_colors = palette_features(base.images)
    base_image = image_similarity(base.image_features, reference_features)
    base_text = text_similarity(base.image_features, text_features)
    measured = []
    for column in columns:
        colors = base_colors if column is base else palette_features(column.images)
        measured.append(
            _measure(
                suite,
                column,
                image=image_similarity(column.image_features, reference_features),
                text=text_similarity(column.image_features, text_features),
                base_image=base_image,
                base_text=base_text,
                colors=(colors, base_colors, reference_colors),
                references=reference_features,
            )
        )
    rows = [row for m in measured for row in _rows(suite, m, encoder_id)]
    real = _real_anchor(reference_features, reference_colors)
    return Scores(rows, _summary(suite, measured, real, len(references), encoder_id))


def _check(
    suite: Suite,
    columns: Sequence[Column],
    text_features: NDArray[np.floating],
    references: Sequence[Path],
    reference_features: NDArray[np.floating],
) -> None:
    expected = len(suite.prompts) * len(suite.seeds)
    if len(columns) < 2:
        raise BadInput("scoring needs the base's images and at least one checkpoint's")
    if len(text_features) != len(suite.prompts):
        raise BadInput(f"{len(text_features)} text features for {len(suite.prompts)} prompts")
    if len(reference_features) != len(references):
        raise BadInput(f"{len(reference_features)} features for {len(references)} references")
    if len(references) < MIN_REFERENCES:
        raise BadInput(
            f"{len(references)} held-out reference images, at least {MIN_REFERENCES} are needed",
            where="[data] holdout",
            fix="hold out a larger share, or add images",
        )
    seen: set[tuple[str, float]] = set()
    for column in columns:
        got = (len(column.images), len(column.image_features))
        if got != (expected, expected):
            raise BadInput(
                f"{got[0]} images and {got[1]} features, but prompts x seeds make {expected}",
                where=column.name,
            )
        if (column.name, column.strength) in seen:
            raise BadInput(f"comes twice at strength {column.strength:g}", where=column.name)
        seen.add((column.name, column.strength))


def _measure(
    suite: Suite,
    column: Column,
    *,
    image: Array,
    text: Array,
    base_image: Array,
    base_text: Array,
    colors: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    references: NDArray[np.floating],
) -> _Measured:
    p = len(suite.prompts)
    mine, base_colors, reference_colors = colors
    distance, ratio = palette_estimates(mine, base_colors, reference_colors, p)
    clusters = np.repeat(np.arange(p), len(suite.seeds)).tolist()
    metrics = {
        "clip_image": mean_estimate(image, p),
        "clip_text": mean_estimate(text, p),
        "palette": distance,
        "kid": kid_estimate(column.image_features, references, p),
        "fid": frechet_estimate(column.image_features, references, clusters),
        "clip_image_gain": paired_difference(image, base_image, p),
        "clip_text_loss": relative_loss(text, base_text, p),
        "palette_ratio": ratio,
    }
    gates = apply_gates(
        suite.gates,
        clip_image_gain=metrics["clip_image_gain"],
        palette_ratio=metrics["palette_ratio"],
        clip_text_loss=metrics["clip_text_loss"],
    )
    per_image = {
        "clip_image": image,
        "clip_text": text,
        "palette": cdf_distance(mine, reference_colors.mean(0)),
    }
    return _Measured(column, per_image, metrics, gates)


def _rows(suite: Suite, measured: _Measured, encoder_id: str) -> list[Row]:
    seeds = len(suite.seeds)
    return [
        Row(
            checkpoint=measured.column.name,
            strength=measured.column.strength,
            prompt_id=prompt_id(i // seeds),
            seed=suite.seeds[i % seeds],
            metric=metric,
            value=float(value),
            encoder=COLOR_SPACE if metric == "palette" else encoder_id,
        )
        for metric, values in measured.per_image.items()
        for i, value in enumerate(values)
    ]


REAL_HOW = (
    "The references against themselves. clip_image: each against the others (leave one out). "
    f"palette, kid, fid: one random half against the other, mean and 95 % range of {HALF_SPLITS} "
    "splits; a half is smaller than the whole, so these floors are a little too high."
)
FID_NOTE = (
    "FID is biased by more than it measures at this number of images and prefers collapsed sets: "
    "shown for the record, never a gate."
)


def _real_anchor(
    features: NDArray[np.floating], colors: NDArray[np.float32]
) -> dict[str, Estimate]:
    """What a perfect adapter could reach: see ``REAL_HOW``."""
    m = len(features)
    similar = leave_one_out_similarity(features)
    # A pair enters two leave-one-out means, so the error is twice that of independent values.
    error = 2 * float(np.std(similar, ddof=1)) / m**0.5
    rng = np.random.default_rng(0)
    splits: dict[str, list[float]] = {"palette": [], "kid": [], "fid": []}
    for _ in range(HALF_SPLITS):
        order = rng.permutation(m)
        a, b = order[: m // 2], order[m // 2 :]
        splits["palette"].append(palette_distance(colors[a], colors[b]))
        splits["kid"].append(kid(features[a], features[b]))
        splits["fid"].append(frechet_distance(features[a], features[b]))
    found = {"clip_image": spread_interval(float(similar.mean()), error, m, m)}
    for name, values in splits.items():
        low, high = np.quantile(values, [0.025, 0.975])
        found[name] = Estimate(float(np.mean(values)), float(low), float(high), m)
    return found


def _summary(
    suite: Suite,
    measured: Sequence[_Measured],
    real: dict[str, Estimate],
    references: int,
    encoder_id: str,
) -> dict[str, Any]:
    base, rest = measured[0], measured[1:]
    p = len(suite.prompts)
    style = [by_prompt(m.per_image["clip_image"], p) for m in measured]
    candidates = [
        Candidate(m.column.name, m.column.step, m.column.strength, s, m.gates)
        for m, s in zip(rest, style[1:], strict=True)
    ]
    chosen = choose(candidates, style[0])
    adjusted = holm([paired_p_value(s, style[0], p) for s in style[1:]])
    pick = rest[chosen.column]
    return {
        "suite": suite.name,
        "suite_hash": suite_hash(suite),
        "encoder": encoder_id,
        "images": p * len(suite.seeds),
        "references": references,
        "chosen": {
            "checkpoint": pick.column.name,
            "step": pick.column.step,
            "strength": pick.column.strength,
            "reason": chosen.reason,
            "passed": passed(pick.gates),
        },
        "checkpoints": [
            {
                "checkpoint": m.column.name,
                "step": m.column.step,
                "strength": m.column.strength,
                "metrics": _json(m.metrics),
                "gates": [g.as_json() for g in m.gates],
                "passed": passed(m.gates),
                "clip_image_gain_p_holm": p_value,
            }
            for m, p_value in zip(rest, adjusted, strict=True)
        ],
        "anchors": {"base": _json(base.metrics), "real": _json(real)},
        # The base is a candidate at strength 0: a gate that lets it pass is no gate.
        "base": {"gates": [g.as_json() for g in base.gates], "passed": passed(base.gates)},
        "anchors_how": REAL_HOW,
        "gates": [g.as_json() for g in pick.gates],
        "fid_note": FID_NOTE,
    }


def _json(metrics: dict[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    return {name: estimate.as_json() for name, estimate in metrics.items()}


def write_scores(scores: Scores, parquet_path: Path, summary_path: Path) -> None:
    """Write rows as parquet (zstd) and the summary as JSON, each atomically.

    Columns: checkpoint, strength, prompt_id, seed, metric, value, encoder. Raises OutputError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("checkpoint", pa.string()),
            ("strength", pa.float64()),
            ("prompt_id", pa.string()),
            ("seed", pa.int64()),
            ("metric", pa.string()),
            ("value", pa.float64()),
            ("encoder", pa.string()),
        ]
    )
    table = pa.Table.from_pylist([asdict(row) for row in scores.rows], schema=schema)
    with atomic_write(parquet_path) as stream:
        pq.write_table(table, stream, compression="zstd")
    write_json(summary_path, scores.summary)

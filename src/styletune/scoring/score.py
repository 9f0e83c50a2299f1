"""Columns of images and features in; rows, summary and choice out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput
from styletune.runs.scores import ScoreRow
from styletune.runs.summary import (
    Anchors,
    BaseVerdict,
    CheckpointScores,
    ChosenCheckpoint,
    Confirmation,
    GateVerdict,
    Metrics,
    MetricValue,
    Summary,
    missed_gates,
)
from styletune.scoring.choose import Candidate, Chosen, choose
from styletune.scoring.clip_score import (
    image_similarity,
    leave_one_out_similarity,
    text_similarity,
    unit_rows,
)
from styletune.scoring.copies import Copies, Detector, Views, copy_detector, copy_estimate
from styletune.scoring.gates import apply_gates
from styletune.scoring.palette import (
    cdf_distance,
    palette_distance,
    palette_estimates,
    palette_features,
)
from styletune.scoring.reason import confirmed_reason, screened_reason
from styletune.scoring.scale import (
    HALF_SPLITS,
    Scale,
    palette_column,
    palette_scale,
    prompt_scale,
    style_column,
    style_scale,
    variety_scale,
)
from styletune.scoring.sets import set_estimates, set_values
from styletune.scoring.statistics import (
    Array,
    Estimate,
    by_prompt,
    finite,
    holm,
    mean_estimate,
    paired_difference,
    paired_p_value,
    relative_loss,
    spread_interval,
)
from styletune.scoring.suite import MIN_REFERENCES, Suite, prompt_id, suite_hash

REAL_IS_100 = ("style_score", "palette_score", "variety_score")
COLOR_SPACE = "cielab-64px"
PAIRS = 12


@dataclass(frozen=True, slots=True)
class Column:
    """One model's images of the suite.

    ``images``: PNG files, prompts-major, seeds-minor: prompt 0 with each seed, then prompt 1.
    ``views`` are of these, in the same order. ``step`` is None for the base.
    """

    name: str
    step: int | None
    strength: float
    images: list[Path]
    views: Views

    @property
    def image_features(self) -> NDArray[np.floating]:
        """What the encoder makes of the images: (n, d)."""
        return self.views.features


@dataclass(frozen=True, slots=True)
class Scores:
    """Long-form rows, and the summary, still without its inputs.

    ``why_not_others``: the part of the reason that no confirmation changes. ``nearest``: the chosen
    one's images that are nearest to a training image, suspects first.
    """

    rows: list[ScoreRow]
    summary: Summary
    why_not_others: str
    nearest: list[NearPair]


@dataclass(frozen=True, slots=True)
class NearPair:
    """An image and the training image nearest to it; ``training`` is that one's index.

    ``is_suspect``: nearer than nearly all held-out images come to any.
    """

    prompt_id: str
    seed: int
    training: int
    similarity: float
    is_suspect: bool


@dataclass(frozen=True, slots=True)
class _References:
    """The references' features (m, d) and cumulative color histograms (m, 64, 281)."""

    features: NDArray[np.floating]
    colors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Compared:
    """One column against references and prompts: cosines (n,), histograms (n, 64, 281).

    ``texts`` (n, p): to every prompt, not only the own.
    """

    column: Column
    image: Array
    text: Array
    texts: Array
    colors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Ends:
    """What columns are compared with: the base, the scales that begin at it, the training set."""

    base: _Compared
    style: Scale
    palette: Scale
    copies: Detector
    base_copies: Copies


@dataclass(frozen=True, slots=True)
class _Measured:
    """One column's per-image scores, (n,) each, and its estimates by metric name.

    ``expected_gates``: the verdicts to expect on the suite's confirmation, see ``_expected``.
    """

    column: Column
    per_image: dict[str, Array]
    metrics: dict[str, Estimate]
    gates: list[GateVerdict]
    expected_gates: list[GateVerdict]
    copies: Copies


def score_columns(
    *,
    suite: Suite,
    columns: Sequence[Column],
    text_features: NDArray[np.floating],
    references: Sequence[Path],
    reference_views: Views,
    training_views: Views,
    encoder_id: str,
    prompt_letter: str = "p",
) -> Scores:
    """Measure every column, gate it against the base, choose one.

    Args:
        suite: prompts, seeds and gates.
        columns: the base first, then checkpoints; the same prompts and seeds in each.
        text_features: (p, d), one row per prompt.
        references: held-out reference images, at least four, never seen in training.
        reference_views: of m images, in the order of ``references``.
        training_views: of the images that were trained on.
        encoder_id: what made the features; goes into every row.
        prompt_letter: what the rows' ids of prompts begin with.

    Raises:
        BadInput: counts or shapes do not fit together, or a column comes twice.
        DataError: an image cannot be read.
    """
    _check(suite, columns, text_features, references, reference_views.features)
    detector = copy_detector(training_views, reference_views)
    reference_features = reference_views.features
    anchor = _References(reference_features, palette_features(references))
    base = _compare(columns[0], text_features, anchor)
    p = len(suite.prompts)
    ends = _Ends(
        base,
        style_scale(style_column(columns[0].image_features, p), reference_features),
        palette_scale(palette_column(base.colors, p), anchor.colors),
        detector,
        detector(columns[0].views),
    )
    measured = [
        _measure(
            suite, base if c is base.column else _compare(c, text_features, anchor), ends, anchor
        )
        for c in columns
    ]
    rows = [row for m in measured for row in _rows(suite, m, encoder_id, prompt_letter)]
    choice = choose(
        [
            Candidate(
                m.column.name,
                m.column.step,
                m.column.strength,
                by_prompt(m.per_image["clip_image"], p),
                m.expected_gates,
            )
            for m in measured[1:]
        ],
        ends.style.points,
    )
    real = _real_anchor(anchor)
    summary = _summary(suite, measured, choice, real, len(references), encoder_id)
    pairs = _pairs(suite, measured[1 + choice.column].copies, prompt_letter)
    return Scores(rows, summary, choice.why_not_others, pairs)


def with_confirmation(screened: Scores, confirmed: Scores) -> Scores:
    """What was chosen on some images, reported and gated on others.

    ``confirmed``: of the suite's confirmation, with the base and the chosen column alone.
    """
    summary, fresh = screened.summary, confirmed.summary
    (line,) = fresh.checkpoints
    prompts = len({row.prompt_id for row in confirmed.rows})
    confirmation = Confirmation(
        suite_hash=fresh.suite_hash,
        prompts=prompts,
        images=fresh.images,
        metrics=line.metrics,
        base=fresh.anchors.base,
    )
    reason = confirmed_reason(line, prompts, summary, screened.why_not_others)
    chosen = summary.chosen.model_copy(update={"passed": line.passed, "reason": reason})
    update = {"confirmed": confirmation, "gates": line.gates, "chosen": chosen}
    return Scores(
        [*screened.rows, *confirmed.rows],
        summary.model_copy(update=update),
        screened.why_not_others,
        confirmed.nearest,
    )


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
    names: set[tuple[str, float]] = set()
    for column in columns:
        counts = (len(column.images), len(column.image_features))
        if counts != (expected, expected):
            raise BadInput(
                f"{counts[0]} images and {counts[1]} features, but prompts x seeds make {expected}",
                where=column.name,
            )
        if (column.name, column.strength) in names:
            raise BadInput(f"comes twice at strength {column.strength:g}", where=column.name)
        names.add((column.name, column.strength))


def _compare(
    column: Column, text_features: NDArray[np.floating], references: _References
) -> _Compared:
    return _Compared(
        column,
        image=image_similarity(column.image_features, references.features),
        text=text_similarity(column.image_features, text_features),
        texts=unit_rows(column.image_features) @ unit_rows(text_features).T,
        colors=palette_features(column.images),
    )


def _measure(suite: Suite, compared: _Compared, ends: _Ends, references: _References) -> _Measured:
    column, base, p = compared.column, ends.base, len(suite.prompts)
    features, n = column.image_features, len(column.images)
    distance, ratio = palette_estimates(compared.colors, base.colors, references.colors, p)
    metrics = {
        "style_score": ends.style(style_column(features, p), n),
        "palette_score": ends.palette(palette_column(compared.colors, p), n),
        "prompt_score": prompt_scale(compared.texts, base.texts),
        "variety_score": variety_scale(style_column(features, p), references.features, n),
        "clip_image": mean_estimate(compared.image, p),
        "clip_text": mean_estimate(compared.text, p),
        "palette": distance,
        **set_estimates(features, references.features, p),
        "clip_image_gain": paired_difference(compared.image, base.image, p),
        "clip_text_loss": relative_loss(compared.text, base.text, p),
        "palette_ratio": ratio,
    }
    per_image = {
        "clip_image": compared.image,
        "clip_text": compared.text,
        "palette": cdf_distance(compared.colors, references.colors.mean(0)),
    }
    copies = ends.copies(column.views)
    metrics["copies"] = copy_estimate(copies, ends.base_copies, p)
    gates = apply_gates(suite.gates, metrics)
    expected = apply_gates(suite.gates, _expected(suite, metrics))
    return _Measured(column, per_image, metrics, gates, expected, copies)


def _pairs(suite: Suite, copies: Copies, letter: str) -> list[NearPair]:
    """At most ``PAIRS``: suspects first, then the nearest."""
    nearest = copies.nearest
    order = np.lexsort((-nearest.similarity, ~copies.is_suspect))[:PAIRS]
    seeds = len(suite.seeds)
    return [
        NearPair(
            prompt_id(int(i) // seeds, letter),
            suite.seeds[int(i) % seeds],
            int(nearest.index[i]),
            float(nearest.similarity[i]),
            bool(copies.is_suspect[i]),
        )
        for i in order
    ]


def _expected(suite: Suite, metrics: dict[str, Estimate]) -> dict[str, Estimate]:
    """The same values with intervals as narrow as the confirmation's prompts will make them."""
    if suite.confirm is None:
        return metrics
    factor = math.sqrt(len(suite.prompts) / len(suite.confirm.prompts))
    return {name: estimate.narrowed(factor) for name, estimate in metrics.items()}


def _rows(suite: Suite, measured: _Measured, encoder_id: str, letter: str) -> list[ScoreRow]:
    seeds = len(suite.seeds)
    return [
        ScoreRow(
            checkpoint=measured.column.name,
            strength=measured.column.strength,
            prompt_id=prompt_id(i // seeds, letter),
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
    "palette and measures of sets: one random half against the other, mean and 95 % range of "
    f"{HALF_SPLITS} splits; a half is smaller than the whole, so these floors are a little too "
    "high."
)
FID_NOTE = (
    "FID and KID are computed on CLIP features here, not on Inception's, so they compare with no "
    "published value. FID is biased by more than it measures at this number of images and prefers "
    "collapsed sets: shown for the record, never a gate."
)


def _real_anchor(references: _References) -> dict[str, Estimate]:
    """What a perfect adapter could reach: see ``REAL_HOW``."""
    features, colors, m = references.features, references.colors, len(references.features)
    similar = leave_one_out_similarity(features)
    # A pair enters two leave-one-out means, so the error is twice that of independent values.
    error = 2 * float(np.std(similar, ddof=1)) / m**0.5
    rng = np.random.default_rng(0)
    splits: dict[str, list[float]] = {}
    for _ in range(HALF_SPLITS):
        order = rng.permutation(m)
        a, b = order[: m // 2], order[m // 2 :]
        measured = set_values(features[a], features[b])
        measured["palette"] = palette_distance(colors[a], colors[b])
        for name, value in measured.items():
            splits.setdefault(name, []).append(value)
    nan = float("nan")
    anchors = {name: Estimate(100.0, nan, nan, m) for name in REAL_IS_100}
    anchors["clip_image"] = spread_interval(float(similar.mean()), error, m, m)
    for name, values in splits.items():
        low, high = np.quantile(values, [0.025, 0.975])
        anchors[name] = Estimate(float(np.mean(values)), float(low), float(high), m)
    return anchors


def _summary(
    suite: Suite,
    measured: Sequence[_Measured],
    choice: Chosen,
    real: dict[str, Estimate],
    references: int,
    encoder_id: str,
) -> Summary:
    base, rest = measured[0], measured[1:]
    p = len(suite.prompts)
    style = [by_prompt(m.per_image["clip_image"], p) for m in measured]
    adjusted = holm([paired_p_value(s, style[0], p) for s in style[1:]])
    checkpoints = [_checkpoint(m, p_holm) for m, p_holm in zip(rest, adjusted, strict=True)]
    pick = checkpoints[choice.column]
    return Summary(
        suite=suite.name,
        suite_hash=suite_hash(suite),
        encoder=encoder_id,
        images=p * len(suite.seeds),
        references=references,
        chosen=ChosenCheckpoint(
            checkpoint=pick.checkpoint,
            step=pick.step,
            strength=pick.strength,
            reason=screened_reason(checkpoints, choice),
            passed=pick.passed,
            strengths=choice.strengths,
        ),
        checkpoints=tuple(checkpoints),
        anchors=Anchors(base=_metrics(base.metrics), real=_metrics(real)),
        base=BaseVerdict(gates=tuple(base.gates), passed=not missed_gates(base.gates)),
        gates=pick.gates,
        anchors_how=REAL_HOW,
        fid_note=FID_NOTE,
    )


def _checkpoint(measured: _Measured, p_holm: float) -> CheckpointScores:
    return CheckpointScores(
        checkpoint=measured.column.name,
        step=measured.column.step,
        strength=measured.column.strength,
        metrics=_metrics(measured.metrics),
        gates=tuple(measured.gates),
        passed=not missed_gates(measured.gates),
        clip_image_gain_p_holm=p_holm,
    )


def _metrics(estimates: dict[str, Estimate]) -> Metrics:
    """For a document, which has no NaN: undefined becomes None."""
    return {
        name: MetricValue(value=finite(e.value), low=finite(e.low), high=finite(e.high), n=e.n)
        for name, e in estimates.items()
    }

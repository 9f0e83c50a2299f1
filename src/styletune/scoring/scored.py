"""A scored run as its folder holds it: documents, rows and images, without any features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from styletune.errors import IntegrityError
from styletune.runs.documents import RunFacts, read_facts
from styletune.runs.folder import BASE_COLUMN, Run
from styletune.runs.scores import ScoreRow, read_scores
from styletune.runs.summary import FIX_SUMMARY, Metrics, NearestImage, Summary, read_summary
from styletune.scoring.suite import Suite, prompt_id, sample_names, scored_suite


@dataclass(frozen=True, slots=True)
class ScoredColumn:
    """The base or a checkpoint; ``images`` are prompts-major, as in ``Column``.

    ``step`` and ``strength`` are None for the base.
    """

    name: str
    label: str
    step: int | None
    strength: float | None
    chosen: bool
    passed: bool
    metrics: Metrics
    images: list[Path]

    @property
    def base(self) -> bool:
        """Whether this is the base model."""
        return self.name == BASE_COLUMN


@dataclass(frozen=True, slots=True)
class Shown:
    """What is reported of: the confirmation's images of base and chosen, if there is one.

    Else those of the choice. ``letter`` begins the ids of its prompts.
    """

    suite: Suite
    letter: str
    base: list[Path]
    chosen: list[Path]


@dataclass(frozen=True, slots=True)
class ShownPair:
    """An image of the chosen checkpoint and the training image nearest to it."""

    image: Path
    training: Path
    prompt: str
    near: NearestImage


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """Columns with the base first; the references; per-image rows of all columns."""

    facts: RunFacts
    summary: Summary
    suite: Suite
    columns: list[ScoredColumn]
    references: list[Path]
    rows: Sequence[ScoreRow]
    shown: Shown
    nearest: list[ShownPair]

    @property
    def base(self) -> ScoredColumn:
        """The base model's column."""
        return self.columns[0]

    @property
    def chosen(self) -> ScoredColumn:
        """The chosen checkpoint's column."""
        return next(column for column in self.columns if column.chosen)


def load_scored(run: Run) -> ScoredRun:
    """Read a scored run.

    Raises:
        NotFound: the run has not been scored.
        IntegrityError: a document is damaged, or an image is missing.
        BadInput: a document was written by a newer styletune.
    """
    facts, summary = read_facts(run), read_summary(run)
    suite = scored_suite(summary)
    chosen = summary.chosen_scores
    base = ScoredColumn(
        name=BASE_COLUMN,
        label=BASE_COLUMN,
        step=None,
        strength=None,
        chosen=False,
        passed=summary.base.passed,
        metrics=summary.anchors.base,
        images=_images(run.samples_dir(summary.suite_hash, BASE_COLUMN), suite),
    )
    checkpoints = [
        ScoredColumn(
            name=scores.checkpoint,
            label=scores.label,
            step=scores.step,
            strength=scores.strength,
            chosen=scores is chosen,
            passed=scores.passed,
            metrics=scores.metrics,
            images=_images(
                run.samples_dir(summary.suite_hash, scores.checkpoint, scores.strength), suite
            ),
        )
        for scores in summary.checkpoints
    ]
    columns = [base, *checkpoints]
    shown = _shown(run, summary, suite, columns)
    return ScoredRun(
        facts,
        summary,
        suite,
        columns,
        _references(run, summary),
        read_scores(run),
        shown,
        _nearest(run, summary, shown),
    )


def _nearest(run: Run, summary: Summary, shown: Shown) -> list[ShownPair]:
    """None of a run that an earlier version scored."""
    suite, folder = shown.suite, run.training_dir(summary.suite_hash)
    places = {
        (prompt_id(i, shown.letter), seed): i * len(suite.seeds) + j
        for i in range(len(suite.prompts))
        for j, seed in enumerate(suite.seeds)
    }
    pairs = []
    for near in summary.nearest or ():
        place = places.get((near.prompt_id, near.seed))
        training = folder / f"{near.pixels[:12]}.png"
        if place is None or not training.is_file():
            raise IntegrityError(
                f"the training image nearest to {near.prompt_id} is missing",
                where=str(folder),
                fix=FIX_SUMMARY,
            )
        prompt = suite.texts[place // len(suite.seeds)]
        pairs.append(ShownPair(shown.chosen[place], training, prompt, near))
    return pairs


def _shown(run: Run, summary: Summary, suite: Suite, columns: Sequence[ScoredColumn]) -> Shown:
    fresh, chosen = suite.confirmation, summary.chosen
    if summary.confirmed is None or fresh is None:
        images = next(column.images for column in columns if column.chosen)
        return Shown(suite, "p", columns[0].images, images)
    of_suite = summary.confirmed.suite_hash
    return Shown(
        fresh,
        "c",
        _images(run.samples_dir(of_suite, BASE_COLUMN), fresh),
        _images(run.samples_dir(of_suite, chosen.checkpoint, chosen.strength), fresh),
    )


def _images(folder: Path, suite: Suite) -> list[Path]:
    images = [folder / name for name in sample_names(suite)]
    for image in images:
        if not image.is_file():
            raise IntegrityError(f"{image.name} is missing", where=str(folder), fix=FIX_SUMMARY)
    return images


def _references(run: Run, summary: Summary) -> list[Path]:
    folder = run.references_dir(summary.suite_hash)
    references = sorted(folder.glob("*.png"))
    if len(references) != summary.references:
        raise IntegrityError(
            f"{len(references)} references, the scores are of {summary.references}",
            where=str(folder),
            fix=FIX_SUMMARY,
        )
    return references

"""``scores/summary.json``: what was measured of every checkpoint, and which one is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from styletune.colors import HexColor
from styletune.errors import CheckFailed, IntegrityError
from styletune.runs.folder import Run, column_label
from styletune.runs.form import Document, DocumentPart, read_document, write_document
from styletune.runs.metrics import SCALE_METRICS

Verdict = Literal["pass", "fail", "inconclusive"]
FIX_SUMMARY = "delete it and run styletune score again"


class MetricValue(DocumentPart):
    """A value, its 95 % interval and the number of images behind it; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int


Metrics = dict[str, MetricValue]


class GateVerdict(DocumentPart):
    """One release gate: what was measured against its threshold, and what follows."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float
    verdict: Verdict
    explanation: str


def missed_gates(gates: Iterable[GateVerdict]) -> list[GateVerdict]:
    """The gates that are not passed; inconclusive is not passed."""
    return [gate for gate in gates if gate.verdict != "pass"]


class CheckpointScores(DocumentPart):
    """One checkpoint at one strength; ``clip_image_gain_p_holm`` is Holm-adjusted."""

    checkpoint: str
    step: int | None
    strength: float
    metrics: Metrics
    gates: tuple[GateVerdict, ...]
    passed: bool
    clip_image_gain_p_holm: float

    @property
    def label(self) -> str:
        """For people: ``step 200``."""
        return column_label(self.checkpoint, self.step, self.strength)


class ChosenCheckpoint(DocumentPart):
    """The checkpoint to hand over, and why; ``strengths`` (low, high) do as well at the gates."""

    checkpoint: str
    step: int | None
    strength: float
    reason: str
    passed: bool
    strengths: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """For people: ``step 200``."""
        return column_label(self.checkpoint, self.step, self.strength)


class Anchors(DocumentPart):
    """The two ends of every scale: the base model, and the references against themselves."""

    base: Metrics
    real: Metrics


class BaseVerdict(DocumentPart):
    """The base judged as a candidate of strength 0: a gate that lets it pass is no gate."""

    gates: tuple[GateVerdict, ...]
    passed: bool


class Confirmation(DocumentPart):
    """The chosen checkpoint and the base on prompts and seeds that had no part in the choice."""

    suite_hash: str
    prompts: int
    images: int
    metrics: Metrics
    base: Metrics


class NearestImage(DocumentPart):
    """An image of the chosen checkpoint and the training image nearest to it.

    ``training`` is that image's file name in its data set, ``pixels`` its pixel hash.
    """

    prompt_id: str
    seed: int
    training: str
    pixels: str
    similarity: float
    is_suspect: bool


class ScoreInputs(DocumentPart):
    """Everything that the scores depend on; another value makes a summary stale.

    ``suite`` is a whole suite as JSON (``scoring.suite.Suite``); ``base`` and ``data`` are
    SHA-256, ``adapters`` too, by step.
    """

    suite: dict[str, JsonValue]
    base: str
    data: str
    trigger: str
    palette: tuple[HexColor, ...]
    adapters: dict[str, str]
    styletune: str


class Summary(Document):
    """``scores/summary.json``; a published version holds it without ``inputs``.

    ``gates`` are those of the chosen checkpoint: on the confirmation's images where there are any,
    else on those that it was chosen by.
    """

    suite: str
    suite_hash: str
    encoder: str
    images: int
    references: int
    chosen: ChosenCheckpoint
    checkpoints: tuple[CheckpointScores, ...]
    anchors: Anchors
    base: BaseVerdict
    gates: tuple[GateVerdict, ...]
    anchors_how: str
    fid_note: str
    confirmed: Confirmation | None = None
    nearest: tuple[NearestImage, ...] | None = None
    inputs: ScoreInputs | None = None

    @property
    def chosen_scores(self) -> CheckpointScores:
        """The scores of the chosen checkpoint. Raises IntegrityError if they are not there."""
        for scores in self.checkpoints:
            if (scores.checkpoint, scores.strength) == (
                self.chosen.checkpoint,
                self.chosen.strength,
            ):
                return scores
        raise IntegrityError(
            f"no scores of {self.chosen.checkpoint}, which is chosen",
            where="scores/summary.json",
            fix=FIX_SUMMARY,
        )

    @property
    def is_scaled(self) -> bool:
        """Whether there are scores from 0 to 100; earlier versions made none."""
        return SCALE_METRICS[0].name in self.anchors.base

    @property
    def reported(self) -> tuple[Metrics, Metrics]:
        """What to report of the chosen checkpoint and of the base: confirmed, if anything was."""
        if self.confirmed is not None:
            return self.confirmed.metrics, self.confirmed.base
        return self.chosen_scores.metrics, self.anchors.base

    def public_json(self) -> dict[str, Any]:
        """As it is published: trigger, palette and hashes of a run stand elsewhere.

        The names of training images are nobody's business.
        """
        return self.model_dump(mode="json", exclude={"inputs", "nearest"})


def read_summary(run: Run) -> Summary:
    """Read ``scores/summary.json``.

    Raises:
        NotFound: the run has not been scored.
        IntegrityError: damaged.
        BadInput: written by a newer styletune.
    """
    return read_document(Summary, run.summary_file, FIX_SUMMARY)


def write_summary(run: Run, summary: Summary) -> None:
    """Write ``scores/summary.json``. Raises OutputError."""
    write_document(run.summary_file, summary)


def refuse_unless_passed(summary: Summary, report: Path) -> None:
    """Raise CheckFailed that names every gate the chosen checkpoint did not pass."""
    missed = missed_gates(summary.gates)
    if missed:
        lines = "; ".join(f"{gate.name} {gate.verdict}: {gate.explanation}" for gate in missed)
        raise CheckFailed(
            f"the gate refuses {summary.chosen.checkpoint}: {lines}",
            where=str(report),
            fix="look at the report; train longer, lower the learning rate, or add images",
        )

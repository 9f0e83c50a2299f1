"""Why the chosen one, in words for people."""

from __future__ import annotations

from collections.abc import Sequence

from styletune.runs.summary import CheckpointScores, GateVerdict, Metrics, Summary, missed_gates
from styletune.scoring.choose import Chosen


def screened_reason(checkpoints: Sequence[CheckpointScores], choice: Chosen) -> str:
    """On the images that it was chosen by, where nothing confirms it."""
    pick, count = checkpoints[choice.column], len(checkpoints)
    text = f"{_capital(pick.label)} {_standing(pick.gates)}"
    passing = sum(c.passed for c in checkpoints)
    if passing:
        text += f" ({passing} of {_candidates(count)} do)."
    else:
        text = f"No candidate passes all gates. {text}."
    text += _style(pick.metrics) + choice.why_not_others + _strengths(choice.strengths)
    if count > 1:
        text += (
            f" The best of {count} looks better than it is: expect a little less on new prompts"
            " and seeds."
        )
    return text


def confirmed_reason(
    line: CheckpointScores, prompts: int, screened: Summary, why_not_others: str
) -> str:
    """On images that had no part in the choice: ``line`` is the chosen one's scores there."""
    text = (
        f"{_capital(line.label)} {_standing(line.gates)} on {prompts} prompts and other seeds that"
        f" had no part in the choice.{_style(line.metrics)} It was chosen from"
        f" {_candidates(len(screened.checkpoints))} on {screened.images} images each."
    )
    return text + why_not_others + _strengths(screened.chosen.strengths)


def _standing(gates: Sequence[GateVerdict]) -> str:
    """``passes all gates``, or which it misses and how."""
    missed = missed_gates(gates)
    if not missed:
        return "passes all gates"
    return "misses " + ", ".join(f"{gate.name} ({gate.verdict})" for gate in missed)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _candidates(count: int) -> str:
    return f"{count} candidate{'s' if count != 1 else ''}"


def _strengths(strengths: tuple[float, float] | None) -> str:
    if strengths is None or strengths[0] == strengths[1]:
        return ""
    return f" Strengths from {strengths[0]:g} to {strengths[1]:g} do as well at the gates."


def _style(metrics: Metrics) -> str:
    """The style score, or the gain that it is made of where there is no scale, as a sentence."""
    score = metrics["style_score"]
    if score.value is not None and score.low is not None and score.high is not None:
        return (
            f" It scores {score.value:.0f} for style (95 % interval {score.low:.0f} to"
            f" {score.high:.0f}; 0 is the base model, 100 the brand's own images)."
        )
    gain = metrics["clip_image_gain"]
    if gain.value is None or gain.low is None or gain.high is None:
        return ""
    return (
        f" Its similarity to the references is {gain.value:+.3f} against the base (95 % interval"
        f" {gain.low:+.3f} to {gain.high:+.3f})."
    )

"""Which checkpoint to hand over, and at which strength."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput
from styletune.runs.folder import column_label
from styletune.runs.summary import GateVerdict
from styletune.scoring.statistics import holm, paired_difference, paired_p_value, prompts_needed

SIGNIFICANCE = 0.05
POINTS = 5  # a difference in style that is worth more prompts


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint at a strength: ``style`` (p,) is its mean reference similarity by prompt.

    ``gates`` are the verdicts to expect of it where it will be gated.
    """

    name: str
    step: int | None
    strength: float
    style: NDArray[np.float64]
    gates: Sequence[GateVerdict]

    @property
    def label(self) -> str:
        """For people: ``step 200``."""
        return column_label(self.name, self.step, self.strength)


@dataclass(frozen=True, slots=True)
class Chosen:
    """``column`` is the index among the candidates.

    ``why_not_others`` is what could not be told apart, as sentences after a space, or nothing;
    ``strengths`` (low, high) of the chosen checkpoint do as well at the gates.
    """

    column: int
    why_not_others: str
    strengths: tuple[float, float]


def choose(candidates: Sequence[Candidate], points: float = math.nan) -> Chosen:
    """Choose the earliest candidate that cannot be told from the best.

    Among those that pass all gates (or, if none does, those that miss fewest), the best is
    the one closest to the references: gates hold the prompt, style decides, so the choice lies
    on the front of both. Every other is compared with it, paired by prompt, Holm-corrected; of
    those within noise the earliest step wins, for less overfitting, then the lower strength.

    Args:
        candidates: at least one; the base is not one of them.
        points: on the scale of 0 to 100 per unit of ``style``, for the words; NaN if unknown.

    Raises:
        BadInput: no candidates.
    """
    if not candidates:
        raise BadInput("there is no checkpoint to choose from", fix="train or add checkpoints")
    misses = [_misses(c) for c in candidates]
    pool = [i for i, m in enumerate(misses) if m == min(misses)]
    best = max(pool, key=lambda i: float(candidates[i].style.mean()))
    ties = [best, *_within_noise(candidates, pool, best)]
    column = min(ties, key=lambda i: (_step(candidates[i]), candidates[i].strength, i))
    strengths = _strengths(candidates, misses, column)
    return Chosen(column, _why_not_others(candidates, points, best, column, ties), strengths)


def _misses(candidate: Candidate) -> int:
    weight = {"pass": 0, "inconclusive": 1, "fail": 2}
    return sum(weight[gate.verdict] for gate in candidate.gates)


def _step(candidate: Candidate) -> float:
    return float("inf") if candidate.step is None else candidate.step


def _within_noise(candidates: Sequence[Candidate], pool: Sequence[int], best: int) -> list[int]:
    others = [i for i in pool if i != best]
    top = candidates[best].style
    p = holm([paired_p_value(top, candidates[i].style, len(top)) for i in others])
    return [i for i, value in zip(others, p, strict=True) if value > SIGNIFICANCE]


def _strengths(
    candidates: Sequence[Candidate], misses: Sequence[int], column: int
) -> tuple[float, float]:
    """The strengths of the chosen checkpoint around the chosen one that miss no more gates."""
    chosen = candidates[column]
    same = sorted(
        (c.strength, m) for c, m in zip(candidates, misses, strict=True) if c.name == chosen.name
    )
    at = [strength for strength, _ in same].index(chosen.strength)
    low = high = at
    while low > 0 and same[low - 1][1] <= misses[column]:
        low -= 1
    while high + 1 < len(same) and same[high + 1][1] <= misses[column]:
        high += 1
    return same[low][0], same[high][0]


def _why_not_others(
    candidates: Sequence[Candidate],
    points: float,
    best: int,
    column: int,
    ties: Sequence[int],
) -> str:
    """Why not another one: what could not be told apart, and what would tell it."""
    chosen = candidates[column]
    others = [i for i in ties if i != column]
    if not others:
        return ""
    prompts = len(chosen.style)
    if column != best:
        lead = paired_difference(candidates[best].style, chosen.style, prompts)
        scale, unit = (points, " of 100") if math.isfinite(points) else (1.0, "")
        digits = 0 if unit else 3
        low, high = (f"{scale * end:.{digits}f}" for end in (lead.low, lead.high))
        text = (
            f" Closest to the references is {candidates[best].label}, ahead by"
            f" {scale * lead.value:.{digits}f}{unit} ({low} to {high}): within noise, so the"
            " earlier and weaker one is kept."
        )
        other = best
    else:
        names = ", ".join(candidates[i].label for i in others)
        text = f" No difference can be shown to {names}, no earlier or weaker one."
        other = others[0]
    if math.isfinite(points) and points > 0:
        difference = candidates[other].style - chosen.style
        count = prompts_needed(difference, POINTS / points)
        if count > prompts:
            text += (
                f" To show a difference of {POINTS} points between {chosen.label} and"
                f" {candidates[other].label}, about {count} prompts are needed."
            )
    return text

"""Which checkpoint to hand over, and why, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from styletune.errors import BadInput
from styletune.runs.folder import column_label
from styletune.runs.summary import GateVerdict, missed_gates
from styletune.scoring.statistics import holm, paired_difference, paired_p_value

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint at a strength: ``style`` (p,) is its mean reference similarity by prompt."""

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
    """``column`` is the index among the candidates."""

    column: int
    reason: str


def choose(candidates: Sequence[Candidate], base_style: NDArray[np.float64]) -> Chosen:
    """Choose the earliest candidate that cannot be told from the best.

    Among those that pass all gates (or, if none does, those that miss fewest), the best is
    the one closest to the references. Every other is compared with it, paired by prompt,
    Holm-corrected; of those within noise the earliest step wins, for less overfitting.

    Args:
        candidates: at least one; the base is not one of them.
        base_style: (p,) the base's mean reference similarity by prompt.

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
    return Chosen(column, _reason(candidates, base_style, pool, best, column, ties))


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


def _reason(
    candidates: Sequence[Candidate],
    base_style: NDArray[np.float64],
    pool: Sequence[int],
    best: int,
    column: int,
    ties: Sequence[int],
) -> str:
    chosen, prompts = candidates[column], len(base_style)
    gain = paired_difference(chosen.style, base_style, prompts)
    text = _standing(candidates, column, pool)
    text += (
        f" Its similarity to the references is {chosen.style.mean():.3f}, {gain.value:+.3f} against"
        f" the base (95 % interval {gain.low:+.3f} to {gain.high:+.3f}, {prompts} prompts)."
    )
    if column != best:
        lead = paired_difference(candidates[best].style, chosen.style, prompts)
        text += (
            f" The highest is {candidates[best].label}, ahead by {lead.value:.3f}"
            f" ({lead.low:+.3f} to {lead.high:+.3f}): within noise, so the earlier step is kept."
        )
    elif len(ties) > 1:
        later = ", ".join(candidates[i].label for i in ties if i != column)
        text += f" Not distinguishable from it, but no earlier: {later}."
    if len(candidates) > 1:
        text += (
            f" The best of {len(candidates)} looks better than it is: expect a little less on new"
            " prompts and seeds."
        )
    return text


def _standing(candidates: Sequence[Candidate], column: int, pool: Sequence[int]) -> str:
    chosen = candidates[column]
    label = chosen.label[0].upper() + chosen.label[1:]
    missed = missed_gates(chosen.gates)
    if not missed:
        return f"{label} passes all gates ({len(pool)} of {len(candidates)} candidates do)."
    names = ", ".join(f"{gate.name} ({gate.verdict})" for gate in missed)
    return f"No candidate passes all gates. {label} is the least bad; it misses {names}."

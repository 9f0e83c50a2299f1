"""Release gates: a checkpoint passes when all of them pass, on intervals, not on luck.

Distances between distributions (FID, KID) are no gates: at the sizes of a brand's image set
they reward collapse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from styletune.scoring.statistics import Estimate, finite
from styletune.scoring.suite import SuiteGates

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class GateResult:
    """One rule, what was measured (value, 95 % interval) and what follows."""

    name: str
    value: float
    low: float
    high: float
    threshold: float
    verdict: Verdict
    explanation: str

    def as_json(self) -> dict[str, str | float | None]:
        return {
            "name": self.name,
            "value": finite(self.value),
            "low": finite(self.low),
            "high": finite(self.high),
            "threshold": self.threshold,
            "verdict": self.verdict,
            "explanation": self.explanation,
        }


def apply_gates(
    gates: SuiteGates,
    *,
    clip_image_gain: Estimate,
    palette_ratio: Estimate,
    clip_text_loss: Estimate,
) -> list[GateResult]:
    """Judge one column by its three estimates against the base.

    A gate passes when the whole interval is on the good side of the threshold, fails when
    the whole interval is on the bad side, and is inconclusive between. An adapter that
    changes nothing gains exactly 0 and fails, whatever the thresholds.
    """
    return [
        _at_least(
            "clip_image_gain",
            clip_image_gain,
            gates.clip_image_gain,
            "gained in similarity to the references, over the base",
        ),
        _at_most(
            "palette_ratio",
            palette_ratio,
            gates.palette_ratio,
            "of the base's distance to the reference colours",
        ),
        _at_most(
            "clip_text_loss",
            clip_text_loss,
            gates.clip_text_loss,
            "of the base's prompt similarity lost",
        ),
    ]


def passed(results: Sequence[GateResult]) -> bool:
    """All gates pass; inconclusive is not passed."""
    return all(result.verdict == "pass" for result in results)


def _at_least(name: str, e: Estimate, threshold: float, what: str) -> GateResult:
    good, bad = e.low > threshold, e.high <= threshold
    rule = f"all of the interval above {threshold:.3g}"
    return _result(name, e, threshold, good, bad, f"{_spoken(e)} {what}; needs {rule}")


def _at_most(name: str, e: Estimate, threshold: float, what: str) -> GateResult:
    good, bad = e.high <= threshold, e.low > threshold
    rule = f"all of the interval at or below {threshold:.3g}"
    return _result(name, e, threshold, good, bad, f"{_spoken(e)} {what}; needs {rule}")


def _spoken(e: Estimate) -> str:
    return f"{e.value:.3f} (95 % interval {e.low:.3f} to {e.high:.3f})"


def _result(
    name: str, e: Estimate, threshold: float, good: bool, bad: bool, text: str
) -> GateResult:
    verdict: Verdict = "pass" if good else "fail" if bad else "inconclusive"
    if math.isnan(e.value):
        text = "not defined: the base's own mean is not positive, so this encoder cannot judge it"
    elif verdict == "inconclusive":
        text += "; more prompts would narrow it"
    return GateResult(name, e.value, e.low, e.high, threshold, verdict, text)

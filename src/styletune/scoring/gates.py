"""Release gates: a checkpoint passes when all of them pass, on intervals, not on luck.

Distances between distributions (FID, KID) are no gates: at the sizes of a brand's image set
they reward collapse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from styletune.runs.metrics import GATES, METRIC_OF, Gate
from styletune.runs.summary import GateVerdict, Verdict
from styletune.scoring.statistics import Estimate, finite
from styletune.scoring.suite import SuiteGates


def apply_gates(thresholds: SuiteGates, metrics: Mapping[str, Estimate]) -> list[GateVerdict]:
    """Judge one column by its estimates against the base, gate by gate.

    A gate passes when the whole interval is on the good side of the threshold, fails when
    the whole interval is on the bad side, and is inconclusive between. An adapter that
    changes nothing gains exactly 0 and fails, whatever the thresholds.
    """
    return [
        _judge(gate, metrics[gate.metric], float(getattr(thresholds, gate.name))) for gate in GATES
    ]


def _judge(gate: Gate, estimate: Estimate, threshold: float) -> GateVerdict:
    above = estimate.low > threshold
    below = estimate.high <= threshold
    good, bad = (above, below) if gate.side == "above" else (below, above)
    verdict: Verdict = "pass" if good else "fail" if bad else "inconclusive"
    return GateVerdict(
        name=gate.name,
        value=finite(estimate.value),
        low=finite(estimate.low),
        high=finite(estimate.high),
        threshold=threshold,
        verdict=verdict,
        explanation=_explanation(gate, estimate, threshold, verdict),
    )


def _explanation(gate: Gate, estimate: Estimate, threshold: float, verdict: Verdict) -> str:
    if math.isnan(estimate.value):
        return "not defined: the base's own mean is not positive, so this encoder cannot judge it"
    side = "above" if gate.side == "above" else "at or below"
    digits = METRIC_OF[gate.metric].digits
    value, low, high = (
        f"{end:.{digits}f}" for end in (estimate.value, estimate.low, estimate.high)
    )
    text = (
        f"{value} (95 % interval {low} to {high}) "
        f"{gate.phrase}; needs all of the interval {side} {threshold:.3g}"
    )
    return text + ("; more prompts would narrow it" if verdict == "inconclusive" else "")

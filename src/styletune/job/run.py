"""The whole job: train -> score -> publish, each stage skipped when it is done and current."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from styletune.job.job import Job
from styletune.job.publish import publish
from styletune.job.score import score
from styletune.job.train import train
from styletune.planning.preflight import configs_of, require_room
from styletune.runs import Run
from styletune.runs.summary import Summary

if TYPE_CHECKING:
    from styletune.registry.versions import Published


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a job did: ``summary`` without a suite, ``published`` unless asked and passed, is None.

    ``seconds`` by stage.
    """

    run: Run
    summary: Summary | None
    published: Published | None
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The ``run --json`` document: run_dir, chosen, gate, published, seconds."""
        chosen = self.summary.chosen if self.summary else None
        return {
            "run_dir": str(self.run.dir),
            "chosen": chosen.as_json() if chosen else None,
            "gate": ("pass" if chosen.passed else "fail") if chosen else None,
            "published": asdict(self.published) if self.published else None,
            "seconds": self.seconds,
        }


def run_job(job: Job, *, registry: str | None, who: str) -> RunResult:
    """Train, score, and publish when a registry is given and the gates pass.

    Raises as ``train``, ``score`` and ``publish``.
    """
    # All stages at once: nobody wants to hear after hours of training that scoring does not fit.
    require_room(job.workload, configs_of(job.base))
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def finish(stage: str) -> None:
        nonlocal started
        now = time.monotonic()
        seconds[stage], started = round(now - started, 1), now

    train(job)
    finish("train")
    summary = published = None
    if job.suite is not None:
        summary = score(job)
        finish("score")
    if registry is not None and (summary is None or summary.chosen.passed):
        published = publish(job, registry, who)
        finish("publish")
    return RunResult(job.run, summary, published, seconds)

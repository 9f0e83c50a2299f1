"""The whole job: train -> score -> publish, each stage skipped when it is done and current."""

from __future__ import annotations

import time
from typing import Any

from styletune.job.job import Job
from styletune.job.publish import publish
from styletune.job.score import gate_passed, score
from styletune.job.train import train
from styletune.planning.preflight import configs_of, require_room


def run_job(job: Job, *, registry: str | None, who: str) -> dict[str, Any]:
    """Plan is done: train, score, and publish when a registry is given and the gate passes.

    Returns the ``run --json`` document: run_dir, chosen, gate, published, seconds; and the
    summary.
    """
    seconds: dict[str, float] = {}

    def timed(stage: str, started: float) -> None:
        seconds[stage] = round(time.monotonic() - started, 1)

    # All stages at once: nobody wants to hear after hours of training that scoring does not fit.
    require_room(job.workload, configs_of(job.base))
    started = time.monotonic()
    train(job)
    timed("train", started)
    summary: dict[str, Any] | None = None
    if job.suite is not None:
        started = time.monotonic()
        summary, _ = score(job)
        timed("score", started)
    published = None
    if registry is not None and (summary is None or gate_passed(summary)):
        started = time.monotonic()
        published = publish(job, registry, who)
        timed("publish", started)
    return {
        "run_dir": str(job.run.dir),
        "chosen": summary["chosen"] if summary else None,
        "gate": ("pass" if gate_passed(summary) else "fail") if summary else None,
        "published": published,
        "seconds": seconds,
        "summary": summary,
    }

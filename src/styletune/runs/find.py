"""The runs in a folder of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from styletune.errors import StyletuneError
from styletune.runs.documents import RunFacts, read_facts
from styletune.runs.folder import Run
from styletune.runs.summary import Summary, read_summary


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run folder; ``summary`` is None before it is scored."""

    name: str
    id: str
    run: Run
    facts: RunFacts
    summary: Summary | None


@dataclass(frozen=True, slots=True)
class BrokenRun:
    """A run folder whose documents cannot be read, and why."""

    run: Run
    error: StyletuneError


def find_runs(runs_dir: Path) -> tuple[list[RunEntry], list[BrokenRun]]:
    """List the run folders in ``runs_dir``: readable ones and broken ones, each by path.

    A run is ``<name>/<id>``, or a folder of its own that ``--run-dir`` named, with a
    ``run.json``. Hidden folders, such as the cache, are skipped.
    """
    runs: list[RunEntry] = []
    broken: list[BrokenRun] = []
    files = [*runs_dir.glob("*/run.json"), *runs_dir.glob("*/*/run.json")]
    for folder in sorted(file.parent for file in files):
        if any(part.startswith(".") for part in folder.relative_to(runs_dir).parts):
            continue
        run = Run(folder)
        try:
            facts = read_facts(run)
            summary = read_summary(run) if run.summary_file.is_file() else None
        except StyletuneError as error:
            broken.append(BrokenRun(run, error))
        else:
            runs.append(RunEntry(facts.recipe, folder.name, run, facts, summary))
    return runs, broken

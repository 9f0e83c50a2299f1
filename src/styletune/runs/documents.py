"""The facts and the log of a run folder, each with its one reader."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from styletune.errors import IntegrityError
from styletune.runs.folder import Run
from styletune.runs.form import (
    Document,
    HexColor,
    Part,
    parse_document,
    read_document,
    write_document,
)

FIX_FACTS = "restore it from a backup, or train anew with another --run-dir"
FIX_LOG = "restore it from a backup, or delete the line; no other file depends on it"
_VALIDATION = "validation_loss/"


# -- run.json -------------------------------------------------------------------------------------


class BaseFacts(Part):
    """The base model as the recipe names it, SHA-256 of its weights, side in pixels."""

    model: str
    hash: str
    resolution: int


class DeclaredRights(Part):
    """One combination of declared rights ("" is not declared) and its number of images."""

    images: int
    license: str
    holder: str
    source: str
    consent: str


class OptOutOverride(Part):
    """Why images were used whose files prohibit training; images by prohibiting term."""

    override: str
    terms: dict[str, int]


class RightsSummary(Part):
    """Rights of the images, without file names: these may say more than the holders want.

    ``declared`` has most images first; ``lowered`` counts the files of each error that the
    recipe made a warning.
    """

    images: int
    declared: tuple[DeclaredRights, ...]
    opt_out: OptOutOverride | None
    lowered: dict[str, int]

    def holder_names(self, most: int = 3) -> str:
        """Whose images they are, most images first, in words; "" if nobody is declared."""
        names = list(dict.fromkeys(r.holder for r in self.declared if r.holder.strip()))
        rest = len(names) - most
        return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


class DataWarning(Part):
    """A warning of the data check."""

    code: str
    files: tuple[str, ...]
    message: str
    fix: str
    severity: str


class DataFacts(Part):
    """The images of a run by file name, in training order; SHA-256 of set and order."""

    fingerprint: str
    order: str
    train: tuple[str, ...]
    holdout: tuple[str, ...]
    trigger: str
    palette: tuple[HexColor, ...]
    rights: RightsSummary
    warnings: tuple[DataWarning, ...]


class RunFacts(Document):
    """``run.json``: what a run is of, and what it was made with."""

    recipe: str
    recipe_hash: str
    training_hash: str
    seed: int
    base: BaseFacts
    data: DataFacts
    versions: dict[str, str]
    platform: str
    device: str


def read_facts(run: Run) -> RunFacts:
    """Read ``run.json``. Raises NotFound, IntegrityError, or BadInput for a newer form."""
    return read_document(RunFacts, run.facts_file, FIX_FACTS)


def write_facts(run: Run, facts: RunFacts) -> None:
    """Write ``run.json``. Raises OutputError."""
    write_document(run.facts_file, facts)


# -- log.jsonl ------------------------------------------------------------------------------------


class LogLine(Part):
    """One line of ``log.jsonl``, after ``step`` optimizer steps.

    ``grad_norm`` is None after an overflow under fp16 scaling; ``prior_loss`` without prior
    preservation; ``validation_loss``, the mean of ``validation_losses`` by timestep, on most lines.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    images_per_s: float
    prior_loss: float | None = None
    validation_loss: float | None = None
    validation_losses: dict[int, float] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_timesteps(cls, line: Any) -> Any:
        """In the file each timestep is a key of its own, as trackers want it."""
        if not isinstance(line, Mapping) or "validation_losses" in line:
            return line
        timesteps = {
            int(key.removeprefix(_VALIDATION)): value
            for key, value in line.items()
            if key.startswith(_VALIDATION) and key.removeprefix(_VALIDATION).isdigit()
        }
        rest = {k: v for k, v in line.items() if k not in {f"{_VALIDATION}{t}" for t in timesteps}}
        return {**rest, "validation_losses": timesteps}

    def as_json(self) -> dict[str, Any]:
        """The line as the file has it."""
        line = self.model_dump(exclude={"validation_losses"})
        for key in ("prior_loss", "validation_loss"):
            if line[key] is None:
                del line[key]
        return line | {f"{_VALIDATION}{t}": loss for t, loss in self.validation_losses.items()}


def read_log(run: Run) -> tuple[LogLine, ...]:
    """Read ``log.jsonl`` in order; empty before the first line.

    A last line that a kill cut in half does not count: its step is trained again.

    Raises:
        IntegrityError: another line cannot be read; it is named by its number.
    """
    if not run.log_file.is_file():
        return ()
    *whole, rest = run.log_file.read_bytes().split(b"\n")
    lines = [
        parse_document(LogLine, line, f"{run.log_file}, line {number}", FIX_LOG)
        for number, line in enumerate(whole, 1)
    ]
    if rest:
        with contextlib.suppress(IntegrityError):
            lines.append(parse_document(LogLine, rest, str(run.log_file)))
    return tuple(lines)

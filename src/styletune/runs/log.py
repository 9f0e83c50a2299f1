"""``log.jsonl``: the losses of a run, one line per logged step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from styletune.errors import IntegrityError
from styletune.files import output_errors, write_bytes
from styletune.runs.folder import Run
from styletune.runs.form import DocumentPart, parse_document

FIX_LOG = "restore it from a backup, or delete the line; no other file depends on it"
_VALIDATION = "validation_loss/"


class LogLine(DocumentPart):
    """One line of ``log.jsonl``, after ``step`` optimizer steps.

    ``prior_loss`` is None without prior preservation, ``grad_norm`` after an overflow under fp16
    scaling, ``validation_loss`` where it is not measured; it is the mean of
    ``validation_losses``, which are by timestep.
    """

    # A validation loss may be NaN under fp16; Python's JSON writes and reads it.
    model_config = ConfigDict(allow_inf_nan=True)

    step: int
    loss: float
    prior_loss: float | None = None
    learning_rate: float
    grad_norm: float | None
    images_per_s: float
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


def open_log(run: Run, done: int) -> Callable[[LogLine], None]:
    """Keep the lines up to the step that is resumed from; returns what appends a line.

    Raises:
        OutputError: the file cannot be written, now or when a line is appended.
    """
    kept = []
    if run.log_file.is_file():
        for text in run.log_file.read_bytes().splitlines(keepends=True):
            # A line that a kill cut in half is dropped: its step is trained again.
            with contextlib.suppress(IntegrityError):
                if parse_document(LogLine, text, str(run.log_file)).step <= done:
                    kept.append(text.rstrip(b"\n") + b"\n")
    write_bytes(run.log_file, b"".join(kept))

    def append(line: LogLine) -> None:
        with output_errors(run.log_file), run.log_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line.as_json()) + "\n")

    return append

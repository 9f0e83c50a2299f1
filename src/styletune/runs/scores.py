"""``scores/scores.parquet``: every per-image score of a run, in long form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from styletune.errors import IntegrityError, NotFound
from styletune.files import atomic_write
from styletune.runs.folder import Run
from styletune.runs.summary import FIX_SUMMARY

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score of one image; ``palette`` is its distance to all references' colors.

    ``prompt_id`` is ``p00`` and on for the prompts of the choice, ``c00`` and on for those of its
    confirmation.
    """

    checkpoint: str
    strength: float
    prompt_id: str
    seed: int
    metric: str
    value: float
    encoder: str


def write_scores(run: Run, rows: Sequence[ScoreRow]) -> None:
    """Write the rows (zstd), one column per field, whole or not at all. Raises OutputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema())
    with atomic_write(run.scores_file) as stream:
        pq.write_table(table, stream, compression="zstd")


def read_scores(run: Run) -> tuple[ScoreRow, ...]:
    """Read the rows in their order.

    Raises:
        NotFound: the run has not been scored.
        IntegrityError: not a table of these columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not run.scores_file.is_file():
        raise NotFound("not scored yet", where=str(run.scores_file), fix="styletune score first")
    try:
        table = pq.read_table(run.scores_file)
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise IntegrityError(
            f"not readable as parquet: {first_line}", where=str(run.scores_file), fix=FIX_SUMMARY
        ) from None
    if not table.schema.equals(_schema()):
        raise IntegrityError(
            f"columns are {', '.join(table.column_names)}, expected "
            f"{', '.join(field.name for field in fields(ScoreRow))}",
            where=str(run.scores_file),
            fix=FIX_SUMMARY,
        )
    return tuple(ScoreRow(**row) for row in table.to_pylist())


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"str": pa.string(), "float": pa.float64(), "int": pa.int64()}
    return pa.schema([(field.name, types[str(field.type)]) for field in fields(ScoreRow)])

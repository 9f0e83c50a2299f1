"""Rows of JSONL, CSV and parquet files, with the line of each, or why a line is not a row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

MAX_LINE_CHARACTERS = 1 << 20

# Its line (from 1; the last one of a quoted CSV row) and its columns, or what is wrong with it.
Record = tuple[int, dict[str, Any] | str]


def jsonl_records(text: str) -> Iterator[Record]:
    """The JSON objects of a text, one per line; empty lines are skipped."""
    # Not splitlines: it also breaks at separators that JSON strings may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_CHARACTERS:
            yield number, f"a line of more than {MAX_LINE_CHARACTERS} characters"
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not JSON: {error.msg} at column {error.colno}"
            continue
        except RecursionError:
            yield number, "nested too deeply"
            continue
        except ValueError:
            yield number, "a number with too many digits"
            continue
        yield number, row if isinstance(row, dict) else "not a JSON object"


def csv_records(text: str) -> Iterator[Record]:
    """The rows of a CSV text under its header; empty lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Once quoting breaks, errors in later lines are only consequences.
            limit = csv.field_size_limit()
            is_long = "field limit" in str(error)
            what = f"a cell of more than {limit} characters" if is_long else f"not CSV: {error}"
            yield reader.line_num, what
            return
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            for separator in (";", "\t"):
                if len(header) == 1 and separator in header[0]:
                    yield reader.line_num, f"columns separated by {separator!r}: use commas"
                    return
            if len(set(header)) < len(header):
                yield reader.line_num, "a column name appears twice"
                return
        elif len(cells) != len(header):
            yield (
                reader.line_num,
                f"{len(cells)} cells under {len(header)} columns: put texts with commas in "
                "double quotes",
            )
        else:
            yield reader.line_num, dict(zip(header, cells, strict=True))


def parquet_records(content: bytes) -> Iterator[Record]:
    """The rows of a parquet file; lines are row numbers from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield 1, f"not parquet: {error}"

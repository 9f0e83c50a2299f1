"""What is said of an image beside its pixels: caption, rights; and the files that say it.

``metadata.jsonl``, ``.csv`` or ``.parquet`` of a folder name their images by ``file_name``.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from styletune.data.sources.items import Rights

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
RIGHTS_COLUMNS = ("license", "holder", "consent", "source")
KNOWN_COLUMNS = (*RIGHTS_COLUMNS, "machine_caption")

# Message, names of files, fix.
Fault = tuple[str, tuple[str, ...], str]
NOTHING = Rights()


@dataclass(frozen=True, slots=True)
class Words:
    """``text`` is None where there is no caption; rights that are not declared are ""."""

    text: str | None = None
    machine_caption: bool = False
    rights: Rights = NOTHING


@dataclass(slots=True)
class Captions:
    """``listed``: the image of every row, in order; ``words``: what its last row says.

    Names are relative to the data folder, also when the metadata lies in a sub-folder.
    """

    listed: list[str] = field(default_factory=list)
    words: dict[str, Words] = field(default_factory=dict)


class BadRowError(Exception):
    """A row that cannot be used; the text says why."""


def parse_words(row: Mapping[str, Any], text_column: str = "text") -> Words:
    """Caption and rights of a row of JSON, CSV or a table.

    A missing or null text is no caption; missing, null and empty rights are not declared.

    Raises:
        BadRowError: a value of a wrong type, or text that is not Unicode.
    """
    text = row.get(text_column)
    if text is not None and not isinstance(text, str):
        raise BadRowError(f"{text_column} is not a string")
    rights = {column: row.get(column) or "" for column in RIGHTS_COLUMNS}
    for column, value in rights.items():
        if not isinstance(value, str):
            raise BadRowError(f"{column} is not a string")
    for value in (text or "", *rights.values()):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRowError("it holds half of a Unicode character") from None
    declared = Rights(**{column: value.strip() for column, value in rights.items()})
    # One object for all that declare nothing: a set may have a hundred thousand rows.
    return Words(
        text, _truth(row.get("machine_caption")), NOTHING if declared == NOTHING else declared
    )


def _truth(value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False, "": None}.get(
            value.strip().lower(), value
        )
    if value is None:
        return False
    if isinstance(value, bool):
        return value
    raise BadRowError("machine_caption is neither true nor false")


def misspelt_columns(columns: Sequence[str]) -> dict[str, str]:
    """Columns that are nearly called like those that are read, which would be overlooked."""
    return {
        column: close[0]
        for column in columns
        if column not in KNOWN_COLUMNS
        and (close := difflib.get_close_matches(column.lower(), KNOWN_COLUMNS, n=1, cutoff=0.85))
    }


def caption_like(columns: Sequence[str]) -> list[str]:
    """Columns that probably hold captions under another name."""
    usual = ("text", "texts", "caption", "captions", "prompt", "description")
    return [column for column in columns if column.lower() in usual]


def read_metadata(contents: Mapping[str, bytes]) -> tuple[Captions, list[Fault]]:
    """Read metadata files, by their name relative to the data folder.

    A row without a value for ``text`` (JSON null or no key) has no caption; an empty one has an
    empty caption. Columns that are not read are allowed, misspelt ones are not.
    """
    captions, faults = Captions(), list[Fault]()
    folders = [posixpath.dirname(name) for name in contents]
    twice = tuple(n for n in contents if folders.count(posixpath.dirname(n)) > 1)
    if twice:
        faults.append(("several metadata files in one folder", twice, "keep one of them"))
    for name, content in contents.items():
        faults += _read_file(name, content, captions)
    return captions, faults


def _read_file(name: str, content: bytes, captions: Captions) -> list[Fault]:
    if name.endswith(".parquet"):
        reader = _parquet_rows(content)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            return [(f"not UTF-8 text: {name} line {line}", (name,), "save it as UTF-8")]
        reader = _jsonl_rows(text) if name.endswith(".jsonl") else _csv_rows(text)
    bad, rows = list[str](), list[tuple[int, dict[str, Any]]]()
    for line, row in reader:
        if isinstance(row, str):
            bad.append(f"{name} line {line} ({row})")
        else:
            rows.append((line, row))
    if not rows and not bad:
        return [("metadata without rows", (name,), "add a row for every image, or remove it")]
    if rows and (fault := _wrong_columns(name, [row for _, row in rows])):
        return [fault]
    for line, row in rows:
        try:
            _add(captions, posixpath.dirname(name), row)
        except BadRowError as error:
            bad.append(f"{name} line {line} ({error})")
    return [_bad_lines(name, bad)] if bad else []


def _bad_lines(name: str, bad: list[str]) -> Fault:
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    message = f"metadata lines that cannot be read: {', '.join(bad[:5])}{more}"
    return message, (name,), "one row an image with file_name and text"


def _parquet_rows(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Row numbers count from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield 1, f"not parquet: {error}"


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and row, or line number and what is wrong with it."""
    # Not splitlines: it would also break at separators that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not JSON: {error.msg} at column {error.colno}"
            continue
        except RecursionError:
            yield number, "nested too deeply"
            continue
        yield number, row if isinstance(row, dict) else "not a JSON object"


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Where quoting breaks, every later line would only be a consequence.
            yield reader.line_num, f"not CSV: {error}"
            return
        if not cells:
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                yield reader.line_num, "a column name is there twice"
                return
        elif len(cells) != len(header):
            yield reader.line_num, f"{len(cells)} cells under {len(header)} columns"
        else:
            yield reader.line_num, dict(zip(header, cells, strict=True))


def _wrong_columns(name: str, rows: list[dict[str, Any]]) -> Fault | None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    missing = [column for column in ("file_name", "text") if column not in columns]
    # Rights alone are fine where captions lie elsewhere; captions by another name are not.
    if missing == ["text"] and set(columns) & set(KNOWN_COLUMNS) and not caption_like(columns):
        missing = []
    if missing:
        near = {
            column: difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            for column in missing
        }
        if "text" in missing and not near["text"]:
            near["text"] = caption_like(columns)[:1]
        renames = [f'rename "{close[0]}" to "{column}"' for column, close in near.items() if close]
        fix = ", ".join(renames) or "add " + " and ".join(f'"{column}"' for column in missing)
        shown = " and ".join(missing)
        return f"metadata without a column {shown}; columns: {', '.join(columns)}", (name,), fix
    if wrong := misspelt_columns(columns):
        fix = ", ".join(f'rename "{here}" to "{meant}"' for here, meant in wrong.items())
        return f"metadata columns that are not read: {', '.join(wrong)}", (name,), fix
    return None


def _add(captions: Captions, folder: str, row: dict[str, Any]) -> None:
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        raise BadRowError("file_name is not a file name")
    words = parse_words(row)
    image = posixpath.normpath(posixpath.join(folder, file_name))
    if image.startswith(("/", "../")):
        raise BadRowError(f"file_name {file_name} leads out of the folder")
    captions.listed.append(image)
    captions.words[image] = words

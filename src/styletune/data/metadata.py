"""``metadata.jsonl`` and ``metadata.csv``: which caption belongs to which image."""

from __future__ import annotations

import csv
import difflib
import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

# Message, names of files or lines, fix.
Fault = tuple[str, tuple[str, ...], str]


@dataclass(slots=True)
class Captions:
    """``listed``: the image of every row, in order; ``texts``: captions of those that have one.

    Names are relative to the data folder, also when the metadata lies in a sub-folder.
    """

    listed: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


class _BadLineError(Exception):
    """One line that cannot be used; the text says which and why."""


def read_metadata(path: Path, files: Sequence[str]) -> tuple[Captions, list[Fault]]:
    """Read the metadata files among ``files`` (names relative to ``path``).

    A row without a value for ``text`` (JSON null or no key) has no caption; an empty one has an
    empty caption. Other columns are allowed.
    """
    captions, faults = Captions(), list[Fault]()
    files = [name for name in files if PurePosixPath(name).name in METADATA_NAMES]
    folders = [posixpath.dirname(name) for name in files]
    twice = tuple(sorted({folder or "." for folder in folders if folders.count(folder) > 1}))
    if twice:
        faults.append(("metadata.jsonl and metadata.csv in one folder", twice, "keep one of them"))
    for name in files:
        faults += _read_file(path, name, captions)
    return captions, faults


def _read_file(path: Path, name: str, captions: Captions) -> list[Fault]:
    try:
        text = (path / name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return [("not UTF-8 text", (f"{name} line {line}",), "save it as UTF-8")]
    except OSError as error:
        return [(f"cannot be read ({error.strerror})", (name,), "check its permissions")]
    bad, rows = list[str](), list[tuple[int, dict[str, Any]]]()
    reader = _jsonl_rows(text) if name.endswith(".jsonl") else _csv_rows(text)
    for line, row in reader:
        if isinstance(row, str):
            bad.append(f"{name} line {line} ({row})")
        else:
            rows.append((line, row))
    if not rows and not bad:
        return [("metadata without rows", (name,), "add a row for every image, or remove it")]
    if rows and (fault := _missing_columns(name, [row for _, row in rows])):
        return [fault]
    for line, row in rows:
        try:
            _add(captions, posixpath.dirname(name), row)
        except _BadLineError as error:
            bad.append(f"{name} line {line} ({error})")
    fix = "one row an image with file_name and text"
    return [("metadata lines that cannot be read", tuple(bad), fix)] if bad else []


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


def _missing_columns(name: str, rows: list[dict[str, Any]]) -> Fault | None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    missing = [column for column in ("file_name", "text") if column not in columns]
    if not missing:
        return None
    near = {
        column: difflib.get_close_matches(column, columns, n=1, cutoff=0.5) for column in missing
    }
    renames = [f'rename "{close[0]}" to "{column}"' for column, close in near.items() if close]
    fix = ", ".join(renames) or "add " + " and ".join(f'"{column}"' for column in missing)
    shown = " and ".join(missing)
    return f"metadata without a column {shown}; columns: {', '.join(columns)}", (name,), fix


def _add(captions: Captions, folder: str, row: dict[str, Any]) -> None:
    file_name, text = row.get("file_name"), row.get("text")
    if not isinstance(file_name, str) or not file_name.strip():
        raise _BadLineError("file_name is not a file name")
    if text is not None and not isinstance(text, str):
        raise _BadLineError("text is not a string")
    image = posixpath.normpath(posixpath.join(folder, file_name))
    if image.startswith(("/", "../")):
        raise _BadLineError(f"file_name {file_name} leads out of the folder")
    captions.listed.append(image)
    if text is not None:
        captions.texts[image] = text

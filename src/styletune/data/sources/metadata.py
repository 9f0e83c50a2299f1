"""Captions and rights of images, and the metadata files that contain them.

``metadata.jsonl``, ``.csv`` or ``.parquet`` in a folder name their images by ``file_name``.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from styletune.data.findings import shorten
from styletune.data.sources.items import RIGHTS_COLUMNS, Rights
from styletune.data.sources.records import csv_records, jsonl_records, parquet_records
from styletune.text import control_problem, decode_text

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
KNOWN_COLUMNS = (*RIGHTS_COLUMNS, "machine_caption")

# Of a caption or a right: CLIP reads some 400 characters, a license's own text is a link.
MAX_CHARACTERS = 10_000
# Lines that are named one by one before reading stops.
MAX_BAD_LINES = 100
MAX_ROWS = 1_000_000

# Message, file names, fix.
MetadataProblem = tuple[str, tuple[str, ...], str]
UNDECLARED = Rights()


@dataclass(frozen=True, slots=True)
class Words:
    """``text`` is None if there is no caption; undeclared rights are ""."""

    text: str | None = None
    machine_caption: bool = False
    rights: Rights = UNDECLARED


@dataclass(slots=True)
class Captions:
    """``listed``: the image of every row, in order; ``words``: from its last row.

    Names are relative to the data folder, even if the metadata is in a subfolder.
    """

    listed: list[str] = field(default_factory=list)
    words: dict[str, Words] = field(default_factory=dict)


class BadRowError(Exception):
    """A row that cannot be used; the message says why."""


def parse_words(row: Mapping[str, Any], text_column: str = "text") -> Words:
    """Caption and rights of a row of JSON, CSV or a table.

    A missing or null text is no caption; missing, null and empty rights are undeclared.

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
        checked_text(value)
    declared = Rights(**{column: value.strip() for column, value in rights.items()})
    # One object for all rows without rights: a set may have a hundred thousand.
    return Words(
        text, _truth(row.get("machine_caption")), UNDECLARED if declared == UNDECLARED else declared
    )


def checked_text(text: str) -> str:
    """The text, if it can be a caption. Raises BadRowError."""
    if len(text) > MAX_CHARACTERS:
        raise BadRowError(f"a text of {len(text)} characters; {MAX_CHARACTERS} are the most")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRowError("it contains half of a Unicode character") from None
    if problem := control_problem(text):
        raise BadRowError(problem)
    return text


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


def misspelled_columns(columns: Sequence[str]) -> dict[str, str]:
    """Columns whose names are nearly those that are read, with the right name."""
    return {
        column: close[0]
        for column in columns
        if column not in KNOWN_COLUMNS
        and (
            close := difflib.get_close_matches(column[:80].lower(), KNOWN_COLUMNS, n=1, cutoff=0.85)
        )
    }


def caption_like(columns: Sequence[str]) -> list[str]:
    """Columns that probably contain captions under another name."""
    usual = ("text", "texts", "caption", "captions", "prompt", "description")
    return [column for column in columns if column.lower() in usual]


def read_metadata(contents: Mapping[str, bytes]) -> tuple[Captions, list[MetadataProblem]]:
    """Read metadata files, by their name relative to the data folder.

    A row without a value for ``text`` (JSON null or no key) has no caption; an empty text is an
    empty caption. Other columns are allowed, misspelled ones are not.
    """
    captions = Captions()
    problems: list[MetadataProblem] = []
    folders = [posixpath.dirname(name) for name in contents]
    twice = tuple(n for n in contents if folders.count(posixpath.dirname(n)) > 1)
    if twice:
        problems.append(("several metadata files in one folder", twice, "keep one of them"))
    for name, content in contents.items():
        problems += _read_file(name, content, captions)
    return captions, problems


def _read_file(name: str, content: bytes, captions: Captions) -> list[MetadataProblem]:
    if name.endswith(".parquet"):
        records = parquet_records(content)
    else:
        try:
            text = decode_text(content)
        except ValueError as error:
            return [(f"{name} {error}", (name,), "save it as plain UTF-8 text")]
        records = jsonl_records(text) if name.endswith(".jsonl") else csv_records(text)
    bad: list[str] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    for line, row in records:
        if isinstance(row, str):
            bad.append(f"{name} line {line} ({row})")
        else:
            rows.append((line, row))
        if len(bad) >= MAX_BAD_LINES or len(rows) > MAX_ROWS:
            break
    if len(rows) > MAX_ROWS:
        return [(f"{name}: more than {MAX_ROWS} rows", (name,), "split the set")]
    if not rows and not bad:
        return [("metadata without rows", (name,), "add a row for every image, or remove it")]
    if rows and (problem := _wrong_columns(name, [row for _, row in rows])):
        return [problem]
    for line, row in rows:
        try:
            _add(captions, posixpath.dirname(name), row)
        except BadRowError as error:
            bad.append(f"{name} line {line} ({error})")
            if len(bad) >= MAX_BAD_LINES:
                break
    return [_bad_lines(name, bad)] if bad else []


def _bad_lines(name: str, bad: list[str]) -> MetadataProblem:
    message = f"metadata lines that cannot be read: {shorten(bad)}"
    return message, (name,), "write one row per image with file_name and text"


def _wrong_columns(name: str, rows: list[dict[str, Any]]) -> MetadataProblem | None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    missing = [column for column in ("file_name", "text") if column not in columns]
    # Rights alone are fine if captions are elsewhere; captions under another name are not.
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
        listed = " and ".join(missing)
        return f"metadata without a column {listed}; columns: {', '.join(columns)}", (name,), fix
    if wrong := misspelled_columns(columns):
        fix = ", ".join(f'rename "{here}" to "{meant}"' for here, meant in wrong.items())
        return f"metadata columns with unknown names: {', '.join(wrong)}", (name,), fix
    return None


def _add(captions: Captions, folder: str, row: dict[str, Any]) -> None:
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        raise BadRowError("file_name is not a file name")
    words = parse_words(row)
    if file_name.startswith("/"):
        raise BadRowError(f"file_name {file_name} is absolute; it is relative to this file")
    image = posixpath.normpath(posixpath.join(folder, file_name))
    if image.startswith(("/", "../")):
        raise BadRowError(f"file_name {file_name} points outside the folder")
    captions.listed.append(image)
    captions.words[image] = words

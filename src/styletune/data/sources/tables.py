"""Images in parquet and Arrow files, in the Hugging Face layout; never a whole table in memory.

The image column contains encoded files: binary, or a struct with ``bytes`` (and ``path``).
"""

from __future__ import annotations

import difflib
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.data.findings import Finding, bad_archive, finding, printable, shorten
from styletune.data.sources.metadata import (
    KNOWN_COLUMNS,
    BadRowError,
    Words,
    caption_like,
    misspelled_columns,
    parse_words,
)
from styletune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# A row group is read whole for the images in it, and two are kept in memory.
MAX_GROUP_BYTES = 512 << 20
_loading = threading.Lock()


def list_table(
    path: Path, *, image_column: str, caption_column: str
) -> tuple[list[tuple[str, str, Words]], list[Finding]]:
    """Rows of a table in order, without reading its images.

    Returns:
        (name, member, words) of each row, and what is wrong; there may be no rows then. A name is
        the row's number and, if stored, the image's own name.
    """
    import pyarrow as pa

    try:
        schema = _schema(path)
        if problems := _column_findings(path, schema, image_column, caption_column):
            return [], problems
        rows: list[tuple[str, str, Words]] = []
        bad: list[str] = []
        for number, (member, row) in enumerate(_rows(path, schema, image_column, caption_column)):
            try:
                words = parse_words(row, caption_column)
            except BadRowError as error:
                bad.append(f"row {number} ({error})")
                continue
            rows.append((_row_name(number, row.get(image_column)), member, words))
    except (pa.ArrowException, OSError, ValueError) as error:
        fix = "write or download it again"
        return [], [bad_archive(path, f"not a readable table ({error})", [], fix)]
    except _TooLargeError as error:
        fix = "write it with smaller row groups (pyarrow: row_group_size=100)"
        return [], [bad_archive(path, str(error), [], fix)]
    if not bad:
        return rows, []
    message = f"rows that cannot be read: {shorten(bad)}"
    return rows, [finding("bad-metadata", (path.name,), message, "correct them")]


class _TooLargeError(Exception):
    """A row group that does not fit into memory."""


def _row_name(number: int, image: object) -> str:
    stored = image.get("path") if isinstance(image, Mapping) else None
    name = posixpath.basename(printable(stored).replace("\\", "/")) if stored else ""
    return f"{number:06d}-{name}" if name else f"{number:06d}"


def _schema(path: Path) -> pa.Schema:
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        return pq.read_schema(path)
    return _batches(path)[0].schema


def _column_findings(
    path: Path, schema: pa.Schema, image_column: str, caption_column: str
) -> list[Finding]:
    import pyarrow as pa

    names = list(schema.names)
    listed = f"columns: {', '.join(names)}"
    findings = []
    if image_column not in names:
        near = difflib.get_close_matches(image_column, names, n=1, cutoff=0.4)
        image_like = [n for n in names if _contains_images(schema.field(n).type)]
        meant = image_like[:1] or near
        column = f'"{meant[0]}"' if meant else "the column of the images"
        fix = f"[[data.sources]] with image_column = {column}"
        findings.append(bad_archive(path, f"no column {image_column}; {listed}", [], fix))
    elif not _contains_images(schema.field(image_column).type):
        kind = schema.field(image_column).type
        what = f"column {image_column} contains {kind}, not encoded images"
        fix = "store the bytes of each image's file: binary, or a struct with bytes"
        findings.append(bad_archive(path, what, [], fix))

    def bad_metadata(message: str, fix: str) -> None:
        findings.append(finding("bad-metadata", (path.name,), message, fix))

    meant = caption_like(names)
    if caption_column not in names and (meant or caption_column != "text"):
        column = f'"{meant[0]}"' if meant else "the column of the captions"
        fix = f"[[data.sources]] with caption_column = {column}"
        bad_metadata(f"no column {caption_column}; {listed}", fix)
    elif caption_column in names and pa.types.is_nested(schema.field(caption_column).type):
        kind = schema.field(caption_column).type
        bad_metadata(
            f"column {caption_column} contains {kind}, not text", "write one caption per row"
        )
    if wrong := misspelled_columns(names):
        fix = ", ".join(f'rename "{here}" to "{right}"' for here, right in wrong.items())
        bad_metadata(f"columns with unknown names: {', '.join(wrong)}", fix)
    if len(set(names)) < len(names):
        bad_metadata("a column name appears twice", "keep one of them")
    return findings


def _contains_images(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _contains_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _rows(
    path: Path, schema: pa.Schema, image_column: str, caption_column: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Member and the columns without pixels; of the image only its stored path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = schema.field(image_column).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    read = [c for c in schema.names if c in (caption_column, *KNOWN_COLUMNS)]
    if path.suffix.lower() != ".parquet":
        for number, batch in enumerate(_batches(path)):
            columns = {name: batch.column(name).to_pylist() for name in read}
            if has_path:
                stored = batch.column(image_column).field("path").to_pylist()
                columns[image_column] = [{"path": name} for name in stored]
            for row in range(batch.num_rows):
                values = {name: column[row] for name, column in columns.items()}
                yield f"{number}:{row}:{image_column}", values
        return
    with pq.ParquetFile(path) as table:
        leaves = read + ([f"{image_column}.path"] if has_path else [])
        for group in range(table.metadata.num_row_groups):
            _refuse_large(table.metadata.row_group(group), group, image_column)
            if not leaves:
                rows = table.metadata.row_group(group).num_rows
                yield from ((f"{group}:{row}:{image_column}", {}) for row in range(rows))
                continue
            row = 0
            for batch in table.iter_batches(row_groups=[group], columns=leaves):
                for values in batch.to_pylist():
                    yield f"{group}:{row}:{image_column}", values
                    row += 1


def _refuse_large(group: Any, number: int, image_column: str) -> None:
    chunks = [group.column(i) for i in range(group.num_columns)]
    size = sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] == image_column
    )
    if size > MAX_GROUP_BYTES:
        raise _TooLargeError(
            f"row group {number} contains {size >> 20} MiB of images, more than "
            f"{MAX_GROUP_BYTES >> 20} MiB"
        )


def read_table_row(path: Path, member: str) -> bytes:
    """The encoded image of a row, "group:row:column" as ``list_table`` gave it.

    Thread-safe. A parquet row group is read once for its neighbors too.

    Raises:
        DataError: the table is not there, damaged or changed, or the row contains no image.
    """
    import pyarrow as pa

    group, row, column = member.split(":", 2)
    where = f"{path} row {group}:{row}"
    try:
        # One thread reads a group, the others reuse it.
        with _loading:
            state = path.stat()
            key = (path, state.st_mtime_ns, state.st_size, os.getpid())
            images = (
                _row_group(*key, int(group), column)
                if path.suffix.lower() == ".parquet"
                else _open_arrow(*key)[int(group)].column(column)
            )
        value = images[int(row)].as_py()
    except (pa.ArrowException, OSError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"cannot be read from the table: {error}", where=where) from None
    content = value.get("bytes") if isinstance(value, dict) else value
    if not content:
        raise DataError(
            "the row contains no image",
            where=where,
            fix="store the bytes of its file, not its path",
        )
    return bytes(content)


@lru_cache(maxsize=2)
def _row_group(
    path: Path,
    mtime_ns: int,  # noqa: ARG001
    size: int,  # noqa: ARG001
    process: int,  # noqa: ARG001
    group: int,
    column: str,
) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        # The bytes alone where the column is a struct: "image" also selects "image.bytes".
        return table.read_row_group(group, columns=[column], use_threads=False).column(column)


def _batches(path: Path) -> list[pa.RecordBatch]:
    state = path.stat()
    return _open_arrow(path, state.st_mtime_ns, state.st_size, os.getpid())


@lru_cache(maxsize=4)
def _open_arrow(path: Path, mtime_ns: int, size: int, process: int) -> list[pa.RecordBatch]:  # noqa: ARG001
    """Record batches over the mapped file: images stay on disk until they are used."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        table = pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        table = pa.ipc.open_stream(source).read_all()
    # Wrong offsets in a file would let a reader leave its memory.
    table.validate(full=True)
    batches: list[pa.RecordBatch] = table.to_batches()
    if not batches:
        raise ValueError("it has no rows")
    return batches

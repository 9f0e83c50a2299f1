"""Images in parquet and Arrow files, in the Hugging Face layout; never a whole table in memory.

The image column contains encoded files: binary, or a struct with ``bytes`` (and ``path``).
"""

from __future__ import annotations

import difflib
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.data.findings import Finding, bad_archive, finding, printable, shorten
from styletune.data.sources.metadata import (
    KNOWN_COLUMNS,
    MAX_ROWS,
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
MAX_GROUP_BYTES = 256 << 20
MAX_TEXT_GROUP_BYTES = 64 << 20
# Of a text; ``checked_text`` then counts its characters.
MAX_CELL_BYTES = 1 << 20
_BATCH_ROWS = 4096
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

    names = list(schema.names)
    listed = f"columns: {', '.join(names)}"
    findings = []
    if len(set(names)) < len(names):
        twice = ", ".join(dict.fromkeys(n for n in names if names.count(n) > 1))
        message = f"columns that appear twice: {twice}"
        return [finding("bad-metadata", (path.name,), message, "keep one of each")]
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
    for column in dict.fromkeys((caption_column, *KNOWN_COLUMNS)):
        if names.count(column) == 1 and not _is_text(schema.field(column).type, column):
            kind = schema.field(column).type
            bad_metadata(f"column {column} contains {kind}, not text", "write one text per row")
    if wrong := misspelled_columns(names):
        fix = ", ".join(f'rename "{here}" to "{right}"' for here, right in wrong.items())
        bad_metadata(f"columns with unknown names: {', '.join(wrong)}", fix)
    return findings


def _is_text(kind: pa.DataType, column: str) -> bool:
    """Whether a column holds texts; ``machine_caption`` may also hold truth values."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    return bool(texts or (column == "machine_caption" and pa.types.is_boolean(kind)))


def _contains_images(kind: pa.DataType) -> bool:
    """Whether a type is encoded files: binary, or a struct with binary ``bytes`` and a ``path``."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        content, path = kind.get_field_index("bytes"), kind.get_field_index("path")
        if path >= 0 and not _is_text(kind.field(path).type, "path"):
            return False
        return content >= 0 and _is_binary(kind.field(content).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

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
    leaves = read + ([f"{image_column}.path"] if has_path else [])
    # As dictionaries: a value that stands in every row is there once.
    with pq.ParquetFile(path, read_dictionary=leaves) as table:
        if table.metadata.num_rows > MAX_ROWS:
            raise _TooLargeError(f"it has {table.metadata.num_rows} rows, more than {MAX_ROWS}")
        for group in range(table.metadata.num_row_groups):
            _refuse_large(table.metadata.row_group(group), group, image_column, read)
            if not leaves:
                rows = table.metadata.row_group(group).num_rows
                yield from ((f"{group}:{row}:{image_column}", {}) for row in range(rows))
                continue
            row = 0
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=leaves):
                _refuse_long_texts(batch, group)
                for values in batch.to_pylist():
                    yield f"{group}:{row}:{image_column}", values
                    row += 1


def _refuse_large(group: Any, number: int, image_column: str, texts: Sequence[str]) -> None:
    for i in range(group.num_columns):
        chunk = group.column(i)
        name, size = chunk.path_in_schema.split(".")[0], chunk.total_uncompressed_size
        limit = MAX_GROUP_BYTES if name == image_column else MAX_TEXT_GROUP_BYTES
        if size > limit and name in (image_column, *texts):
            raise _TooLargeError(
                f"row group {number} contains {size >> 20} MiB of {name}, more than "
                f"{limit >> 20} MiB"
            )


def _refuse_long_texts(batch: pa.RecordBatch, group: int) -> None:
    """Before texts become Python's: one dictionary value may stand in every row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            longest = pc.max(pc.binary_length(values)).as_py() or 0
            if longest > MAX_CELL_BYTES:
                raise _TooLargeError(f"row group {group} has a {name} of {longest} bytes")


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
    _refuse_compressed(source)
    try:
        table = pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        table = pa.ipc.open_stream(source).read_all()
    # Wrong offsets in a file would let a reader leave its memory.
    table.validate(full=True)
    if table.num_rows > MAX_ROWS:
        raise ValueError(f"it has {table.num_rows} rows, more than {MAX_ROWS}")
    batches: list[pa.RecordBatch] = table.to_batches()
    if not batches:
        raise ValueError("it has no rows")
    return batches


def _refuse_compressed(source: pa.MemoryMappedFile) -> None:
    """Raise ValueError for compressed batches, which would be unpacked whole. Leaves it at 0."""
    import pyarrow as pa

    start = source.read(8)
    # The file format is the stream format between two marks.
    source.seek(8 if start.startswith(b"ARROW1") else 0)
    messages = pa.ipc.MessageReader.open_stream(source)
    try:
        while True:
            message = messages.read_next_message()
            if _is_compressed(message.type, message.metadata.to_pybytes()):
                raise ValueError("its batches are compressed; write it without compression")
    except StopIteration:
        source.seek(0)


def _is_compressed(kind: str, message: bytes) -> bool:
    """Whether the metadata of batches or dictionaries (Message.fbs) name a compression."""
    if kind not in ("record batch", "dictionary"):
        return False

    def at(place: int, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(message[place : place + size], "little", signed=signed)

    def field(table: int, number: int) -> int:
        vtable = table - at(table, 4, signed=True)
        entry = 4 + 2 * number
        offset = at(vtable + entry, 2) if entry < at(vtable, 2) else 0
        return table + offset if offset else 0

    def table(table: int, number: int) -> int:
        place = field(table, number)
        return place + at(place, 4) if place else 0

    batch = table(at(0, 4), 2)
    if kind == "dictionary":
        batch = table(batch, 1)
    return bool(batch and field(batch, 3))

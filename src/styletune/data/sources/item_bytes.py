"""The bytes of one image, from a file, an archive or a table."""

from __future__ import annotations

from pathlib import Path

from styletune.data.sources.archives import MAX_MEMBER_BYTES, read_tar, read_zip
from styletune.data.sources.tables import read_table_row


def read_item(path: str, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> Path | bytes:
    """The path of a plain file, the bytes of anything else; for ``Item.path`` and ``.member``.

    Thread-safe. Costs a decompression (zip), a seek (tar), or its share of reading a row group
    once (parquet).

    Raises:
        DataError: the archive or table changed, is damaged, or the member is too large.
    """
    file = Path(path)
    if not member:
        return file
    match file.suffix.lower():
        case ".zip":
            return read_zip(file, member, max_bytes)
        case ".tar":
            return read_tar(file, member, max_bytes)
        case _:
            return read_table_row(file, member)

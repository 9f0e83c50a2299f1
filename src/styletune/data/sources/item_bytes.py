"""The bytes of one image, from a file, an archive or a table."""

from __future__ import annotations

from pathlib import Path

from styletune.data.sources.archives import ARCHIVES, MAX_MEMBER_BYTES, read_member
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
    if file.suffix.lower() in ARCHIVES:
        return read_member(file, member, max_bytes)
    return read_table_row(file, member)

"""The bytes of one image, wherever they lie."""

from __future__ import annotations

from pathlib import Path

from styletune.data.sources.archives import MAX_MEMBER_BYTES, read_tar, read_zip
from styletune.data.sources.tables import read_row


def read_item(path: str, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> Path | bytes:
    """A plain file as its path, anything else as its bytes; for ``Item.path`` and ``.member``.

    Safe in several threads; costs a decompression (zip), a seek (tar), or its share of reading
    a row group once (parquet).

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
            return read_row(file, member)

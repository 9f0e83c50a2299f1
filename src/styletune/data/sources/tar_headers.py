"""A tar's headers, walked once in linear time before the standard library reads them.

``tarfile`` of the Pythons in use recurses for every extended header, takes quadratic time for
some (CVE-2024-6232) and never ends on a negative size (CVE-2025-8194).
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_BLOCK = 512
# Long names and times of one member; nobody needs more.
MAX_EXTENDED_BYTES = 1 << 20
MAX_EXTENDED_IN_A_ROW = 16
_MOST_DIGITS = 12
_PAX, _GNU_LONG = (b"x", b"g", b"X"), (b"L", b"K")
# Types of members whose size stands for no content: links, devices, folders, pipes.
_WITHOUT_CONTENT = b"123456"


def header_problem(path: Path) -> str:
    """What makes a tar's headers unsafe to read; "" for nothing.

    Damage that only ends the listing early is left to the reader. Raises OSError.
    """
    with path.open("rb") as stream:
        in_a_row, size_override = 0, -1
        while len(block := stream.read(_BLOCK)) == _BLOCK and any(block):
            size, kind = _size(block[124:136]), block[156:157]
            if size is None:
                return ""
            if size < 0:
                return "a negative size in a header"
            if kind in (*_PAX, *_GNU_LONG):
                in_a_row += 1
                if size > MAX_EXTENDED_BYTES or in_a_row > MAX_EXTENDED_IN_A_ROW:
                    return "extended headers that are too long or too many"
                if kind in _GNU_LONG:
                    _skip(stream, size)
                    continue
                found = _pax_size(stream.read(size))
                if found is None:
                    return "an extended header that is damaged"
                size_override = max(size_override, found)
                _skip_padding(stream, size)
                continue
            if size_override >= 0:
                size = size_override
            in_a_row, size_override = 0, -1
            if kind not in (_WITHOUT_CONTENT[i : i + 1] for i in range(len(_WITHOUT_CONTENT))):
                _skip(stream, size)
    return ""


def _size(field: bytes) -> int | None:
    """A number of a header; None if it is none."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") * (
            -1 if field[0] == 0xFF else 1
        )
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return None


def _pax_size(content: bytes) -> int | None:
    """The size that pax records set for the next member, -1 without one; None if damaged.

    A record is "<length> <key>=<value>\\n", its length in decimal and of all of it.
    """
    size, place = -1, 0
    while place < len(content) and content[place]:
        space = content.find(b" ", place, place + _MOST_DIGITS)
        digits = content[place:space] if space > 0 else b""
        if not digits.isdigit():
            return None
        end = place + int(digits)
        record = content[space + 1 : end]
        if end > len(content) or end <= space or not record.endswith(b"\n"):
            return None
        key, _, value = record[:-1].partition(b"=")
        if key == b"size":
            if not value.isdigit() or len(value) > _MOST_DIGITS:
                return None
            size = int(value)
        place = end
    return size


def _skip(stream: BinaryIO, size: int) -> None:
    stream.seek(-(-size // _BLOCK) * _BLOCK, 1)


def _skip_padding(stream: BinaryIO, size: int) -> None:
    stream.seek(-size % _BLOCK, 1)

"""Weight files before anything heavy is loaded: whether they are whole, and their hashes.

A safetensors file starts with the length of its header (8 bytes, little endian) and the header,
JSON with dtype, shape and byte range of every tensor; the ranges fill the rest without gaps.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from styletune.errors import BaseModelError, OutputError
from styletune.files import file_sha256, write_json
from styletune.places import user_cache_dir

_HEADER_LIMIT_BYTES = 100_000_000  # the format's own
_LFS_POINTER = b"version https://git-lfs"
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
FETCH_AGAIN = "fetch it again, or copy it again from where it came from"
CACHED_FROM_BYTES = 64 << 20  # a smaller file is hashed in less time than it takes to look it up


@dataclass(frozen=True, slots=True)
class Header:
    """``shapes`` by tensor name, and the file's string metadata."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(file: Path, where: str) -> Header:
    """Read a safetensors header and check it against the file's size.

    Raises:
        BaseModelError: the file is no safetensors file, or is cut off or too long.
    """
    if file.suffix in PICKLE_SUFFIXES:
        raise BaseModelError(
            f"{file.name} is a pickle, which can run code when it is opened",
            where=where,
            fix="use the model's .safetensors file",
        )
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(64)
            length = int.from_bytes(start[:8], "little")
            plausible = 2 <= length <= min(size - 8, _HEADER_LIMIT_BYTES)
            stream.seek(8)
            text = stream.read(length) if plausible else b""
    except OSError as error:
        raise BaseModelError(f"{file} cannot be read: {error}", where=where) from None
    if start.startswith(_LFS_POINTER):
        raise BaseModelError(
            f"{file} is a git-lfs pointer, not the weights", where=where, fix="git lfs pull"
        )
    if not plausible and size >= 8 and 2 <= length <= _HEADER_LIMIT_BYTES:
        raise BaseModelError(
            f"{file} is cut off in its header, after {size:,} bytes", where=where, fix=FETCH_AGAIN
        )
    header, end = _parse(text, file, where)
    if 8 + length + end != size:
        kind = "cut off" if size < 8 + length + end else "too long"
        raise BaseModelError(
            f"{file} is {kind}: it has {size:,} bytes, its header says {8 + length + end:,}",
            where=where,
            fix=FETCH_AGAIN,
        )
    return header


def _parse(text: bytes, file: Path, where: str) -> tuple[Header, int]:
    """The header, and where its last tensor ends."""
    try:
        tree: dict[str, dict[str, Any]] = json.loads(text)
        metadata = tree.pop("__metadata__", {})
        ranges = sorted((int(a), int(b)) for a, b in (t["data_offsets"] for t in tree.values()))
        shapes = {k: tuple(int(n) for n in t["shape"]) for k, t in tree.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BaseModelError(
            f"{file} is not a safetensors file", where=where, fix=FETCH_AGAIN
        ) from None
    end = 0
    for first, last in ranges:
        if first != end or last < first:
            raise BaseModelError(
                f"{file} has a damaged header: its tensors overlap or leave gaps",
                where=where,
                fix=FETCH_AGAIN,
            )
        end = last
    return Header(shapes, {str(k): str(v) for k, v in metadata.items()}), end


def cached_sha256(file: Path, where: str, cached_from_bytes: int = CACHED_FROM_BYTES) -> str:
    """SHA-256 (hex) of a weight file, remembered between commands.

    A hash is reused while path, size, modification time (ns) and inode are the same. It is kept in
    ``file-hashes.json`` in the user's cache folder; when that cannot be read or written, hashes
    are computed each time.

    Raises:
        BaseModelError: the file cannot be read.
    """
    try:
        path = file.resolve()
        stat = path.stat()
        if stat.st_size < cached_from_bytes:
            return file_sha256(path)
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        cache_dir = user_cache_dir()
        store = None if cache_dir is None else cache_dir / "file-hashes.json"
        known = _read_store(store).get(str(path))
        if known is not None and known[:3] == mark:
            return str(known[3])
        digest = file_sha256(path)
        after = path.stat()
    except OSError as error:
        raise BaseModelError(f"{file} cannot be read: {error}", where=where) from None
    # A file that is still being written may change again within the clock's resolution.
    settled = time.time_ns() - after.st_mtime_ns > 2_000_000_000
    if store and settled and [after.st_size, after.st_mtime_ns, after.st_ino] == mark:
        entries = {k: v for k, v in _read_store(store).items() if Path(k).is_file()}
        with contextlib.suppress(OutputError):
            write_json(store, {**entries, str(path): [*mark, digest]})
    return digest


def _read_store(store: Path | None) -> dict[str, list[Any]]:
    """The remembered hashes; anything unreadable or of another form counts as forgotten."""
    if store is None:
        return {}
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        k: v
        for k, v in content.items()
        if isinstance(v, list) and len(v) == 4 and isinstance(v[3], str) and len(v[3]) == 64
    }

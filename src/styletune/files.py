"""Files, written whole: to a temporary name in the same folder, flushed and renamed.

A reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from styletune.errors import IntegrityError, NotFound, OutputError
from styletune.places import describe_write_error


@contextlib.contextmanager
def output_errors(
    path: Path, fix: str = "free some space, or choose another place to write to"
) -> Iterator[None]:
    """Turn a full disk or a read-only place into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        # Some libraries wrap the number away and leave only the text.
        reason = describe_write_error(error.errno) or str(error)
        raise OutputError(
            f"cannot write: {reason}",
            where=str(path),
            fix=fix,
        ) from error


def make_dir(path: Path) -> Path:
    """Create a folder and its parents. Raises OutputError."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def require_writable(path: Path, fix: str) -> Path:
    """The folder at ``path``, or the nearest above it that is there, if it can be written to.

    Raises:
        OutputError: no permission, or a part of the path is a file.
    """
    path = path.absolute()
    place = next(p for p in (path, *path.parents) if p.exists())
    if not place.is_dir():
        raise OutputError("cannot write: a part of the path is a file", where=str(place), fix=fix)
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError("cannot write: no permission to write", where=str(place), fix=fix)
    return place


def require_space(folder: Path, size_bytes: int, fix: str) -> None:
    """Refuse to start a write that the disk has no room for. Raises OutputError."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes * 1.05 + 2**20:
        raise OutputError(
            f"no space for a checkpoint of {size_bytes / 1e6:.1f} MB: {free / 1e6:.1f} MB are free",
            where=str(folder),
            fix=fix,
        )


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbor of ``path`` for writing; rename it when all went well."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file. Raises OutputError."""
    with atomic_write(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole file as UTF-8. Raises OutputError."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write canonical, readable JSON (NaN is refused: it is not JSON)."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON that we wrote. Raises NotFound or IntegrityError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path)) from None
    except RecursionError:
        raise IntegrityError("not readable as JSON: nested too deeply", where=str(path)) from None
    except ValueError as error:  # also bytes that are no text, and numbers without end
        raise IntegrityError(f"not readable as JSON: {error}", where=str(path)) from None


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

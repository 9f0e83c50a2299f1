"""Counts of bytes and FLOPs, kept between commands: shapes decide them, so they never change.

Measuring full-size models takes ten seconds of CPU, and imports what nothing else of a plan needs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from styletune.errors import StyletuneError
from styletune.files import read_json, write_json
from styletune.places import user_cache_dir

_T = TypeVar("_T")
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")
# What the numbers depend on besides the libraries: an edit of these files forgets them.
_SOURCES = ("planning/me*.py", "adapters/inject.py", "models/*.py")


def kept(
    name: str, key: tuple[object, ...], compute: Callable[[], Any], read: Callable[[Any], _T]
) -> _T:
    """A count from the user's cache folder, or computed and kept there.

    Args:
        name: of what is counted.
        key: everything that it depends on, by its ``repr``.
        compute: counts it; the value is one that JSON can hold.
        read: turns what was counted, or what JSON gives back of it, into the value.

    Raises:
        as ``compute``; a cache that cannot be read or written is none.
    """
    digest = hashlib.sha256(repr((name, key, _software())).encode()).hexdigest()
    folder = user_cache_dir()
    if folder is None:
        return read(compute())
    file = folder / "counts" / f"{digest[:32]}.json"
    with contextlib.suppress(StyletuneError, OSError, KeyError, TypeError, ValueError):
        return read(read_json(file))
    value = compute()
    with contextlib.suppress(StyletuneError):
        write_json(file, value)
    return read(value)


@functools.cache
def _software() -> str:
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    root = Path(__file__).parent.parent
    files = sorted(file for pattern in _SOURCES for file in root.glob(pattern))
    source = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return json.dumps([versions, source.hexdigest()])

"""Facts and features of images, stored between runs by the content of their files.

One SQLite file. Deleting it is always safe: its contents are computed again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from styletune.data.inspection.facts import SMALL_PX, THUMBNAIL_PX, ImageFacts
from styletune.data.inspection.quality import MEASURE_VERSION
from styletune.data.pixels.fingerprint import SPEC
from styletune.places import user_cache_dir

# Goes up when the same file would give different facts.
FACTS_VERSION = 2

KEPT_DAYS = 180
_BUSY_S = 30.0
_MAX_VARIABLES = 500
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (
    key TEXT PRIMARY KEY, day INTEGER NOT NULL, facts TEXT NOT NULL,
    small BLOB NOT NULL, thumbnail BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS features (
    pixel_hash TEXT NOT NULL, encoder TEXT NOT NULL, day INTEGER NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (pixel_hash, encoder));
CREATE TABLE IF NOT EXISTS masks (key TEXT PRIMARY KEY, day INTEGER NOT NULL, hash TEXT NOT NULL);
"""


@dataclass(slots=True)
class FactsStore:
    """An open store; its functions may be called from any thread.

    ``path`` is None if nothing is kept between runs; ``note`` tells the user why, and what else
    went wrong; ``hits`` and ``misses`` count lookups of facts. A closed store finds and keeps
    nothing: interrupted threads may still use it.
    """

    path: Path | None
    connection: sqlite3.Connection
    note: str = ""
    hits: int = 0
    misses: int = 0
    is_closed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


def default_store_path() -> Path | None:
    """``facts.sqlite`` in the user's cache folder; None for a user without a home."""
    folder = user_cache_dir()
    return None if folder is None else folder / "facts.sqlite"


def open_facts(path: Path | None) -> FactsStore:
    """Open the store at ``path``, creating it if needed.

    If that is not possible, or ``path`` is None, the store lasts as long as the process, and
    ``note`` says why. A damaged file is renamed and replaced by a new one.
    """
    if path is None:
        return FactsStore(
            None, _connect(None), "nothing is kept between runs: there is no cache folder"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FactsStore(path, _connect(path))
    except (OSError, sqlite3.OperationalError) as error:
        return FactsStore(None, _connect(None), _not_kept(path, error))
    except sqlite3.DatabaseError as error:
        store = FactsStore(path, _connect(None))
        _start_anew(store, error)
        return store


def close_store(store: FactsStore) -> None:
    """Close it; everything added is saved already."""
    with store.lock:
        store.is_closed = True
        store.connection.close()


@contextlib.contextmanager
def kept_facts() -> Iterator[FactsStore]:
    """The store in the user's cache folder, closed at the end. Raises as ``open_facts``."""
    store = open_facts(default_store_path())
    try:
        yield store
    finally:
        close_store(store)


def facts_key(file_hash: str, background: str | None) -> str:
    """The key of facts: the file's SHA-256, the background, and the software that reads it."""
    return hashlib.sha256(f"{file_hash} {background} {_reader()}".encode()).hexdigest()


def mask_key(file_hash: str, mask_file_hash: str, background: str | None, crops: object) -> str:
    """The key of a mask: what is read for it, and the crops that it was checked against."""
    parts = [file_hash, mask_file_hash, background, repr(crops), _reader()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def get_mask(store: FactsStore, key: str) -> str | None:
    """The mask hash stored under a ``mask_key`` ("" for an opaque image), or None."""
    rows = _select(store, "SELECT hash FROM masks WHERE key = ?", [key])
    return str(rows[0][0]) if rows else None


def put_mask(store: FactsStore, key: str, mask_hash: str) -> None:
    """Store the hash of a mask that fits its image."""
    _insert(store, "INSERT OR REPLACE INTO masks VALUES (?, ?, ?)", [(key, _today(), mask_hash)])


@functools.cache
def _reader() -> str:
    """What facts depend on besides the file: our rules and the decoders' versions."""
    versions = [FACTS_VERSION, MEASURE_VERSION, SMALL_PX, THUMBNAIL_PX, SPEC]
    for library in ("pillow", "pillow-heif", "cleanvision", "imagehash"):
        try:
            versions.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {library}")
    return json.dumps(versions)


def get_facts(store: FactsStore, key: str) -> ImageFacts | None:
    """The facts stored under a ``facts_key``, or None. Counts hits and misses."""
    rows = _select(store, "SELECT facts, small, thumbnail FROM facts WHERE key = ?", [key])
    facts = _from_row(*rows[0]) if rows else None
    with store.lock:
        store.hits += facts is not None
        store.misses += facts is None
    return facts


def put_facts(store: FactsStore, facts_by_key: Mapping[str, ImageFacts]) -> None:
    """Store facts by key."""
    rows = [(key, _today(), *_to_row(facts)) for key, facts in facts_by_key.items()]
    _insert(store, "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", rows)


def get_features(
    store: FactsStore, encoder: str, pixel_hashes: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """The stored (d,) float32 features by ``pixel_hash``; images without any are left out.

    ``encoder`` names the weights and the preprocessing.
    """
    features = {}
    for start in range(0, len(pixel_hashes), _MAX_VARIABLES):
        part = pixel_hashes[start : start + _MAX_VARIABLES]
        marks = ", ".join("?" * len(part))
        query = (
            "SELECT pixel_hash, vector FROM features "  # noqa: S608  # marks are question marks
            f"WHERE encoder = ? AND pixel_hash IN ({marks})"
        )
        for pixels, vector in _select(store, query, [encoder, *part]):
            features[pixels] = np.frombuffer(vector, "<f4").astype(np.float32)
    return features


def put_features(
    store: FactsStore, encoder: str, features: Mapping[str, NDArray[np.float32]]
) -> None:
    """Store (d,) float32 features by ``pixel_hash``."""
    rows = [
        (pixels, encoder, _today(), vector.astype("<f4").tobytes())
        for pixels, vector in features.items()
    ]
    _insert(store, "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)


def _today() -> int:
    return int(time.time() // 86400)


def _to_row(facts: ImageFacts) -> tuple[str, bytes, bytes]:
    plain = asdict(facts)
    small, thumbnail = plain.pop("small"), plain.pop("thumbnail")
    # SQLite's and many JSON readers' numbers end at 64 bits.
    plain["structure"] = f"{facts.structure:x}"
    return json.dumps(plain), small, thumbnail


def _from_row(text: str, small: bytes, thumbnail: bytes) -> ImageFacts | None:
    try:
        plain = json.loads(text)
        plain["structure"] = int(plain["structure"], 16)
        return ImageFacts(small=bytes(small), thumbnail=bytes(thumbnail), **plain)
    except (ValueError, TypeError, KeyError):  # another version's, or damaged: computed again
        return None


def _connect(path: Path | None) -> sqlite3.Connection:
    """Open or create the database; without a path a temporary one on disk."""
    connection = sqlite3.connect(path or "", timeout=_BUSY_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_TABLES)
        for table in ("facts", "features", "masks"):
            connection.execute(f"DELETE FROM {table} WHERE day < ?", [_today() - KEPT_DAYS])  # noqa: S608
        connection.commit()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _select(store: FactsStore, query: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
    with store.lock:
        if store.is_closed:
            return []
        try:
            return store.connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            _stop_keeping(store, error)
        except sqlite3.DatabaseError as error:
            _start_anew(store, error)
    return []


def _insert(store: FactsStore, query: str, rows: Iterable[tuple[object, ...]]) -> None:
    with store.lock:
        if store.is_closed:
            return
        try:
            with store.connection:
                store.connection.executemany(query, rows)
        except sqlite3.OperationalError as error:
            _stop_keeping(store, error)
        except sqlite3.DatabaseError as error:
            _start_anew(store, error)


def _stop_keeping(store: FactsStore, error: Exception) -> None:
    """Continue without the file: a full disk must not stop a check."""
    if store.path is not None:
        store.note = _not_kept(store.path, error)
    store.connection.close()
    store.path, store.connection = None, _connect(None)


def _start_anew(store: FactsStore, error: Exception) -> None:
    """Rename a damaged file and start an empty one."""
    store.connection.close()
    path = store.path
    if path is None:
        store.connection = _connect(None)
        return
    aside = path.with_name(f"{path.name}.damaged-{os.getpid()}")
    try:
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + end).replace(aside.with_name(aside.name + end))
        store.connection = _connect(path)
        store.note = (
            f"the stored facts about images were damaged ({error}) and are computed again; the "
            f"damaged file is now {aside}"
        )
    except (OSError, sqlite3.Error) as second:
        store.path, store.connection = None, _connect(None)
        store.note = _not_kept(path, second)


def _not_kept(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return (
        f"facts about images cannot be stored for the next run: {path}: {reason}; "
        "set STYLETUNE_CACHE to a writable folder"
    )

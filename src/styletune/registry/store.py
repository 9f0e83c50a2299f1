"""Where a registry lives: a folder, or a bucket; written create-only, read with a re-hash.

Everything goes through obstore's native calls, so a folder, S3, GCS, Azure and memory are one
code path. (Its fsspec layer ignores ``mode="create"`` and would overwrite.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, ObjectStore, from_url

from styletune.errors import BadInput, Conflict, IntegrityError, NotFound, OutputError
from styletune.places import describe_write_error

DIGEST_PATTERN = r"^[0-9a-f]{64}$"
_SCHEMES = "s3://bucket/prefix, gs://bucket/prefix, az://account/container, file:///folder"


def open_store(location: str | Path, *, create: bool) -> ObjectStore:
    """Open a registry.

    Args:
        location: a folder, or a URL that obstore knows; ``memory://`` is new and empty each time.
        create: make the folder when it is not there. Buckets are never made.

    Raises:
        NotFound: no such folder, and ``create`` is false.
        OutputError: the folder cannot be made.
        BadInput: a URL that no storage answers to.
    """
    text = str(location)
    if "://" not in text:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
            raise BadInput(
                "is neither a folder nor the address of a bucket",
                where=text,
                fix=f"give a folder, or one of {_SCHEMES}",
            )
        return _open_folder(Path(location).expanduser(), create)
    if text.startswith("file://"):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
        return _open_folder(Path(path), create)
    try:
        return from_url(text)
    except (BaseError, ValueError, OSError) as error:
        raise BadInput(
            f"not a registry address: {_first_line(error)}",
            where=text,
            fix=f"give a folder, or one of {_SCHEMES}",
        ) from None


def _open_folder(folder: Path, create: bool) -> ObjectStore:
    if not create and not folder.exists():
        raise NotFound(
            "there is no registry here",
            where=str(folder),
            fix="check the path; the first publish makes the folder",
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            "the registry is a folder, this is a file", where=str(folder), fix="name a folder"
        )
    with writing(str(folder)):
        # Absolute, so that a later change of the working directory does not move the registry.
        return LocalStore(folder.absolute(), mkdir=create)


def put_new(store: ObjectStore, key: str, content: bytes) -> None:
    """Write an object that must not exist yet; of many writers exactly one wins.

    Raises:
        Conflict: it exists already.
        OutputError: full, read-only, or no permission.
    """
    with writing(key):
        try:
            # A create-only put is one request: a multipart upload could not be conditional.
            obstore.put(store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            raise Conflict("it exists already", where=key) from None
        _flush(store, key)


def put_blob(store: ObjectStore, content: bytes) -> str:
    """Store bytes under their own SHA-256 and return it (64 hex digits).

    The same bytes again write nothing. A blob that is there but damaged is written anew: its
    name says what it must hold.

    Raises:
        OutputError: full, read-only, or no permission.
    """
    digest = hashlib.sha256(content).hexdigest()
    key = blob_key(digest)
    with writing(key):
        if not holds_blob(store, content):
            obstore.put(store, key, content)
            _flush(store, key)
    return digest


def holds_blob(store: ObjectStore, content: bytes) -> bool:
    """Whether these bytes are stored, and whole."""
    try:
        there = obstore.get(store, blob_key(hashlib.sha256(content).hexdigest())).bytes()
    except FileNotFoundError:
        return False
    return bytes(there) == content


def _flush(store: ObjectStore, key: str) -> None:
    """Bring an object of a folder to the disk: obstore leaves that to the system.

    After a power cut a manifest must not name blobs that are empty.
    """
    # Windows opens no folder.
    if os.name == "posix" and isinstance(store, LocalStore) and store.prefix is not None:
        file = Path(store.prefix) / key
        for path in (file, file.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def get_blob(store: ObjectStore, digest: str) -> bytes:
    """Read a blob and hash it again.

    Raises:
        NotFound: there is no such blob.
        IntegrityError: its bytes are not what its name says.
    """
    content = read_object(store, blob_key(digest))
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise IntegrityError(
            f"blob {digest} was changed or cut short: expected sha256 {digest}, "
            f"found {actual} ({len(content)} bytes)",
            where=blob_key(digest),
            fix="restore the blob from a backup, or publish a new version",
        )
    return content


def blob_key(digest: str) -> str:
    """``blobs/sha256/ab/<64 hex>``. Raises BadInput for anything but 64 lower-case hex digits."""
    if not re.match(DIGEST_PATTERN, digest):
        raise BadInput(f'"{digest}" is not a SHA-256 in hex', fix="64 digits of 0-9 and a-f")
    return f"blobs/sha256/{digest[:2]}/{digest}"


def read_object(store: ObjectStore, key: str) -> bytes:
    """Read an object. Raises NotFound, or BadInput when the storage does not answer."""
    try:
        return bytes(obstore.get(store, key).bytes())
    except FileNotFoundError:
        raise NotFound("not in the registry", where=key) from None
    except (BaseError, OSError) as error:
        raise _unreadable(error, key) from None


def list_objects(store: ObjectStore, prefix: str) -> list[str]:
    """Names of the objects right under a prefix, sorted."""
    return sorted(str(item["path"]).rpartition("/")[2] for item in _list(store, prefix)[0])


def list_folders(store: ObjectStore, prefix: str) -> list[str]:
    """Names of the folders right under a prefix, sorted."""
    return sorted(path.rstrip("/").rpartition("/")[2] for path in _list(store, prefix)[1])


def _list(store: ObjectStore, prefix: str) -> tuple[list[dict[str, object]], list[str]]:
    try:
        listing = obstore.list_with_delimiter(store, prefix)
    except (BaseError, OSError) as error:
        raise _unreadable(error, prefix) from None
    return list(listing["objects"]), list(listing["common_prefixes"])


@contextlib.contextmanager
def writing(where: str) -> Iterator[None]:
    """Turn the storage's refusals into an OutputError that names the place."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise OutputError(
            f"no permission to write: {_first_line(error)}",
            where=where,
            fix="check the credentials and the rights on the registry",
        ) from error
    except (BaseError, OSError) as error:
        raise OutputError(
            f"cannot write: {_reason(error)}",
            where=where,
            fix="free some space, check the rights, or choose another registry",
        ) from error


def _reason(error: Exception) -> str:
    """The system's reason in words; obstore keeps its number only inside the text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    code = int(number.group(1)) if number else (getattr(error, "errno", None) or 0)
    return describe_write_error(code) or _first_line(error)


def _unreadable(error: Exception, where: str) -> BadInput:
    return BadInput(
        f"the registry cannot be read: {_first_line(error)}",
        where=where,
        fix="check the address, the network and the credentials",
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

"""The storage under a registry."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import ObjectStore

from styletune.errors import BadInput, Conflict, IntegrityError, NotFound, OutputError
from styletune.registry.store import (
    blob_key,
    get_blob,
    list_objects,
    open_store,
    put_blob,
    put_new,
    read_object,
)


def test_second_write_of_a_key_is_refused(store: ObjectStore) -> None:
    """The first content stays, in a folder and in memory alike."""
    put_new(store, "a/b.json", b"first")
    with pytest.raises(Conflict, match="exists"):
        put_new(store, "a/b.json", b"second")
    assert read_object(store, "a/b.json") == b"first"


def test_blob_is_named_by_its_content(store: ObjectStore) -> None:
    """A blob lies under its SHA-256, and writing it again changes nothing."""
    digest = put_blob(store, b"abc")
    assert digest == hashlib.sha256(b"abc").hexdigest() == put_blob(store, b"abc")
    assert blob_key(digest) == f"blobs/sha256/{digest[:2]}/{digest}"
    assert list_objects(store, f"blobs/sha256/{digest[:2]}/") == [digest]
    assert get_blob(store, digest) == b"abc"


def test_large_blob_survives(store: ObjectStore) -> None:
    """A blob beyond the size of one upload part comes back whole."""
    content = bytes(range(256)) * 45_000
    assert get_blob(store, put_blob(store, content)) == content


@pytest.mark.parametrize("damage", [b"abd", b"ab", b""])
def test_damaged_blob_is_told(folder: Path, folder_store: ObjectStore, damage: bytes) -> None:
    """Changed, truncated or emptied: the error names the blob, what was expected, what is there."""
    digest = put_blob(folder_store, b"abc")
    (folder / blob_key(digest)).write_bytes(damage)
    with pytest.raises(IntegrityError) as caught:
        get_blob(folder_store, digest)
    assert digest in caught.value.message
    assert hashlib.sha256(damage).hexdigest() in caught.value.message


def test_damaged_blob_is_restored_by_its_content(folder: Path, folder_store: ObjectStore) -> None:
    """Publishing the right bytes again mends a blob that a crash had left torn."""
    digest = put_blob(folder_store, b"abc")
    (folder / blob_key(digest)).write_bytes(b"a")
    put_blob(folder_store, b"abc")
    assert get_blob(folder_store, digest) == b"abc"


def test_missing_blob_is_not_found(store: ObjectStore) -> None:
    """A blob that was never stored is NotFound, and a digest that is none is BadInput."""
    with pytest.raises(NotFound):
        get_blob(store, "0" * 64)
    with pytest.raises(BadInput):
        get_blob(store, "../../etc/passwd")


def test_missing_registry_is_not_made_by_reading(tmp_path: Path) -> None:
    """Opening to read a folder that is not there says so and leaves nothing behind."""
    with pytest.raises(NotFound):
        open_store(tmp_path / "none", create=False)
    assert list(tmp_path.iterdir()) == []


def test_file_url_is_the_same_registry(tmp_path: Path) -> None:
    """A folder and its file:// URL, spaces included, lead to the same objects."""
    place = tmp_path / "my registry"
    put_new(open_store(place, create=True), "k", b"v")
    assert read_object(open_store(place.as_uri(), create=False), "k") == b"v"


def test_relative_folder_is_kept_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry opened by a relative path stays where it was opened."""
    monkeypatch.chdir(tmp_path)
    store = open_store("registry", create=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    put_new(store, "k", b"v")
    assert (tmp_path / "registry" / "k").read_bytes() == b"v"


def test_unknown_scheme_is_bad_input() -> None:
    """An address that no storage answers to is refused with the ones that there are."""
    with pytest.raises(BadInput, match="s3://"):
        open_store("ftp://example.com/registry", create=False)


def test_bucket_opens_without_network() -> None:
    """An S3 address gives a store by the same call; nothing is asked before it is used."""
    store = open_store("s3://bucket/prefix", create=False)
    assert type(store).__name__ == "S3Store"


@pytest.mark.parametrize("inside", [False, True])
def test_file_in_place_of_a_folder(tmp_path: Path, inside: bool) -> None:
    """A file where the registry, or a folder above it, should be is an OutputError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        open_store(tmp_path / "file" / "registry" if inside else tmp_path / "file", create=True)


def test_file_inside_the_registry_in_the_way(folder: Path, folder_store: ObjectStore) -> None:
    """A write that meets a file where it needs a folder says so."""
    (folder / "blobs").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        put_blob(folder_store, b"abc")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skipped where one cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or not _mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)):
        pytest.skip("cannot mount a small disk here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def test_full_disk_is_an_output_error(small_disk: Path) -> None:
    """No space left: the error says so, and no half blob is seen."""
    store = open_store(small_disk, create=True)
    with pytest.raises(OutputError, match="no space left"):
        put_blob(store, bytes(200_000))
    assert [p for p in small_disk.rglob("*") if p.is_file()] == []


def test_read_only_disk_is_an_output_error(small_disk: Path) -> None:
    """A read-only file system: the error says so."""
    assert _mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(OutputError, match="read-only"):
        put_new(open_store(small_disk, create=True), "k", b"v")

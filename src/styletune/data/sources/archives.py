"""Images inside zip and tar files, read in place: nothing is ever extracted to disk.

A whole archive is refused if a member could point outside it (absolute names, ``..``, links,
devices), is encrypted, or is larger than any image.
"""

from __future__ import annotations

import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

from styletune.data.findings import Finding, bad_archive
from styletune.data.sources.files import READ_EXTENSIONS
from styletune.data.sources.tar_headers import header_problem
from styletune.errors import DataError

# Two are in memory at once, each twice while it is unpacked.
MAX_MEMBER_BYTES = 256 << 20
MAX_ARCHIVE_BYTES = 256 << 30
# Images hardly compress; deflate reaches 1032, and only for data made for it.
MAX_RATIO = 200
MIN_BOMB_BYTES = 16 << 20
ARCHIVES = (".tar", ".zip")
_END_BLOCK = 512


def read_member(path: Path, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
    """Bytes of a member of an archive (one of ``ARCHIVES``). Raises as ``read_zip``."""
    read = read_zip if path.suffix.lower() == ".zip" else read_tar
    return read(path, member, max_bytes)


def list_zip(path: Path) -> tuple[dict[str, str], list[Finding]]:
    """Members of a zip: name to what ``read_zip`` needs; none if it is unsafe.

    Folders are left out. Names are used as stored: two that differ only in Unicode
    normalization are two members.
    """
    again = "pack it again from the original files, without links or passwords"
    try:
        infos = [info for info in _zip_handle(path).infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return {}, [bad_archive(path, f"not a readable zip ({error})", [], again)]
    names = [info.orig_filename for info in infos]
    size, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    problems = [
        ("members that point outside the zip", [n for n in names if _points_outside(n)]),
        ("members that are links or devices", [i.filename for i in infos if _special(i)]),
        ("encrypted members", [i.filename for i in infos if i.flag_bits & 1]),
        ("names that appear twice", _repeated(names)),
        (
            f"members larger than {MAX_MEMBER_BYTES >> 20} MiB",
            [i.filename for i in infos if i.file_size > MAX_MEMBER_BYTES],
        ),
        (
            f"members compressed more than {MAX_RATIO}:1, as images never are",
            [i.filename for i in infos if _is_bomb(i.file_size, i.compress_size)],
        ),
        (
            "members compressed by an unsupported method",
            [i.filename for i in infos if i.compress_type not in _METHODS],
        ),
    ]
    findings = [bad_archive(path, what, members, again) for what, members in problems if members]
    if size > MAX_ARCHIVE_BYTES:
        what = f"unpacks to {size >> 30} GiB, more than {MAX_ARCHIVE_BYTES >> 30} GiB"
        findings.append(bad_archive(path, what, [], "split it"))
    if packed > path.stat().st_size:
        findings.append(bad_archive(path, "members overlap: a zip bomb", [], again))
    return ({} if findings else {posixpath.normpath(n): n for n in names}), findings


_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def _is_bomb(size: int, packed: int) -> bool:
    return size > MIN_BOMB_BYTES and size > MAX_RATIO * max(packed, 1)


def _points_outside(name: str) -> bool:
    """Absolute, with a drive, with .. or with separators of another system."""
    return (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or re.match(r"[A-Za-z]:", name) is not None
        or ".." in name.split("/")
    )


def _special(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    # Only Unix archives record what a member is; others leave zero.
    return kind not in (0, stat.S_IFREG, stat.S_IFDIR)


def _repeated(names: list[str]) -> list[str]:
    counts = Counter(map(posixpath.normpath, names))
    return [name for name, count in counts.items() if count > 1]


def read_zip(path: Path, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
    """Bytes of a member. Thread-safe, also after a fork.

    Raises:
        DataError: the zip or the member is not there, damaged or too large.
    """
    where = f"{path}/{member}"
    try:
        archive = _zip_handle(path)
        info = archive.getinfo(member)
        if info.file_size > max_bytes:
            raise DataError(f"is larger than {max_bytes >> 20} MiB", where=where)
        return archive.read(info)
    except KeyError:
        raise DataError(
            "is no longer in the zip", where=where, fix="run the command again"
        ) from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
    ) as error:
        raise DataError(
            f"cannot be decompressed: {error}", where=where, fix="copy or pack the zip again"
        ) from None


def _zip_handle(path: Path) -> zipfile.ZipFile:
    state = path.stat()
    return _open_zip(path, state.st_mtime_ns, state.st_size, os.getpid())


@lru_cache(maxsize=4)
def _open_zip(path: Path, mtime_ns: int, size: int, process: int) -> zipfile.ZipFile:  # noqa: ARG001
    # A changed file and a forked process need a handle of their own.
    return zipfile.ZipFile(path)


def list_tar(path: Path) -> tuple[dict[str, str], list[Finding]]:
    """Members of an uncompressed tar: name to "offset+size"; none if it is unsafe."""
    again = "pack it again from the original files: plain files only, uncompressed"
    members: dict[str, str] = {}
    twice: list[str] = []
    outside: list[str] = []
    special: list[str] = []
    large: list[str] = []
    length = path.stat().st_size
    try:
        if problem := header_problem(path):
            return {}, [bad_archive(path, problem, [], again)]
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                # Otherwise a hundred thousand of them would stay in memory.
                archive.members.clear()  # type: ignore[attr-defined]
                name = posixpath.normpath(info.name)
                if info.isdir():
                    continue
                if _points_outside(info.name):
                    outside.append(info.name)
                elif not info.isreg() or info.issparse():
                    special.append(info.name)
                elif info.size > MAX_MEMBER_BYTES:
                    large.append(info.name)
                elif name in members:
                    twice.append(name)
                members[name] = f"{info.offset_data}+{info.size}"
                if info.offset_data + info.size > length:
                    return {}, [bad_archive(path, "the tar is truncated in", [name], again)]
            end = archive.offset
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        what = f"not a readable uncompressed tar ({error})"
        return {}, [bad_archive(path, what, [], again)]
    problems = [
        ("members that point outside the tar", outside),
        ("members that are links, devices or sparse", special),
        (f"members larger than {MAX_MEMBER_BYTES >> 20} MiB", large),
        ("names that appear twice", twice),
    ]
    findings = [bad_archive(path, what, names, again) for what, names in problems if names]
    if problem := _end_problem(path, end):
        findings.append(bad_archive(path, problem, [], again))
    return ({} if findings else members), findings


def _end_problem(path: Path, end: int) -> str:
    """What follows the last member, where the listing stops silently; "" for a proper end."""
    with path.open("rb") as stream:
        stream.seek(end)
        if len(first := stream.read(_END_BLOCK)) < _END_BLOCK:
            return "the tar has no end mark: it is truncated"
        if any(first):
            return f"a damaged header at byte {end}: everything after it would be lost"
        while block := stream.read(1 << 20):
            if block.count(0) < len(block):
                return "data after the end mark: two archives in one file"
    return ""


def read_tar(path: Path, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
    """Bytes of a member, "offset+size".

    Raises:
        DataError: the tar is not there, shorter than when listed, or the member is too large.
    """
    offset, _, size = member.partition("+")
    if int(size) > max_bytes:
        raise DataError(f"is larger than {max_bytes >> 20} MiB", where=f"{path} at {offset}")
    try:
        with path.open("rb") as stream:
            stream.seek(int(offset))
            content = stream.read(int(size))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(content) < int(size):
        raise DataError("is shorter than before", where=str(path), fix="run the command again")
    return content


def sample_key(name: str) -> str:
    """A tar member's WebDataset key: its path up to the first dot of the file name."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def crowded_samples(names: list[str]) -> list[str]:
    """Images that share a WebDataset key with another image."""
    keys: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(READ_EXTENSIONS):
            keys.setdefault(sample_key(name), []).append(name)
    return [name for images in keys.values() if len(images) > 1 for name in images]

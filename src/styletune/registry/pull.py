"""A version from the registry into a folder, checked before anything appears there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from obstore.store import ObjectStore

from styletune.errors import IntegrityError, NotFound
from styletune.files import file_sha256, make_dir, output_errors, write_bytes
from styletune.registry.manifest import MANIFEST_NAME, FileEntry, Manifest, canonical
from styletune.registry.resolve import Spec, resolve
from styletune.registry.store import get_blob

# What file managers and other tools leave behind; it changes nothing that was published.
_DROPPING = re.compile(
    r"(^|/)(\.[^/]*|Thumbs\.db|desktop\.ini|@eaDir/.*|[^/]*\.civitai\.info|[^/]*\.preview\.\w+)$"
)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version on this machine; ``dir`` is ``<dest>/<name>/<version>``."""

    manifest: Manifest
    digest: str
    dir: Path


def pull(store: ObjectStore, spec: Spec, dest: Path) -> Pulled:
    """Bring a version into ``dest/<name>/<version>/``, whole or not at all.

    Every file is fetched and hashed first, then written to a hidden neighbor, which is renamed.
    A folder that is there already and is right stays as it is.

    Raises:
        NotFound: no such adapter or version.
        IntegrityError: a manifest or blob was changed or is gone, or the folder that is there
            holds something else.
        OutputError: full, read-only, or a file is where a folder should be.
    """
    manifest, digest = resolve(store, spec)
    folder = dest / manifest.name / manifest.version
    pulled = Pulled(manifest, digest, folder)
    if folder.exists() or folder.is_symlink():
        _verify_against(manifest, folder)
        return pulled
    contents = {entry.path: _fetch(store, entry) for entry in manifest.files}
    contents[MANIFEST_NAME] = canonical(manifest)
    parent = make_dir(folder.parent)
    with output_errors(folder):
        staging = Path(tempfile.mkdtemp(prefix=f".{manifest.version}.", dir=parent))
    try:
        _write_all(staging, contents)
        _show(staging, folder, manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return pulled


def _fetch(store: ObjectStore, entry: FileEntry) -> bytes:
    try:
        content = get_blob(store, entry.sha256)
    except NotFound as error:
        # A published version promises its files: one that is gone is damage, not a wrong name.
        raise IntegrityError(
            f"the content of {entry.path} is gone",
            where=error.where,
            fix="restore it from a backup",
        ) from None
    if len(content) != entry.size:
        raise IntegrityError(
            f"{len(content)} bytes, the manifest says {entry.size}", where=entry.path
        )
    return content


def _write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    for path, content in contents.items():
        write_bytes(folder / path, content)
    with output_errors(folder):
        folder.chmod(0o755)  # mkdtemp makes it for its owner alone


def _show(staging: Path, folder: Path, manifest: Manifest) -> None:
    """Rename the finished folder into its place, unless somebody was faster."""
    with output_errors(folder):
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            _verify_against(manifest, folder)


def _verify_against(manifest: Manifest, folder: Path) -> None:
    """Check a folder against the registry's manifest, not only against its own."""
    problems = _problems(manifest, folder)
    own = folder / MANIFEST_NAME
    if not own.is_file() or own.read_bytes() != canonical(manifest):
        problems = [*problems, f"{MANIFEST_NAME} is not the published one"]
    _raise_if(problems, folder)


def _problems(manifest: Manifest, folder: Path) -> list[str]:
    entries = {entry.path: entry for entry in manifest.files}
    paths = {path for path in _files_in(folder) if path in entries or not _DROPPING.search(path)}
    problems = [f"{path} is missing" for path in sorted(entries.keys() - paths)]
    problems += [f"{path} is extra" for path in sorted(paths - entries.keys() - {MANIFEST_NAME})]
    for path in sorted(entries.keys() & paths):
        file, entry = folder / path, entries[path]
        if file.is_symlink() or not file.is_file():
            problems.append(f"{path} is not a plain file")
        elif file.stat().st_size != entry.size or file_sha256(file) != entry.sha256:
            problems.append(f"{path} was changed")
    return problems


def _files_in(folder: Path) -> set[str]:
    """Relative paths of everything but plain folders; links are not followed."""
    paths = set()
    for parent, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        paths |= {(Path(parent) / name).relative_to(folder).as_posix() for name in files + links}
    return paths


def _raise_if(problems: list[str], folder: Path) -> None:
    if problems:
        raise IntegrityError(
            "this folder is not the published version: " + "; ".join(problems),
            where=str(folder),
            fix="move it away and pull again",
        )

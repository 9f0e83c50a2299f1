"""The versions of an adapter and the numbered events of its history.

    adapters/<name>/versions/<version>.json   the manifest and commit point, created once
    adapters/<name>/events/000001.json        created once each, numbered without gaps
    blobs/sha256/ab/<64 hex>                  the files, by content

Nothing is ever overwritten: what has become of a version is what its events, read in order,
add up to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from obstore.store import ObjectStore
from pydantic import ValidationError

from styletune.errors import BadInput, Conflict, IntegrityError, NotFound
from styletune.recipe.section import MAX_NAME_CHARACTERS, NAME_PATTERN
from styletune.registry.manifest import (
    Event,
    FileEntry,
    Manifest,
    Version,
    canonical,
    parse_stored,
    parse_version,
    role_of,
)
from styletune.registry.release import Release
from styletune.registry.store import (
    holds_blob,
    list_folders,
    list_objects,
    put_blob,
    put_new,
    read_object,
)
from styletune.runs.form import explain

_EVENT_ATTEMPTS = 200


@dataclass(frozen=True, slots=True)
class Published:
    """A version that is now in the registry; the digest is its manifest's SHA-256."""

    name: str
    version: str
    digest: str


def publish_version(
    store: ObjectStore,
    release: Release,
    files: Mapping[str, bytes],
    *,
    created: str,
    who: str,
    why: str,
) -> Published:
    """Publish one version: its blobs, then its manifest (the commit point), then an event.

    A crash before the manifest leaves blobs that nothing refers to; a crash after it leaves a
    published version whose event the same call adds when it is made again (and is refused).

    Args:
        store: an open registry.
        release: what the version declares.
        files: content by relative path.
        created: ISO 8601 in UTC; also the time of the event.
        who: the person or job that publishes.
        why: the reason, for the history.

    Raises:
        BadInput: a field or a path that cannot be published; nothing is written.
        Conflict: the version exists; the message says whether its content is the same.
        OutputError: full, read-only, or no permission.
    """
    name, version = release.name, release.version
    try:
        manifest = _manifest(release, created, files)
        parse_version(version)
        content = canonical(manifest)
        digest = hashlib.sha256(content).hexdigest()
        event = Event(
            kind="published", version=version, digest=digest, who=who, when=created, why=why
        )
    except ValidationError as error:
        where = f"{name}@{version}"
        raise BadInput(f"cannot be published: {explain(error)}", where=where) from None
    if version in list_versions(store, name):
        _refuse(store, manifest, event, files)
    for path in sorted(files):
        put_blob(store, files[path])
    try:
        put_new(store, _manifest_key(name, version), content)
    except Conflict:
        _refuse(store, manifest, event, files)
    append_event(store, name, event)
    return Published(name, version, digest)


def _manifest(release: Release, created: str, files: Mapping[str, bytes]) -> Manifest:
    return Manifest(
        name=release.name,
        version=release.version,
        created=created,
        description=release.description,
        license=release.license,
        base=release.base,
        adapter=release.adapter,
        recipe_hash=release.recipe_hash,
        data_fingerprint=release.data_fingerprint,
        gates=release.gates,
        # Sorted, because the order of a mapping must not change the digest.
        files=tuple(_entry(path, files[path]) for path in sorted(files)),
    )


def _entry(path: str, content: bytes) -> FileEntry:
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(path=path, sha256=digest, size=len(content), role=role_of(path))


def _refuse(
    store: ObjectStore, new: Manifest, event: Event, files: Mapping[str, bytes]
) -> NoReturn:
    """Raise the Conflict of a version that exists.

    With identical content, first restore its blobs that are gone or damaged, and complete its
    history if a crash cut it.
    """
    name, version = new.name, new.version
    old, digest = read_manifest(store, name, version)
    free = next_free_version(list_versions(store, name), version)
    # The time of publication alone does not make another content.
    if old == new.model_copy(update={"created": old.created}):
        damaged = [path for path in sorted(files) if not holds_blob(store, files[path])]
        for path in damaged:
            put_blob(store, files[path])
        # Only then is it true that this person published these bytes.
        if version not in _published_digests(store, name):
            append_event(store, name, event.model_copy(update={"digest": digest}))
        healed = f"; restored what was gone or damaged: {', '.join(damaged)}" if damaged else ""
        raise Conflict(
            f"{name} {version} is published already, with identical content ({digest[:12]})"
            + healed,
            where=f"{name}@{version}",
            fix=f"nothing more needs to be done; to publish it once more, use version {free}",
        )
    differs = _differences(old, new)
    raise Conflict(
        f"{name} {version} is published already, with different content: {differs}",
        where=f"{name}@{version}",
        fix=f"published versions never change; the next free one is {free}",
    )


def _differences(old: Manifest, new: Manifest) -> str:
    before = {entry.path: entry.sha256 for entry in old.files}
    after = {entry.path: entry.sha256 for entry in new.files}
    paths = before.keys() | after.keys()
    files = sorted(path for path in paths if before.get(path) != after.get(path))
    fields = [
        key
        for key in Manifest.model_fields
        if key not in ("created", "files") and getattr(old, key) != getattr(new, key)
    ]
    names = fields + files
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def next_free_version(taken: Sequence[str], version: str) -> Version:
    """The lowest release that is free above all of the same major.minor, for a taken version."""
    versions = [parse_version(text) for text in taken]
    major, minor, patch = parse_version(version).release
    patches = [v.release[2] for v in versions if v.release[:2] == (major, minor) and not v.pre]
    return Version((major, minor, max([patch - 1, *patches]) + 1))


def append_event(store: ObjectStore, name: str, event: Event) -> int:
    """Write an event under the next free number and return that number.

    Raises:
        Conflict: others took the number each time, for 200 attempts.
        OutputError: full, read-only, or no permission.
    """
    for _ in range(_EVENT_ATTEMPTS):
        number = max(_event_numbers(store, name), default=0) + 1
        try:
            put_new(store, _event_key(name, number), canonical(event))
        except Conflict:
            continue
        return number
    raise Conflict(
        f"others wrote {_EVENT_ATTEMPTS} events at the same time",
        where=f"adapters/{name}/events",
        fix="try again",
    )


def read_events(store: ObjectStore, name: str) -> tuple[Event, ...]:
    """The history of an adapter, in order. Raises IntegrityError for a changed or missing one."""
    numbers = _event_numbers(store, name)
    if numbers != list(range(1, len(numbers) + 1)):
        raise IntegrityError(
            f"events are missing: found numbers {numbers}",
            where=f"adapters/{name}/events",
            fix="restore the folder from a backup",
        )
    keys = [_event_key(name, number) for number in numbers]
    return tuple(parse_stored(Event, read_object(store, key), key) for key in keys)


def read_manifest(store: ObjectStore, name: str, version: str) -> tuple[Manifest, str]:
    """A version's manifest and its digest (SHA-256, hex).

    Raises:
        BadInput: not a name or not a version.
        NotFound: no such version; the message names those that there are.
        IntegrityError: changed since it was published.
    """
    check_name(name)
    parse_version(version)
    key = _manifest_key(name, version)
    try:
        content = read_object(store, key)
    except NotFound:
        versions = ", ".join(list_versions(store, name)) or "none"
        raise NotFound(
            f"no version {version}", where=name, fix=f"published versions: {versions}"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    published = _published_digests(store, name).get(version, digest)
    if digest != published:
        raise IntegrityError(
            f"the manifest was changed: expected sha256 {published}, found {digest}",
            where=key,
            fix="restore it from a backup; a published version never changes",
        )
    manifest = parse_stored(Manifest, content, key)
    if (manifest.name, manifest.version) != (name, version):
        raise IntegrityError(
            f"the manifest is of {manifest.name}@{manifest.version}",
            where=key,
            fix="restore it from a backup",
        )
    return manifest, digest


def list_names(store: ObjectStore) -> list[str]:
    """Adapters that have a published version, sorted.

    Folders whose name no adapter can have are somebody else's: file servers make such.
    """
    names = [name for name in list_folders(store, "adapters/") if _is_name(name)]
    return [name for name in names if list_versions(store, name)]


def list_versions(store: ObjectStore, name: str) -> list[str]:
    """Versions of an adapter, lowest first; none for an adapter that is not there.

    Raises:
        BadInput: not a name.
        IntegrityError: a file among the manifests has the name of none.
    """
    check_name(name)
    files = list_objects(store, f"adapters/{name}/versions/")
    try:
        versions = [parse_version(file.removesuffix(".json")) for file in files if _is_json(file)]
    except BadInput as error:
        raise IntegrityError(
            error.message, where=f"adapters/{name}/versions", fix="remove it"
        ) from None
    return [str(version) for version in sorted(versions)]


def check_name(name: str) -> None:
    """Raise BadInput unless an adapter can have this name."""
    if not _is_name(name):
        raise BadInput(
            f'"{name[:80]}" cannot name an adapter',
            fix=f"use at most {MAX_NAME_CHARACTERS} lowercase letters, digits and dashes, such as "
            "horizon-backgrounds",
        )


def _is_name(name: str) -> bool:
    return len(name) <= MAX_NAME_CHARACTERS and bool(re.fullmatch(NAME_PATTERN, name))


def _is_json(file: str) -> bool:
    return file.endswith(".json") and not file.startswith(".")


def _published_digests(store: ObjectStore, name: str) -> dict[str, str]:
    events = read_events(store, name)
    return {event.version: event.digest for event in reversed(events) if event.kind == "published"}


def _event_numbers(store: ObjectStore, name: str) -> list[int]:
    files = list_objects(store, f"adapters/{name}/events/")
    return sorted(int(file[:-5]) for file in files if re.fullmatch(r"[0-9]{6,}\.json", file))


def _manifest_key(name: str, version: str) -> str:
    return f"adapters/{name}/versions/{version}.json"


def _event_key(name: str, number: int) -> str:
    return f"adapters/{name}/events/{number:06d}.json"

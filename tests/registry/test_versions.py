"""Publishing: one winner, never half, never twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import ObjectStore

from registry_parts import publish_small
from styletune.errors import BadInput, Conflict, IntegrityError, NotFound
from styletune.registry.manifest import Event, Manifest, canonical, parse_version
from styletune.registry.store import get_blob, open_store
from styletune.registry.versions import (
    Published,
    append_event,
    list_names,
    list_versions,
    next_free_version,
    read_events,
    read_manifest,
)

Publish = Callable[..., Published]


def test_published_version_is_read_back(store: ObjectStore, publish: Publish) -> None:
    """Manifest, digest, blobs and event of a published version agree."""
    done = publish(store)
    manifest, digest = read_manifest(store, "horizon", "1.0.0")
    assert done == Published("horizon", "1.0.0", digest)
    assert digest == hashlib.sha256(canonical(manifest)).hexdigest()
    assert [entry.path for entry in manifest.files] == ["README.md", "diffusers/w.safetensors"]
    for entry in manifest.files:
        assert len(get_blob(store, entry.sha256)) == entry.size
    (event,) = read_events(store, "horizon")
    assert (event.kind, event.version, event.digest) == ("published", "1.0.0", digest)
    assert (event.who, event.when, event.why) == ("ada", "2026-01-02T03:04:05Z", "first")


def test_names_and_versions_are_listed_in_order(store: ObjectStore, publish: Publish) -> None:
    """Versions come by precedence, not by spelling; names by alphabet."""
    for version in ("1.10.0", "1.2.0", "2.0.0-rc.1", "1.9.3"):
        publish(store, version)
    publish(store, name="apex")
    assert list_versions(store, "horizon") == ["1.2.0", "1.9.3", "1.10.0", "2.0.0-rc.1"]
    assert list_names(store) == ["apex", "horizon"]
    assert list_versions(store, "unheard-of") == []


def test_same_content_again_is_a_conflict_that_says_so(
    store: ObjectStore, publish: Publish
) -> None:
    """Only the time differs: refused as identical, with the next free version."""
    publish(store, "1.0.0")
    publish(store, "1.0.1")
    with pytest.raises(Conflict, match="identical content") as caught:
        publish(store, created="2027-01-01T00:00:00Z")
    assert "1.0.2" in caught.value.fix
    assert len(read_events(store, "horizon")) == 2


def test_other_content_under_a_taken_version_is_refused(
    store: ObjectStore, publish: Publish
) -> None:
    """The message names what differs, and the first content stays."""
    before = publish(store).digest
    with pytest.raises(Conflict, match=r"different content: description, new\.txt") as caught:
        publish(
            store,
            description="Other.",
            files={
                "diffusers/w.safetensors": b"weights " * 500,
                "README.md": b"# hello\n",
                "new.txt": b"x",
            },
        )
    assert "1.0.1" in caught.value.fix
    assert read_manifest(store, "horizon", "1.0.0")[1] == before


def test_canonical_bytes_do_not_depend_on_the_order_of_files(publish: Publish) -> None:
    """The same files in another order give the same digest."""
    files = {"b.txt": b"b", "a.txt": b"a"}
    first = publish(open_store("memory:///", create=True), files=files)
    second = publish(open_store("memory:///", create=True), files=dict(reversed(files.items())))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "a//b",
        "a\\b",
        ".hidden",
        "a/.x",
        "",
        "a/",
        "manifest.json",
        "a b",
        "x\n",
        "Manifest.JSON",
        "manifest.json/x",
    ],
)
def test_path_that_leaves_its_folder_is_refused(path: str, publish: Publish) -> None:
    """No file of a version can climb, hide or take the manifest's place; nothing is written."""
    store = open_store("memory:///", create=True)
    with pytest.raises(BadInput):
        publish(store, files={path: b"x"})
    assert list_names(store) == []


@pytest.mark.parametrize(
    "files", [{"a": b"1", "A": b"2"}, {"a": b"1", "a/b": b"2"}, {"B": b"1", "b/c/d": b"2"}]
)
def test_paths_that_collide_are_refused(files: dict[str, bytes], publish: Publish) -> None:
    """Two files that would be one on a case-blind disk cannot be published together."""
    with pytest.raises(BadInput):
        publish(open_store("memory:///", create=True), files=files)


@pytest.mark.parametrize("name", ["", "Horizon", "-x", "a_b", "a/b", "..", "a\n", "é"])
def test_bad_name_is_refused(name: str, publish: Publish) -> None:
    """Names are lower-case letters, digits and dashes."""
    with pytest.raises(BadInput):
        publish(open_store("memory:///", create=True), name=name)
    with pytest.raises(BadInput):
        list_versions(open_store("memory:///", create=True), name)


@pytest.mark.parametrize(
    "version", ["1", "1.0", "01.0.0", "1.0.0-01", "1.0.0-", "v1.0.0", "1.0.0+b", "1.0.0\n", "١.0.0"]
)
def test_bad_version_is_refused(version: str, publish: Publish) -> None:
    """Versions are strict semver without build metadata."""
    with pytest.raises(BadInput):
        parse_version(version)
    with pytest.raises(BadInput):
        publish(open_store("memory:///", create=True), version)


def test_semver_precedence() -> None:
    """The order is the example of semver.org §11.4, however it was shuffled."""
    order = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.1",
        "2.0.0",
    ]
    shuffled = random.Random(0).sample(order, len(order))
    assert [str(v) for v in sorted(map(parse_version, shuffled))] == order


@pytest.mark.parametrize(
    ("taken", "asked", "free"),
    [
        (["1.0.0"], "1.0.0", "1.0.1"),
        (["1.0.0", "1.0.4", "1.1.0"], "1.0.0", "1.0.5"),
        (["1.0.0-rc.1"], "1.0.0-rc.1", "1.0.0"),
        (["1.0.0-rc.1", "1.0.0"], "1.0.0-rc.1", "1.0.1"),
    ],
)
def test_next_free_version(taken: list[str], asked: str, free: str) -> None:
    """The proposed version is free and above its neighbors."""
    assert str(next_free_version(taken, asked)) == free


def test_events_are_numbered_without_gaps(store: ObjectStore, publish: Publish) -> None:
    """Appended events come back in the order of their numbers."""
    digest = publish(store).digest
    event = Event(
        kind="published",
        version="1.0.0",
        digest=digest,
        who="eve",
        when="2026-01-02T03:04:06Z",
        why="again",
    )
    assert [append_event(store, "horizon", event) for _ in range(3)] == [2, 3, 4]
    assert [e.who for e in read_events(store, "horizon")] == ["ada", "eve", "eve", "eve"]


def test_lost_event_is_told(folder: Path, folder_store: ObjectStore, publish: Publish) -> None:
    """A hole in the numbers means that history was lost."""
    publish(folder_store, "1.0.0")
    publish(folder_store, "1.0.1")
    (folder / "adapters/horizon/events/000001.json").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        read_events(folder_store, "horizon")


def test_unknown_version_names_those_there(store: ObjectStore, publish: Publish) -> None:
    """NotFound lists the published versions."""
    publish(store)
    with pytest.raises(NotFound, match=r"1\.0\.0"):
        read_manifest(store, "horizon", "3.0.0")


def _edit(content: bytes, key: str, value: object) -> bytes:
    tree = json.loads(content)
    tree[key] = value
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("event_too", [False, True])
@pytest.mark.parametrize("how", ["text", "license", "files", "name", "spaces", "cut", "empty"])
def test_tampered_manifest_is_refused(
    folder: Path, folder_store: ObjectStore, publish: Publish, how: str, event_too: bool
) -> None:
    """Any change of a manifest is found by its event's digest; a clumsy one even without."""
    publish(folder_store)
    file = folder / "adapters/horizon/versions/1.0.0.json"
    content = file.read_bytes()
    changed = {
        "text": b"not json",
        "license": _edit(content, "license", "MIT"),
        "files": _edit(
            content, "files", [{"path": "../../x", "sha256": "0" * 64, "size": 1, "role": "other"}]
        ),
        "name": _edit(content, "name", "other"),
        "spaces": content + b"\n",
        "cut": content[:-5],
        "empty": b"",
    }[how]
    file.write_bytes(changed)
    if event_too:
        (folder / "adapters/horizon/events/000001.json").unlink()
        if how == "license":  # well-formed and unwitnessed: this cannot be told from a publish
            assert read_manifest(folder_store, "horizon", "1.0.0")[0].license == "MIT"
            return
    with pytest.raises(IntegrityError):
        read_manifest(folder_store, "horizon", "1.0.0")


def test_newer_manifest_asks_for_a_newer_program(
    folder: Path, folder_store: ObjectStore, publish: Publish
) -> None:
    """A manifest of a later form is not called damaged."""
    publish(folder_store)
    file = folder / "adapters/horizon/versions/1.0.0.json"
    changed = _edit(file.read_bytes(), "schema_version", 2)
    file.write_bytes(changed)
    event = folder / "adapters/horizon/events/000001.json"
    event.write_bytes(_edit(event.read_bytes(), "digest", hashlib.sha256(changed).hexdigest()))
    with pytest.raises(BadInput, match="newer"):
        read_manifest(folder_store, "horizon", "1.0.0")


def test_publishing_again_completes_a_history_cut_by_a_crash(
    folder: Path, folder_store: ObjectStore, publish: Publish
) -> None:
    """A crash between manifest and event: the next attempt is refused, and the event is there."""
    digest = publish(folder_store).digest
    (folder / "adapters/horizon/events/000001.json").unlink()
    for _ in range(2):
        with pytest.raises(Conflict, match="identical"):
            publish(folder_store)
    assert [e.digest for e in read_events(folder_store, "horizon")] == [digest]


# One child process: waits for the starting gun, publishes, says how it went.
_CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from registry_parts import publish_small
from styletune.errors import Conflict
from styletune.registry.store import open_store
store = open_store(sys.argv[2], create=True)
files = {f"part-{i}.bin": bytes([i]) * 40_000 for i in range(int(sys.argv[5]))}
files["who.txt"] = sys.argv[4].encode()
print("ready", flush=True)
sys.stdin.readline()
try:
    print(publish_small(store, sys.argv[3], files=files, who=sys.argv[4]).digest)
except Conflict as error:
    print("conflict", error.message)
"""


def _child(folder: Path, version: str, who: str, parts: int) -> subprocess.Popen[str]:
    arguments = [str(Path(__file__).parents[1]), str(folder), version, who, str(parts)]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _fire(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_one_of_many_publishers_wins(folder: Path) -> None:
    """Six processes publish one version: one digest, five Conflicts, the winner's bytes."""
    open_store(folder, create=True)
    children = [_child(folder, "1.0.0", f"p{i}", 3) for i in range(6)]
    assert [_line(child) for child in children] == ["ready"] * 6
    for child in children:
        _fire(child)
    answers = [child.communicate()[0].strip() for child in children]
    winners = [i for i, answer in enumerate(answers) if len(answer) == 64]
    assert len(winners) == 1, answers
    assert sum(answer.startswith("conflict") for answer in answers) == 5
    store = open_store(folder, create=False)
    manifest, digest = read_manifest(store, "horizon", "1.0.0")
    assert digest == answers[winners[0]]
    who = next(entry for entry in manifest.files if entry.path == "who.txt")
    assert get_blob(store, who.sha256) == f"p{winners[0]}".encode()
    (event,) = read_events(store, "horizon")
    assert (event.digest, event.who) == (digest, f"p{winners[0]}")


def test_many_versions_at_once_lose_no_event(folder: Path) -> None:
    """Six processes publish six versions: all are there, and every event."""
    open_store(folder, create=True)
    children = [_child(folder, f"1.0.{i}", f"p{i}", 1) for i in range(6)]
    for child in children:
        assert _line(child) == "ready"
    for child in children:
        _fire(child)
    for child in children:
        assert len(child.communicate()[0].strip()) == 64
    store = open_store(folder, create=False)
    versions = [f"1.0.{i}" for i in range(6)]
    assert list_versions(store, "horizon") == versions
    assert sorted(event.version for event in read_events(store, "horizon")) == versions


def _count(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


# When to kill: each is watched for while the child publishes 120 parts.
_MOMENTS: dict[str, Callable[[Path], bool]] = {
    "at once": lambda folder: folder.is_dir(),
    "first blob": lambda folder: _count(folder, "blobs/sha256/*/*") >= 1,
    "half of the blobs": lambda folder: _count(folder, "blobs/sha256/*/*") >= 60,
    "last blob": lambda folder: _count(folder, "blobs/sha256/*/*") >= 121,
    "manifest": lambda folder: _count(folder, "adapters/*/versions/*") >= 1,
    "event": lambda folder: _count(folder, "adapters/*/events/*") >= 1,
}


@pytest.mark.parametrize("moment", _MOMENTS)
def test_killed_publisher_leaves_old_or_new(folder: Path, moment: str) -> None:
    """After kill -9 the version is whole or not there, and publishing again finishes the job."""
    store = open_store(folder, create=True)
    child = _child(folder, "1.0.0", "ada", 120)
    assert _line(child) == "ready"
    _fire(child)
    deadline = time.monotonic() + 20
    while not _MOMENTS[moment](folder):
        assert time.monotonic() < deadline
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    there = list_versions(store, "horizon")
    assert there == [] or moment not in ("at once", "first blob")
    assert there == ["1.0.0"] or moment not in ("manifest", "event")
    files = {f"part-{i}.bin": bytes([i]) * 40_000 for i in range(120)} | {"who.txt": b"ada"}
    if there:
        manifest, _ = read_manifest(store, "horizon", "1.0.0")
        assert {e.path: get_blob(store, e.sha256) for e in manifest.files} == files
        with pytest.raises(Conflict, match="identical"):
            publish_small(store, files=files)
    else:
        assert read_events(store, "horizon") == ()
        publish_small(store, files=files)
    digest = read_manifest(store, "horizon", "1.0.0")[1]
    assert [event.digest for event in read_events(store, "horizon")] == [digest]


def test_manifest_is_canonical_json(publish: Publish) -> None:
    """The stored bytes are sorted, compact JSON, and reading them gives the same bytes."""
    store = open_store("memory:///", create=True)
    publish(store, description='Ünïcode "quotes" \u2028 and\nlines')
    manifest, _ = read_manifest(store, "horizon", "1.0.0")
    content = canonical(manifest)
    tree = json.loads(content)
    assert list(tree) == sorted(tree)
    assert b": " not in content.replace(tree["description"].encode(), b"")
    assert canonical(Manifest.model_validate_json(content)) == content


@pytest.mark.parametrize("name", ["@eaDir", "lost+found", ".snapshot", "Horizon", "x" * 200])
def test_foreign_folders_are_not_adapters(
    folder: Path, folder_store: ObjectStore, publish: Publish, name: str
) -> None:
    """File servers and finders make such folders; the registry is listed as if they were not."""
    publish(folder_store)
    (folder / "adapters" / name / "versions").mkdir(parents=True)
    assert list_names(folder_store) == ["horizon"]


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_publishing_the_same_again_restores_what_is_gone(
    folder: Path, folder_store: ObjectStore, publish: Publish, damage: str
) -> None:
    """The publisher holds the very bytes; other content restores nothing."""
    publish(folder_store)
    blobs = sorted(p for p in (folder / "blobs").rglob("*") if p.is_file())
    before = [blob.read_bytes() for blob in blobs]
    for blob in blobs:
        blob.unlink() if damage == "gone" else blob.write_bytes(b"")
    with pytest.raises(Conflict, match="different content"):
        publish(folder_store, description="Other horizons.")
    assert not any(blob.is_file() and blob.read_bytes() for blob in blobs)
    with pytest.raises(Conflict, match="identical content") as caught:
        publish(folder_store)
    assert "restored what was gone or damaged: README.md, diffusers/w.safetensors" in str(
        caught.value
    )
    assert [blob.read_bytes() for blob in blobs] == before
    with pytest.raises(Conflict) as again:
        publish(folder_store)
    assert "restored" not in str(again.value)

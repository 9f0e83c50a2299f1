"""From the registry into a folder: whole, right, or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import ObjectStore

from styletune.errors import IntegrityError, OutputError
from styletune.registry.manifest import FileEntry
from styletune.registry.package import sha256_sums
from styletune.registry.pull import pull
from styletune.registry.resolve import parse_spec
from styletune.registry.store import blob_key
from styletune.registry.versions import Published, read_manifest

Publish = Callable[..., Published]

SPEC = parse_spec("horizon@^1")
PLAIN = {"diffusers/w.safetensors": b"w" * 3000, "README.md": b"# hello\n"}
FILES = {**PLAIN, "SHA256SUMS": sha256_sums(PLAIN)}


def test_pulled_folder_is_the_published_one(
    store: ObjectStore, publish: Publish, tmp_path: Path
) -> None:
    """Every file comes with its bytes, the manifest beside them, and nothing else."""
    done = publish(store, files=FILES)
    pulled = pull(store, SPEC, tmp_path / "out")
    assert pulled.dir == tmp_path / "out" / "horizon" / "1.0.0"
    assert pulled.digest == done.digest
    found = {
        p.relative_to(pulled.dir).as_posix(): p.read_bytes()
        for p in pulled.dir.rglob("*")
        if p.is_file()
    }
    manifest = found.pop("manifest.json")
    assert hashlib.sha256(manifest).hexdigest() == done.digest
    assert found == FILES
    assert [p.name for p in pulled.dir.parent.iterdir()] == ["1.0.0"]
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=pulled.dir, check=True)


def test_pulling_again_touches_nothing(
    store: ObjectStore, publish: Publish, tmp_path: Path
) -> None:
    """A folder that is right is left alone, file by file."""
    publish(store, files=FILES)
    folder = pull(store, SPEC, tmp_path).dir
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert pull(store, SPEC, tmp_path).dir == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_tampered_blob_is_not_pulled(
    folder: Path, folder_store: ObjectStore, publish: Publish, tmp_path: Path, damage: str
) -> None:
    """One bad blob of many: IntegrityError, and nothing at all is written."""
    publish(folder_store, files=FILES)
    blob = folder / blob_key(hashlib.sha256(FILES["README.md"]).hexdigest())
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(b"# hullo\n" if damage == "changed" else b"# h")
    with pytest.raises(IntegrityError):
        pull(folder_store, SPEC, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tampered_manifest_is_not_pulled(
    folder: Path, folder_store: ObjectStore, publish: Publish, tmp_path: Path
) -> None:
    """A manifest that points a file at another blob is found by the event's digest."""
    publish(folder_store, files=FILES)
    file = folder / "adapters/horizon/versions/1.0.0.json"
    tree = json.loads(file.read_bytes())
    tree["files"][0]["sha256"] = tree["files"][1]["sha256"]
    file.write_bytes(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(IntegrityError, match="expected sha256"):
        pull(folder_store, SPEC, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _change(folder: Path, how: str) -> str:
    match how:
        case "changed":
            (folder / "README.md").write_bytes(b"# hellO\n")
        case "missing":
            (folder / "README.md").unlink()
        case "extra":
            (folder / "diffusers" / "virus.exe").write_bytes(b"")
        case "link":
            (folder / "README.md").rename(folder.parent / "r")
            (folder / "README.md").symlink_to(folder.parent / "r")
        case "linked folder":
            (folder / "more").symlink_to("/etc")
    return {
        "extra": "diffusers/virus.exe is extra",
        "linked folder": "more is extra",
        "changed": "README.md was changed",
        "missing": "README.md is missing",
        "link": "README.md is not a plain file",
    }[how]


@pytest.mark.parametrize("how", ["changed", "missing", "extra", "link", "linked folder"])
def test_differing_folder_is_named_file_by_file(
    store: ObjectStore, publish: Publish, tmp_path: Path, how: str
) -> None:
    """A second pull refuses a folder that was touched, and does not repair it."""
    publish(store, files=FILES)
    folder = pull(store, SPEC, tmp_path).dir
    message = _change(folder, how)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=message):
            pull(store, SPEC, tmp_path)


def test_rewritten_folder_is_found_by_the_registry(
    store: ObjectStore, publish: Publish, tmp_path: Path
) -> None:
    """A forger who rewrites file and manifest does not pass the check against the registry."""
    publish(store, files=PLAIN)
    folder = pull(store, SPEC, tmp_path).dir
    tree = json.loads((folder / "manifest.json").read_bytes())
    forged = b"# forged\n"
    entry = next(e for e in tree["files"] if e["path"] == "README.md")
    entry |= {"sha256": hashlib.sha256(forged).hexdigest(), "size": len(forged)}
    (folder / "README.md").write_bytes(forged)
    (folder / "manifest.json").write_bytes(
        json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    )
    with pytest.raises(IntegrityError, match=r"README\.md was changed.*manifest\.json is not"):
        pull(store, SPEC, tmp_path)


def test_file_in_place_of_the_folder(store: ObjectStore, publish: Publish, tmp_path: Path) -> None:
    """A file where the adapter's folder should be is an OutputError."""
    publish(store, files=FILES)
    (tmp_path / "horizon").write_text("")
    with pytest.raises(OutputError):
        pull(store, SPEC, tmp_path)


def test_empty_folder_in_the_place_is_not_a_version(
    store: ObjectStore, publish: Publish, tmp_path: Path
) -> None:
    """An empty folder with the version's name is reported, not filled."""
    publish(store, files=FILES)
    (tmp_path / "horizon" / "1.0.0").mkdir(parents=True)
    with pytest.raises(IntegrityError, match="missing"):
        pull(store, SPEC, tmp_path)


_CHILD = """
import sys
from pathlib import Path
from styletune.registry.pull import pull
from styletune.registry.resolve import parse_spec
from styletune.registry.store import open_store
store = open_store(sys.argv[1], create=False)
print("ready", flush=True)
sys.stdin.readline()
print(pull(store, parse_spec("horizon"), Path(sys.argv[2])).dir)
"""


def test_many_pull_at_once(
    folder: Path, folder_store: ObjectStore, publish: Publish, tmp_path: Path
) -> None:
    """Four processes pull one version into one place: all succeed, one folder, nothing left."""
    publish(folder_store, files=FILES)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(folder), str(tmp_path / "out")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    place = str(tmp_path / "out" / "horizon" / "1.0.0")
    assert [child.communicate()[0].strip() for child in children] == [place] * 4
    assert [p.name for p in (tmp_path / "out" / "horizon").iterdir()] == ["1.0.0"]
    pulled = pull(folder_store, SPEC, tmp_path / "out")
    assert (str(pulled.dir), pulled.manifest) == (
        place,
        read_manifest(folder_store, "horizon", "1.0.0")[0],
    )


def test_roles_follow_the_place(store: ObjectStore, publish: Publish) -> None:
    """Readers find the weights for their tool by role, not by guessing paths."""
    publish(store, files={**FILES, "webui/horizon_v1.0.0.safetensors": b"k"})
    manifest, _ = read_manifest(store, "horizon", "1.0.0")
    roles = {entry.path: entry.role for entry in manifest.files if isinstance(entry, FileEntry)}
    assert roles == {
        "README.md": "card",
        "SHA256SUMS": "checksums",
        "diffusers/w.safetensors": "weights-diffusers",
        "webui/horizon_v1.0.0.safetensors": "weights-webui",
    }


def test_what_file_managers_leave_behind_is_no_damage(
    store: ObjectStore, publish: Publish, tmp_path: Path
) -> None:
    """Finder, Windows and other tools write beside the files; those are still as published."""
    publish(store, files=FILES)
    folder = pull(store, SPEC, tmp_path / "out").dir
    for name in (".DS_Store", "diffusers/._w.safetensors", "Thumbs.db", "w.civitai.info"):
        (folder / name).write_bytes(b"x")
    assert pull(store, SPEC, tmp_path / "out").dir == folder
    (folder / "diffusers" / "other.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"other\.safetensors is extra"):
        pull(store, SPEC, tmp_path / "out")

"""Files in a run folder are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from styletune.errors import IntegrityError, NotFound, OutputError
from styletune.files import atomic_write, make_dir, read_json, write_json, write_text
from styletune.runs import Run


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """An exception in the middle leaves neither half a file nor a temporary one."""
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def fail_in_the_middle() -> None:
        with atomic_write(file) as stream:
            stream.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_named() -> None:
    """A device without space is an OutputError that says so."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    from styletune.files import output_errors

    def write_too_much() -> None:
        with output_errors(Path("/dev/full")), Path("/dev/full").open("wb") as stream:
            stream.write(b"x" * 10_000_000)

    with pytest.raises(OutputError, match="no space left"):
        write_too_much()


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    """Writing below a file is an OutputError with the path."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        make_dir(tmp_path / "file" / "below")


def test_json_has_no_nan(tmp_path: Path) -> None:
    """NaN is refused on writing; broken JSON is refused on reading."""
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(IntegrityError):
        read_json(tmp_path / "b.json")
    with pytest.raises(NotFound):
        read_json(tmp_path / "c.json")


def test_checkpoint_without_receipt_does_not_count(tmp_path: Path) -> None:
    """Only a checkpoint whose last file was written is listed, in order of its step."""
    run = Run(tmp_path)
    for step, whole in ((20, True), (3, True), (40, False)):
        run.checkpoint_dir(step).mkdir(parents=True)
        if whole:
            run.state_facts_file(step).write_text(json.dumps({"step": step}))
    assert run.checkpoint_steps() == [3, 20]

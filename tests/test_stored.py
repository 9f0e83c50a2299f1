"""What an earlier version wrote is still read: a run, its cache, and a registry.

``tests/stored/0.1.0.zip`` holds a brand folder, its finished run with the cache, and the registry
it was published to, as version 0.1.0 left them; the last step's optimizer state was removed.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from job_parts import Answer, one_thread, without_nothings
from styletune.adapters.file import load_adapter
from styletune.runs import Run

Command = Callable[..., Answer]
STORED = Path(__file__).parent / "stored" / "0.1.0.zip"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run, in a folder of its own that is the working directory."""
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    return Run(folder)


def times(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_stored_run_is_finished_and_scored(stored: Run, styletune: Command) -> None:
    """Its folder is found by the same name; nothing is trained, drawn or encoded again."""
    before = times(stored.dir)
    answer = styletune("train", "project/small.toml", "--json")
    assert answer.json["trained"] is False
    assert Path(answer.json["run_dir"]).resolve() == stored.dir
    again = styletune("score", "project/small.toml", "--json")
    summary = without_nothings(json.loads(stored.summary_file.read_text()))
    assert without_nothings(again.json) == {"schema_version": 1, **summary}
    assert times(stored.dir) == before


def test_training_resumes_from_a_stored_checkpoint(stored: Run, styletune: Command) -> None:
    """From step 20 with its cache to the adapter that the earlier version trained."""
    trained, _ = load_adapter(stored.adapter_file(40))
    shutil.rmtree(stored.checkpoint_dir(40))
    cached = times(stored.dir.parent.parent / ".cache")
    with one_thread():
        answer = styletune("train", "project/small.toml", "--json", "--set", "preview.prompts=[]")
    assert answer.json["trained"] is True, answer.err
    assert times(stored.dir.parent.parent / ".cache") == cached
    again, _ = load_adapter(stored.adapter_file(40))
    largest = max(float(t.abs().max()) for t in trained.values())
    assert all(float((again[n] - t).abs().max()) < 1e-3 * largest for n, t in trained.items())


def test_a_stored_version_is_pulled_and_used(stored: Run, styletune: Command) -> None:
    """Every checksum is verified, and images are generated with it."""
    answer = styletune(
        "generate", "small@^1", "--prompt", "the sea at noon", "--steps", "2", "--json"
    )
    assert answer.code == 0, answer.err
    (image,) = answer.json["images"]
    assert Path(image).stat().st_size > 0
    listed = styletune("registry", "list", "--json")
    assert listed.json == {"small": ["1.0.0"]}


def test_a_stored_run_is_published_again(stored: Run, styletune: Command) -> None:
    """Its scores are still current, so another version can be published from it."""
    answer = styletune("publish", "project/small.toml", "--set", "publish.version=1.1.0", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["version"] == "1.1.0"

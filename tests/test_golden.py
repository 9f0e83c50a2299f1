"""Nothing that was measured before has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import golden_run
from job_parts import Finished


def test_a_refactor_changes_no_number(finished: Finished, tmp_path: Path) -> None:
    """Losses, adapters, exports, scores and the published files are as recorded."""
    golden = json.loads(golden_run.FILE.read_text())
    found = golden_run.differences(golden, golden_run.measure(tmp_path, finished))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("runs", 0, "log", 11, "loss"), 0.5),
        (("runs", 1, "adapter"), "0" * 64),
        (("job", "files"), ["README.md"]),
        (("job", "weights", "diffusers/pytorch_lora_weights.safetensors"), "0" * 64),
        (("job", "scores", "step-000024/palette/value"), 1.0),
    ],
)
def test_a_change_is_named(path: tuple[str | int, ...], value: object) -> None:
    """A planted change of any recorded value is found, with its place."""
    golden = json.loads(golden_run.FILE.read_text())
    changed = json.loads(golden_run.FILE.read_text())
    names = [
        list(golden["runs"])[p] if i == 1 and isinstance(p, int) else p for i, p in enumerate(path)
    ]
    place = changed
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    found = golden_run.differences(golden, changed)
    assert found
    assert all("/".join(map(str, names)) in line for line in found)


def test_other_kernels_may_round() -> None:
    """On another processor a near number and another hash of weights are no difference."""
    golden = json.loads(golden_run.FILE.read_text())
    other = json.loads(golden_run.FILE.read_text())
    run = next(iter(other["runs"].values()))
    other["kernels"], run["adapter"] = "0" * 64, "1" * 64
    run["log"][0]["loss"] *= 1.001
    assert golden_run.differences(golden, other) == []
    run["log"][0]["loss"] *= 2
    assert len(golden_run.differences(golden, other)) == 1

"""The budget of seconds for a test file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from budget import over_budget, slowest_files


def test_the_slowest_files_come_first() -> None:
    """Twenty at most, with their seconds."""
    lines = slowest_files({f"tests/test_{n}.py": float(n) for n in range(30)})
    assert len(lines) == 20
    assert lines[0].split() == ["29.0", "s", "tests/test_29.py"]


@pytest.mark.parametrize(
    ("longest_s", "files", "is_over"),
    [(130, 20, True), (110, 20, False), (130, 200, False), (130, 5, False)],
)
def test_only_a_long_file_of_a_long_session_is_over(
    longest_s: float, files: int, is_over: bool
) -> None:
    """Neither a fast file, nor a third of a slow machine's session, nor a session of few files."""
    seconds = {f"tests/test_{n}.py": 5.0 for n in range(files - 1)}
    messages = over_budget({**seconds, "tests/test_long.py": longest_s})
    assert bool(messages) is is_over
    assert all("tests/test_long.py took 130 s" in message for message in messages)


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_session_over_budget_fails(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """With one process and with several: the files are listed, and the exit code is 1."""
    hooks = (Path(__file__).parent / "conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(hooks + "\nimport budget\nbudget.LONGEST_S = 0.2\n")
    for n in range(12):
        pause = 1.0 if n == 7 else 0.0
        (tmp_path / f"test_{n}.py").write_text(
            f"import time\ndef test_it() -> None:\n    time.sleep({pause})\n"
        )
    path = f"pythonpath={Path(__file__).parent} {Path(__file__).parents[1] / 'scripts'}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", path, *workers, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_7.py took 1 s" in done.stdout
    assert "12 passed" in done.stdout

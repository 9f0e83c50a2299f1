"""Fixtures for all tests: a brand folder, a finished run, the command line. And their budget."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from budget import over_budget, slowest_files
from job_parts import Answer, Finished, call, finished_job, read_finished, write_brand

# Seconds of each file's tests, without those marked slow.
SECONDS: defaultdict[str, float] = defaultdict(float)
# The longest files, started first so that no worker is left alone with one at the end.
FIRST = (
    "tests/training/test_processes.py",
    "tests/test_job.py",
    "tests/training/test_loop_effects.py",
    "tests/test_api.py",
    "tests/adapters/test_adapter_kinds.py",
    "tests/test_cli_errors.py",
    "tests/training/test_resume.py",
    "tests/planning/test_memory.py",
    "tests/test_data_commands.py",
    "tests/test_golden.py",
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Facts about images are kept for this session only, and not in anybody's home."""
    os.environ["STYLETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def styletune() -> Callable[..., Answer]:
    return call


@pytest.fixture
def brand(tmp_path: Path) -> Path:
    """A fresh recipe beside its images."""
    return write_brand(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One for all workers of the session: the first that needs it makes it."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    with FileLock(place / "finished.lock"):
        return read_finished(place / "finished") or finished_job(place / "finished")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    order = {file: i for i, file in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(FIRST)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up each file's seconds; in the process that reports, whoever ran the test."""
    if "slow" not in report.keywords:
        SECONDS[report.nodeid.partition("::")[0]] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if one file took more than its share."""
    if not hasattr(session.config, "workerinput") and over_budget(SECONDS):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the slowest files."""
    terminalreporter.section("slowest files")
    for line in [*slowest_files(SECONDS), *over_budget(SECONDS)]:
        terminalreporter.write_line(line)

"""Fixtures for all tests: a brand folder, a finished run, the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from job_parts import Answer, Finished, call, finished_job, write_brand


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
    return finished_job(tmp_path_factory.mktemp("finished"))

"""A registry in a folder and one in memory, and something to publish to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import ObjectStore

from registry_parts import publish_small
from styletune.registry.store import open_store
from styletune.registry.versions import Published

Publish = Callable[..., Published]


@pytest.fixture
def publish() -> Publish:
    return publish_small


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    place = tmp_path / "registry" if request.param == "folder" else "memory:///"
    return open_store(place, create=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def folder_store(folder: Path) -> ObjectStore:
    return open_store(folder, create=True)

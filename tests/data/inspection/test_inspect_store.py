"""Facts and features that are kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.features import check_encoder
from styletune.data.inspection.store import (
    close_store,
    default_store_path,
    facts_key,
    get_facts,
    get_features,
    open_facts,
    put_facts,
    put_features,
)
from styletune.errors import NotFound

FACTS = ImageFacts(
    width=3,
    height=2,
    pixel_hash="ab",
    format="PNG",
    stored_mode="P",
    profile="Größe",
    turned=True,
    transparent_share=1 / 3,
    opt_out="",
    structure=(1 << 767) + 5,
    small=bytes(range(256)) * 48,
    thumbnail=b"RIFF\0\xff",
    quality={"brightness": 0.1, "entropy": 7.123456789012345},
)


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    """Every field, to the last bit, after closing and opening again."""
    key = facts_key("0" * 64, "#ffffff")
    store = open_facts(tmp_path / "new" / "folder" / "facts.sqlite")
    assert get_facts(store, key) is None
    put_facts(store, {key: FACTS})
    close_store(store)
    again = open_facts(tmp_path / "new" / "folder" / "facts.sqlite")
    assert get_facts(again, key) == FACTS
    assert (again.hits, again.misses, again.note) == (1, 0, "")


def test_the_key_is_content_and_background() -> None:
    """Another file or another background is another key; the same is the same."""
    keys = {facts_key(file, color) for file in ("a", "b") for color in (None, "#ffffff", "#000000")}
    assert len(keys) == 6
    assert facts_key("a", None) in keys


def test_features_are_kept_by_image_and_encoder(tmp_path: Path) -> None:
    """Exact float32 numbers, only for the encoder and the images asked for, any number of them."""
    store = open_facts(tmp_path / "facts.sqlite")
    rng = np.random.default_rng(0)
    features = {f"{n:04}": rng.normal(size=16).astype(np.float32) for n in range(1200)}
    put_features(store, "mini", features)
    put_features(store, "other", {"0001": np.zeros(4, np.float32)})
    found = get_features(store, "mini", [*features, "missing"])
    assert found.keys() == features.keys()
    assert all((found[name] == features[name]).all() for name in features)
    assert found["0001"].dtype == np.float32
    assert get_features(store, "other", ["0001", "0002"]).keys() == {"0001"}


@pytest.mark.parametrize("damage", ["text", "header", "middle"])
def test_a_damaged_store_is_set_aside(tmp_path: Path, damage: str) -> None:
    """It is renamed, said, and a new one is begun that keeps things again."""
    place = tmp_path / "facts.sqlite"
    store = open_facts(place)
    put_facts(store, {str(n): replace(FACTS, width=n + 1) for n in range(200)})
    close_store(store)
    content = bytearray(place.read_bytes())
    if damage == "text":
        content = bytearray(b"this is no database, but it is long enough to be read" * 99)
    elif damage == "header":
        content[:16] = b"X" * 16
    else:
        content[4096:] = b"\xee" * (len(content) - 4096)
    place.write_bytes(content)

    again = open_facts(place)
    assert get_facts(again, "7") is None
    assert "damaged" in again.note
    (aside,) = [file for file in tmp_path.iterdir() if ".damaged-" in file.name]
    assert str(aside) in again.note
    assert aside.read_bytes() == bytes(content)
    put_facts(again, {"7": FACTS})
    close_store(again)
    assert get_facts(open_facts(place), "7") == FACTS


def test_a_closed_store_is_asked_in_vain_and_stays(tmp_path: Path) -> None:
    """An interrupted check's threads may ask after it is closed; the file is as it was."""
    place = tmp_path / "facts.sqlite"
    store = open_facts(place)
    put_facts(store, {"7": FACTS})
    close_store(store)
    assert get_facts(store, "7") is None
    put_facts(store, {"8": FACTS})
    assert get_features(store, "mini", ["ab"]) == {}
    assert (store.note, [file.name for file in tmp_path.iterdir()]) == ("", [place.name])
    assert get_facts(open_facts(place), "7") == FACTS


def test_a_place_that_cannot_be_written_is_said_and_survived(tmp_path: Path) -> None:
    """Where the folder is a file, the check still works, and the note names place and remedy."""
    (tmp_path / "file").write_text("in the way")
    store = open_facts(tmp_path / "file" / "facts.sqlite")
    assert str(tmp_path / "file") in store.note
    assert "STYLETUNE_CACHE" in store.note
    put_facts(store, {"a": FACTS})
    assert get_facts(store, "a") == FACTS
    assert open_facts(None).note


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_and_survived(tmp_path: Path) -> None:
    """A home without permission to write."""
    tmp_path.chmod(0o500)
    store = open_facts(tmp_path / "cache" / "facts.sqlite")
    tmp_path.chmod(0o700)
    assert "ermission" in store.note


def test_the_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """STYLETUNE_CACHE before XDG_CACHE_HOME before the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STYLETUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_store_path() == tmp_path / ".cache" / "styletune" / "facts.sqlite"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_store_path() == tmp_path / "xdg" / "styletune" / "facts.sqlite"
    monkeypatch.setenv("STYLETUNE_CACHE", str(tmp_path / "own"))
    assert default_store_path() == tmp_path / "own" / "facts.sqlite"


WRITER = """
import sys
from pathlib import Path
import numpy as np
from styletune.data.inspection.store import open_facts, put_features, get_features
store, who = open_facts(Path(sys.argv[1])), sys.argv[2]
for n in range(100):
    put_features(store, "mini", {f"{who}-{n}": np.full(512, n, np.float32)})
    get_features(store, "mini", [f"{who}-{n}"])
assert not store.note, store.note
"""


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    """Both write at the same time and nothing is lost."""
    place = tmp_path / "facts.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(place), who], stderr=subprocess.PIPE)
        for who in ("a", "b")
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said.decode()
    names = [f"{who}-{n}" for who in ("a", "b") for n in range(100)]
    assert get_features(open_facts(place), "mini", names).keys() == set(names)


@pytest.mark.parametrize("name", ["clip", "local-dir:nowhere"])
def test_a_wrong_encoder_is_said_where_it_is_set(tmp_path: Path, name: str) -> None:
    """The error names the key of the recipe; none and the embedded one pass."""
    with pytest.raises(NotFound) as refused:
        check_encoder(name, tmp_path)
    assert refused.value.where == f"data.encoder = {name!r}"
    check_encoder("none", tmp_path)
    check_encoder("mini", tmp_path)

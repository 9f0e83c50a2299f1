"""Folders, several sources at once, Hub data sets, rights, repeats and hostile names."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from styletune.data.findings import CODES, Finding
from styletune.data.sources.item_bytes import read_item
from styletune.data.sources.items import Item, Rights
from styletune.data.sources.listing import Listing, list_sources, resolve_sources
from styletune.data.sources.source import Source
from styletune.errors import DataError, NotFound
from styletune.recipe.data_sections import AllowedCode, DataSection, SourceSection


def image(file: Path, caption: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def opened(folder: Path, *paths: str, default: str | None = None) -> Listing:
    sources = resolve_sources(
        DataSection(sources=tuple(SourceSection(path=path) for path in paths)), folder
    )
    return list_sources(sources, default_caption=default)


def by_name(found: Listing) -> dict[str, Item]:
    assert len({item.file_name for item in found.items}) == len(found.items)
    return {item.file_name: item for item in found.items}


def finding(found: Listing, code: str) -> Finding:
    (only,) = [f for f in found.findings if f.code == code]
    return only


def errors(found: Listing) -> list[str]:
    return [f.code for f in found.findings if f.severity == "error"]


def test_only_errors_can_be_allowed() -> None:
    """Every code that a recipe may lower exists and is an error."""
    assert {CODES[code][0] for code in get_args(AllowedCode)} == {"error"}


def test_one_source_keeps_plain_names_and_several_are_prefixed(tmp_path: Path) -> None:
    """Equal names in two folders are two images, told apart by their source."""
    image(tmp_path / "a/x.png", "one")
    image(tmp_path / "b/x.png", "two")
    assert list(by_name(opened(tmp_path, "a"))) == ["x.png"]
    both = by_name(opened(tmp_path, "a", "b"))
    assert {name: item.text for name, item in both.items()} == {"a/x.png": "one", "b/x.png": "two"}
    assert {item.origin for item in both.values()} == {"a", "b"}


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    """Their images could not be told apart; a name of its own is the way out."""
    image(tmp_path / "a/set/x.png", "one")
    image(tmp_path / "b/set/x.png", "two")
    with pytest.raises(DataError, match="two sources are called set"):
        opened(tmp_path, "a/set", "b/set")
    sections = [SourceSection(path="a/set"), SourceSection(path="b/set", name="other")]
    found = list_sources(
        resolve_sources(DataSection(sources=tuple(sections)), tmp_path), default_caption=None
    )
    assert list(by_name(found)) == ["set/x.png", "other/x.png"]


def test_a_source_sets_what_its_images_count(tmp_path: Path) -> None:
    """Repeats, weight, caption and background of the source stand in each item, with a fact."""
    image(tmp_path / "a/x.png")
    image(tmp_path / "a/y.png", "own")
    (tmp_path / "a/dataset.toml").write_text('background = "#112233"')
    section = SourceSection(path="a", repeats=3, weight=0.5, default_caption="theirs")
    sources = resolve_sources(DataSection(sources=(section,)), tmp_path)
    found = list_sources(sources, default_caption="ours")
    items = by_name(found)
    assert [(i.repeats, i.weight, i.background) for i in items.values()] == [
        (3, 0.5, "#112233")
    ] * 2
    assert [i.text for i in items.values()] == ["theirs", "own"]
    assert "2 images 3 times" in finding(found, "repeats").message
    other = list_sources(sources, default_caption=None, background="#ffffff").items[0]
    assert other.background == "#ffffff"


def test_faults_name_the_source(tmp_path: Path) -> None:
    """With several sources, messages and files say which one."""
    image(tmp_path / "a/x.png", "one")
    image(tmp_path / "b/y.png")
    found = finding(opened(tmp_path, "a", "b"), "missing-caption")
    assert found.files == ("b/y.png",)
    assert found.message.startswith("b: ")


def test_metadata_overrides_the_card_for_each_image(tmp_path: Path) -> None:
    """Rights come field by field from the image's row, else from the card."""
    for name in ("a.png", "b.png"):
        image(tmp_path / "set" / name)
    (tmp_path / "set/dataset.toml").write_text('license = "MIT"\nholder = "Card"')
    rows = [
        {"file_name": "a.png", "text": "x", "license": "CC0-1.0", "consent": "mail of 3 May"},
        {"file_name": "b.png", "text": "y", "license": "", "machine_caption": True},
    ]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = opened(tmp_path, "set")
    items = by_name(found)
    assert items["a.png"].rights == Rights("CC0-1.0", "Card", "mail of 3 May", "")
    assert items["b.png"].rights == Rights("MIT", "Card", "", "")
    assert [i.machine_caption for i in items.values()] == [False, True]
    assert found.cards["set"].holder == "Card"


def test_metadata_may_be_parquet(tmp_path: Path) -> None:
    """Columns of a table are read like those of the other two kinds."""
    image(tmp_path / "set/a.png")
    rows = {"file_name": ["a.png"], "text": ["x"], "machine_caption": [True], "holder": ["H"]}
    pq.write_table(pa.table(rows), tmp_path / "set/metadata.parquet")
    (item,) = opened(tmp_path, "set").items
    assert (item.text, item.machine_caption, item.rights.holder) == ("x", True, "H")


def test_metadata_may_hold_rights_alone(tmp_path: Path) -> None:
    """Captions then come from the files beside the images; a column caption is not overlooked."""
    image(tmp_path / "set/a.png", "own")
    (tmp_path / "set/metadata.csv").write_text("file_name,license\na.png,MIT\n")
    (item,) = opened(tmp_path, "set").items
    assert (item.text, item.rights.license) == ("own", "MIT")
    (tmp_path / "set/metadata.csv").write_text("file_name,license,caption\na.png,MIT,x\n")
    assert 'rename "caption" to "text"' in finding(opened(tmp_path, "set"), "bad-metadata").fix


@pytest.mark.parametrize(
    ("header", "cells", "said"),
    [
        ("licence", "MIT", "unknown names: licence"),
        ("machine_caption", "maybe", "machine_caption is neither"),
    ],
)
def test_a_misspelled_right_is_not_overlooked(
    tmp_path: Path, header: str, cells: str, said: str
) -> None:
    """A column that is nearly one that is read, and a value that is no truth, are errors."""
    image(tmp_path / "set/a.png")
    (tmp_path / "set/metadata.csv").write_text(f"file_name,text,{header}\na.png,x,{cells}\n")
    assert said in finding(opened(tmp_path, "set"), "bad-metadata").message


def test_json_beside_an_image_is_a_caption(tmp_path: Path) -> None:
    """Key text or caption; other JSON says nothing; two unlike captions are an error."""
    for name in ("a", "b", "c", "d"):
        image(tmp_path / f"set/{name}.png", {"b": "same", "d": "one"}.get(name))
    (tmp_path / "set/a.json").write_text('{"caption": "words", "license": "MIT"}')
    (tmp_path / "set/b.json").write_text('{"text": "same", "width": 8}')
    (tmp_path / "set/c.json").write_text('{"shapes": []}')
    (tmp_path / "set/d.json").write_text('{"text": "two"}')
    found = opened(tmp_path, "set")
    items = by_name(found)
    assert (items["a.png"].text, items["a.png"].rights.license) == ("words", "MIT")
    assert items["b.png"].text == "same"
    assert finding(found, "missing-caption").files == ("c.png",)
    assert finding(found, "ambiguous-caption").files == ("d.png",)
    (tmp_path / "set/c.json").write_text('{"text": "\\ud800"}')
    assert "half of a Unicode" in finding(opened(tmp_path, "set"), "bad-metadata").message


def test_kohya_folders_are_repeats_and_captions(tmp_path: Path) -> None:
    """N_words in every folder: N repeats, words where there is no caption, and a fact says so."""
    image(tmp_path / "set/10_sks_dog/a.png")
    image(tmp_path / "set/10_sks_dog/b.png", "own")
    image(tmp_path / "set/1_a style/c.png")
    found = opened(tmp_path, "set")
    assert {n: (i.repeats, i.text) for n, i in by_name(found).items()} == {
        "10_sks_dog/a.png": (10, "sks_dog"),
        "10_sks_dog/b.png": (10, "own"),
        "1_a style/c.png": (1, "a style"),
    }
    assert errors(found) == []
    fact = finding(found, "repeats")
    assert (fact.severity, fact.files) == ("fact", ("10_sks_dog/a.png", "10_sks_dog/b.png"))
    assert "2 images 10 times" in fact.message


@pytest.mark.parametrize(
    "names",
    [
        ["2024_shoot/a.png"],
        ["10_dog/a.png", "b.png"],
        ["10_dog/a.png", "cats/b.png"],
        ["01_logos/a.png", "02_posters/b.png"],
        ["10_dog/deep/a.png"],
        ["0_dog/a.png"],
        ["10_/a.png"],
    ],
)
def test_folders_that_only_look_so_are_ordinary(tmp_path: Path, names: list[str]) -> None:
    """A year, a numbered list or a mixture is not taken for repeats."""
    for name in names:
        image(tmp_path / "set" / name)
    found = opened(tmp_path, "set")
    assert {item.repeats for item in found.items} == {1}
    assert finding(found, "missing-caption").files == tuple(sorted(names))


def test_archives_among_images_are_not_overlooked(tmp_path: Path) -> None:
    """Their images would be missing from the set without a word."""
    image(tmp_path / "set/a.png", "x")
    for name in ("more.zip", "old.tar", "t.parquet", "u.rar"):
        (tmp_path / "set" / name).write_bytes(b"x")
    assert finding(opened(tmp_path, "set"), "foreign-file").files == (
        "more.zip",
        "old.tar",
        "t.parquet",
        "u.rar",
    )


def test_hostile_names_arrive_unharmed(tmp_path: Path) -> None:
    """Spaces, line breaks, dashes and both Unicode forms of a name are different images."""
    composed = unicodedata.normalize("NFC", "café.png")
    names = [
        composed,
        unicodedata.normalize("NFD", composed),
        "-rf.png",
        "a b.png",
        "a\nb.png",
        "'; drop.png",
        "…/😀.png",
    ]
    for name in names:
        image(tmp_path / "set" / name, f"caption of {name}")
    items = by_name(opened(tmp_path, "set"))
    assert sorted(items) == sorted(names)
    for name, item in items.items():
        assert item.text == f"caption of {name}"
        assert Path(item.path).is_file()


def test_a_name_that_is_not_text_is_reported(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 could not be written into any manifest."""
    image(tmp_path / "set/a.png", "x")
    Path(os.fsdecode(os.fsencode(tmp_path / "set") + b"/b\xff.png")).write_bytes(b"x")
    found = finding(opened(tmp_path, "set"), "broken-file")
    assert found.files == ("b\\xff.png",)
    assert found.files[0].encode()


def test_link_loops_and_pipes_do_not_hang(tmp_path: Path) -> None:
    """A link to itself and a pipe are named as broken; they are never opened."""
    image(tmp_path / "set/a.png", "x")
    (tmp_path / "set/loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "set/pipe.png")
    (tmp_path / "set/folder.png").mkdir()
    found = opened(tmp_path, "set")
    assert finding(found, "broken-file").files == ("loop.png", "pipe.png")
    assert len(found.items) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_reported(tmp_path: Path) -> None:
    """Its images are not skipped in silence."""
    image(tmp_path / "set/a.png", "x")
    image(tmp_path / "set/closed/b.png", "x")
    (tmp_path / "set/closed").chmod(0)
    try:
        assert finding(opened(tmp_path, "set"), "broken-file").files == ("closed/",)
    finally:
        (tmp_path / "set/closed").chmod(0o755)


def test_a_path_that_is_not_there_names_its_neighbor(tmp_path: Path) -> None:
    """Also for a zip, and also when the path looks like a Hub id."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/brand.zip").write_bytes(b"")
    with pytest.raises(NotFound) as caught:
        opened(tmp_path, "images/brnad.zip")
    assert "brand.zip" in caught.value.fix
    with pytest.raises(DataError, match="not a Hub data set"):
        resolve_sources(
            DataSection(sources=(SourceSection(path="images", revision="abc"),)), tmp_path
        )


@pytest.mark.parametrize(
    "keys", [{"split": "test"}, {"image_column": "pixels"}, {"caption_column": "caption"}]
)
def test_keys_that_cannot_apply_are_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    """A folder of images and an archive have no splits and no columns; defaults do no harm."""
    image(tmp_path / "set/a.png", "x")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "set/a.png", "a.png")
        archive.write(tmp_path / "set/a.txt", "a.txt")
    for path in ("set", "b.zip"):
        section = SourceSection(path=path, **keys)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=f"has no {next(iter(keys))}"):
            list_sources(
                resolve_sources(DataSection(sources=(section,)), tmp_path), default_caption=None
            )
        spelt = SourceSection(path=path, split="train", image_column="image", caption_column="text")
        sources = resolve_sources(DataSection(sources=(spelt,)), tmp_path)
        assert len(list_sources(sources, default_caption=None).items) == 1


def hub_commit(cache: Path, name: str, commit: str) -> Path:
    """A snapshot as huggingface_hub lays it out: links to blobs that have no extension."""
    folder = cache / f"datasets--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    image(folder / "blobs/aa.png", "of the hub")
    for blob, target in (("aa.png", "train/x.png"), ("aa.txt", "train/x.txt")):
        (folder / "blobs" / blob).rename(folder / "blobs" / blob.replace(".", ""))
        (snapshot / target).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / target).symlink_to(folder / "blobs" / blob.replace(".", ""))
    image(snapshot / "test/y.png", "not this one")
    return snapshot


def test_a_hub_data_set_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One commit needs no pin, several do; a split is a folder; nothing here is a command."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(NotFound) as caught:
        opened(tmp_path, "owner/name")
    assert "hf download owner/name --repo-type dataset" in caught.value.fix
    hub_commit(tmp_path / "hub", "owner/name", "a" * 40)
    (item,) = opened(tmp_path, "owner/name").items
    assert (item.file_name, item.text, item.origin) == ("x.png", "of the hub", "name")
    source = read_item(item.path, item.member)
    assert isinstance(source, Path)
    with Image.open(source) as image:
        assert image.size == (8, 8)
    (tmp_path / "hub/datasets--owner--name/snapshots" / ("b" * 40)).mkdir()
    with pytest.raises(DataError, match="several commits") as several:
        opened(tmp_path, "owner/name")
    assert (
        f'[[data.sources]] with path = "owner/name", revision = "{"b" * 40}"' in several.value.fix
    )
    section = SourceSection(path="owner/name", revision="aaaaaaa")
    assert "a" * 40 in str(resolve_sources(DataSection(sources=(section,)), tmp_path)[0].path)
    with pytest.raises(NotFound, match="revision dddd of owner/name") as absent:
        resolve_sources(
            DataSection(sources=(SourceSection(path="owner/name", revision="dddd"),)), tmp_path
        )
    assert f'revision = "{"b" * 40}"' in absent.value.fix
    assert absent.value.where == "[[data.sources]] revision"
    section = SourceSection(path="owner/name", revision="a" * 40, split="dev")
    with pytest.raises(DataError, match="no split dev; there are: test, train") as no_split:
        list_sources(
            resolve_sources(DataSection(sources=(section,)), tmp_path), default_caption=None
        )
    assert no_split.value.fix == '[[data.sources]] with split = "test"'
    (tmp_path / "hub/datasets--owner--name/blobs/cc.incomplete").write_bytes(b"")
    with pytest.raises(NotFound, match="interrupted"):
        opened(tmp_path, "owner/name")


def test_a_source_that_vanished_is_not_found(tmp_path: Path) -> None:
    """Between the recipe and the opening a disk may be unplugged."""
    with pytest.raises(NotFound):
        list_sources(
            [Source(SourceSection(path="gone"), "gone", tmp_path / "gone")], default_caption=None
        )

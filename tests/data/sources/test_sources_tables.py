"""Parquet and Arrow in the Hugging Face layout."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from styletune.data.sources import tables
from styletune.data.sources.item_bytes import read_item
from styletune.data.sources.listing import Listing, list_sources, resolve_sources
from styletune.errors import DataError
from styletune.recipe.data_sections import DataSection, SourceSection


def png(color: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(i) for i in range(10)]


def columns(**more: list[Any]) -> dict[str, list[Any]]:
    image = [{"bytes": b, "path": f"of/{i}.png"} for i, b in enumerate(IMAGES)]
    return {"image": image, "text": [f"number {i}" for i in range(10)], **more}


def write_parquet(file: Path, table: pa.Table) -> Path:
    pq.write_table(table, file, row_group_size=3)
    return file


def write_stream(file: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return file


def write_file(file: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return file


WRITERS: list[tuple[str, Callable[[Path, pa.Table], Path]]] = [
    ("a.parquet", write_parquet),
    ("a.arrow", write_stream),
    ("a.arrow", write_file),
]


def opened(path: Path, default: str | None = None, **keys: str) -> Listing:
    section = SourceSection(path=str(path), **keys)  # type: ignore[arg-type]
    return list_sources(
        resolve_sources(DataSection(sources=(section,)), path.parent), default_caption=default
    )


def said(found: Listing) -> str:
    assert found.findings
    return "\n".join(f"{f.code}: {f.message} ({f.fix})" for f in found.findings)


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_table_is_read(
    tmp_path: Path, name: str, write: Callable[[Path, pa.Table], Path]
) -> None:
    """Bytes, captions and rights of every row, over several row groups and in any order."""
    rights = [None, "MIT", *[""] * 8]
    table = pa.table(columns(license=rights, machine_caption=[True, *[None] * 9]))
    found = opened(write(tmp_path / name, table))
    assert found.findings == []
    assert [i.file_name for i in found.items] == [f"{n:06d}-{n}.png" for n in range(10)]
    assert [i.text for i in found.items] == [f"number {n}" for n in range(10)]
    assert [i.rights.license for i in found.items[:3]] == ["", "MIT", ""]
    assert [i.machine_caption for i in found.items[:2]] == [True, False]
    backwards = [read_item(i.path, i.member) for i in reversed(found.items)]
    assert backwards[::-1] == IMAGES


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_raw_bytes_and_other_columns_are_read(
    tmp_path: Path, name: str, write: Callable[[Path, pa.Table], Path]
) -> None:
    """A binary column, under names that the source gives; a null caption is none."""
    table = pa.table({"pixels": IMAGES, "caption": ["x", None, *["y"] * 8]})
    file = write(tmp_path / name, table)
    found = opened(file, image_column="pixels", caption_column="caption")
    assert [read_item(i.path, i.member) for i in found.items] == IMAGES
    assert [f.files for f in found.findings] == [("000001",)]
    message = said(opened(file, "default"))
    assert '[[data.sources]] with image_column = "pixels"' in message
    assert '[[data.sources]] with caption_column = "caption"' in message


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    """``to_parquet`` and ``save_to_disk`` of the library, image feature and all."""
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_dict(columns(), features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        found = opened(path)
        assert found.findings == []
        assert [read_item(i.path, i.member) for i in found.items] == IMAGES


def test_a_split_is_chosen_among_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the words of their names; others only, or names without a split beside, are errors."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    table = pa.table(columns())
    folder = tmp_path / "datasets--owner--name/snapshots" / ("a" * 40)
    (folder / "data").mkdir(parents=True)
    hub = Path("owner/name")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet(folder / f"data/{name}.parquet", table)
    found = opened(hub)
    assert len(found.items) == len({i.file_name for i in found.items}) == 20
    assert found.items[0].file_name == "train-00000-of-00002.parquet/000000-0.png"
    assert len(opened(hub, split="test").items) == 10
    with pytest.raises(DataError, match="no split dev; there are: test, train"):
        opened(hub, split="dev")
    write_parquet(folder / "data/extra.parquet", table)
    assert "bad-archive: shards that name no split" in said(opened(hub))


def test_all_shards_of_a_local_folder_are_read(tmp_path: Path) -> None:
    """Whatever their names say; several splits in one folder are an error that names them."""
    table = pa.table(columns())
    for name in ("shoot-dev-0", "shoot-dev-1", "extra"):
        write_parquet(tmp_path / f"{name}.parquet", table)
    found = opened(tmp_path)
    assert found.findings == []
    assert len(found.items) == 30
    write_parquet(tmp_path / "train-0.parquet", table)
    (only,) = opened(tmp_path).findings
    assert (only.code, only.severity) == ("bad-archive", "error")
    assert only.files == ("shoot-dev-0.parquet", "shoot-dev-1.parquet", "train-0.parquet")
    assert "dev, train" in only.message
    assert "[[data.sources]]" in only.fix


def test_a_hub_table_is_found_among_pictures_of_its_read_me(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards in ``data`` are the set, through links to blobs without an extension."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--owner--name"
    snapshot = folder / "snapshots" / ("a" * 40)
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "logo.png").write_bytes(png())
    write_parquet(folder / "blob", pa.table(columns()))
    (snapshot / "data/train-00000-of-00001.parquet").symlink_to(folder / "blob")
    sources = resolve_sources(DataSection(path="owner/name"), tmp_path)
    found = list_sources(sources, default_caption=None)
    assert found.findings == []
    assert [read_item(i.path, i.member) for i in found.items] == IMAGES


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({"text": ["x"]}, ["bad-archive: no column image; columns: text"]),
        ({"image": ["a.png"], "text": ["x"]}, ["contains string, not encoded images"]),
        ({"image": [[png()]], "text": ["x"]}, ["not encoded images"]),
        ({"image": [png()], "text": [["x", "y"]]}, ["bad-metadata", "not text"]),
        ({"image": [png()], "text": [3]}, ["column text contains int64, not text"]),
        ({"image": [png()], "text": ["x"], "licence": ["MIT"]}, ['"licence" to "license"']),
        ({"image": [png()]}, ["missing-caption: 1 of 1 images"]),
        ({"image": [png()], "text": [" "]}, ["empty-caption"]),
        ({"image": pa.array([], pa.binary()), "text": []}, ["no-images"]),
    ],
)
def test_columns_that_cannot_be_used_are_named(
    tmp_path: Path, table: dict[str, Any], parts: list[str]
) -> None:
    """What is there, what is wanted, and the key that would help."""
    message = said(opened(write_parquet(tmp_path / "a.parquet", pa.table(table))))
    for part in parts:
        assert part in message


def test_a_row_without_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    """A path alone names a file of another machine."""
    table = pa.table({"image": [{"bytes": None, "path": "/data/a.png"}], "text": ["x"]})
    for name, write in WRITERS:
        typed = table.cast(
            pa.schema(
                {
                    "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
                    "text": pa.string(),
                }
            )
        )
        (item,) = opened(write(tmp_path / name, typed)).items
        with pytest.raises(DataError, match="contains no image"):
            read_item(item.path, item.member)


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_damaged_table_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path, pa.Table], Path]
) -> None:
    """Something else, nothing, or a file cut short gives one finding and no image."""
    whole = write(tmp_path / name, pa.table(columns())).read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-30]):
        (tmp_path / name).write_bytes(content)
        found = opened(tmp_path / name)
        if content == whole[:-30] and found.items:
            # A stream may end without its end mark; all rows were there.
            assert [i.text for i in found.items] == [f"number {n}" for n in range(10)]
            continue
        assert found.items == ()
        assert [f.code for f in found.findings] == ["bad-archive"]


def test_a_giant_row_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have to be read whole for each of its images."""
    file = write_parquet(tmp_path / "a.parquet", pa.table(columns()))
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 100)
    assert "smaller row groups" in said(opened(file))


def test_a_changed_table_is_read_anew(tmp_path: Path) -> None:
    """Nothing of the old file is served from memory."""
    for name, write in WRITERS:
        file = write(tmp_path / name, pa.table(columns()))
        (first, *_) = opened(file).items
        assert read_item(first.path, first.member) == IMAGES[0]
        file.unlink()
        write(file, pa.table({"image": [png(99) + b"longer"], "text": ["z"]}))
        assert read_item(first.path, first.member) == png(99) + b"longer"

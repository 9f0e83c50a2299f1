"""Zip and tar: read in place, and refused when they are not safe."""

from __future__ import annotations

import io
import json
import random
import stat
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from styletune.data.sources import archives
from styletune.data.sources.item_bytes import read_item
from styletune.data.sources.listing import Listing, list_sources, resolve_sources
from styletune.errors import DataError, RecipeError
from styletune.recipe.data_sections import DataSection

Members = dict[str, bytes]


def png(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(stream, "PNG")
    return stream.getvalue()


def write_zip(file: Path, members: Members) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def write_tar(file: Path, members: Members) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def opened(path: Path, default: str | None = None) -> Listing:
    return list_sources(
        resolve_sources(DataSection(path=str(path)), path.parent), default_caption=default
    )


def refusal(path: Path) -> str:
    """The one reason why nothing of an archive is read."""
    found = opened(path, "x")
    assert found.items == ()
    (only,) = found.findings
    assert (only.code, only.severity, only.files) == ("bad-archive", "error", (path.name,))
    return only.message


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_archive_reads_like_a_folder(tmp_path: Path, write: object) -> None:
    """Sidecars, metadata in sub-folders, the card and hidden files, and the very bytes."""
    members = {
        "a.png": png("red"),
        "a.txt": b"a red one",
        "sub/b.png": png("blue"),
        "sub/metadata.jsonl": b'{"file_name": "b.png", "text": "blue", "license": "MIT"}',
        "dataset.toml": b'holder = "Card"',
        "__MACOSX/._a.png": b"x",
        ".hidden/c.png": b"x",
    }
    assert callable(write)
    file = write(tmp_path / ("set.zip" if write is write_zip else "set.tar"), members)
    found = opened(file)
    assert found.findings == []
    assert [(i.file_name, i.text, i.origin) for i in found.items] == [
        ("a.png", "a red one", "set"),
        ("sub/b.png", "blue", "set"),
    ]
    assert [(i.rights.license, i.rights.holder) for i in found.items] == [
        ("", "Card"),
        ("MIT", "Card"),
    ]
    assert [read_item(i.path, i.member) for i in found.items] == [png("red"), png("blue")]
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_card_lies_in_the_only_top_folder_or_beside(tmp_path: Path) -> None:
    """A packed folder keeps its card; NAME.dataset.toml serves a bare one; two must agree."""
    inside = {"brand/a.png": png(), "brand/a.txt": b"x", "brand/dataset.toml": b'holder = "In"'}
    file = write_zip(tmp_path / "set.zip", inside)
    assert opened(file).cards["set"].holder == "In"
    (tmp_path / "set.dataset.toml").write_text('holder = "Out"')
    assert [f.code for f in opened(file).findings] == ["bad-metadata"]
    file = write_zip(tmp_path / "set.zip", {"a.png": png(), "a.txt": b"x"})
    assert opened(file).cards["set"].holder == "Out"
    file = write_zip(tmp_path / "bad.zip", {"a.png": png(), "dataset.toml": b'licence = "MIT"'})
    with pytest.raises(RecipeError) as caught:
        opened(file)
    assert "bad.zip/dataset.toml" in caught.value.where


@pytest.mark.parametrize(
    "name", ["/etc/a.png", "../a.png", "x/../../a.png", "C:/a.png", "C:\\a.png", "x\\a.png"]
)
def test_a_zip_member_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """Absolute names, drives, parents and foreign separators, before anything is read."""
    message = refusal(write_zip(tmp_path / "a.zip", {"ok.png": png(), name: png()}))
    assert f"point outside the zip: {name}" in message


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    """A link could show any file of this machine to the trainer."""
    info = zipfile.ZipInfo("link.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "links or devices: link.png" in refusal(tmp_path / "a.zip")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    """A member packed beyond any image, and one declared larger than the limit."""
    file = write_zip(tmp_path / "a.zip", {"big.png": bytes(archives.MIN_BOMB_BYTES + 1)})
    assert "200:1" in refusal(file)
    assert "big.png" in refusal(file)
    raw = bytearray(write_zip(tmp_path / "b.zip", {"huge.png": png()}).read_bytes())
    at = raw.index(b"PK\x01\x02") + 24
    raw[at : at + 4] = (3 << 30).to_bytes(4, "little")
    (tmp_path / "b.zip").write_bytes(raw)
    found = opened(tmp_path / "b.zip", "x")
    assert any("larger than 256 MiB: huge.png" in f.message for f in found.findings)
    assert found.items == ()


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Entries that share their bytes unpack to more than was sent."""
    noise = bytes(range(256)) * 64
    raw = write_zip(tmp_path / "a.zip", {"a.png": noise, "b.png": noise}).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        infos = archive.infolist()
    start = raw.index(b"PK\x01\x02")
    entry = raw[start : start + 46 + 5]
    count = 400
    assert infos[0].compress_size * count > len(raw) + count * 51
    names = [f"{i:05d}".encode() for i in range(count)]
    directory = b"".join(entry[:46] + name for name in names)
    end = (
        b"PK\x05\x06"
        + bytes(4)
        + count.to_bytes(2, "little") * 2
        + len(directory).to_bytes(4, "little")
        + start.to_bytes(4, "little")
        + bytes(2)
    )
    (tmp_path / "a.zip").write_bytes(raw[:start] + directory + end)
    assert "overlap" in refusal(tmp_path / "a.zip")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    """The member is named; no password is asked for."""
    raw = bytearray(write_zip(tmp_path / "a.zip", {"a.png": png()}).read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    assert "encrypted members: a.png" in refusal(tmp_path / "a.zip")


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    """One of the two would be lost; two Unicode forms of a name are two images."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png("red"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png("blue"))
    assert "twice: a.png" in refusal(tmp_path / "a.zip")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    assert "twice: a.png" in refusal(tmp_path / "a.tar")
    forms = {"caf\u00e9.png": png("red"), "cafe\u0301.png": png("blue")}
    for file in (write_zip(tmp_path / "b.zip", forms), write_tar(tmp_path / "b.tar", forms)):
        found = {i.file_name: read_item(i.path, i.member) for i in opened(file, "x").items}
        assert found == forms


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    """Something else, nothing, and an archive cut short anywhere are never read in part."""
    write = write_zip if name == "a.zip" else write_tar
    whole = write(tmp_path / "whole", {f"{i}.png": png() for i in range(3)}).read_bytes()
    cuts = [whole[: len(whole) * i // 16] for i in range(1, 16)]
    if name == "a.tar":  # the rest of its end is padding
        end = 3 * 1024
        cuts = [whole[: end * i // 16] for i in range(1, 17)]
    for content in (b"", b"hello", *cuts):
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_of_every_packing_method_is_named(tmp_path: Path, method: int) -> None:
    """Each method has errors of its own; none of them is a traceback."""
    file = tmp_path / "a.zip"
    noise = random.Random(0).randbytes(2000)
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.png", noise)
    (item,) = opened(file, "x").items
    whole, read = file.read_bytes(), 0
    for position in range(30, 400, 7):
        archives._open_zip.cache_clear()
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            read += read_item(item.path, item.member) != noise
        except DataError as error:
            assert "cannot be decompressed" in str(error)  # noqa: PT017
    assert read == 0


def test_a_damaged_member_is_named_when_it_is_read(tmp_path: Path) -> None:
    """The checksum of the zip tells; a member that is gone is said to be gone."""
    file = write_zip(tmp_path / "a.zip", {"a.png": png()})
    (item,) = opened(file, "x").items
    raw = bytearray(file.read_bytes())
    raw[len("a.png") + 40] ^= 255
    file.write_bytes(raw)
    with pytest.raises(DataError, match="cannot be decompressed") as caught:
        read_item(item.path, item.member)
    assert "a.zip/a.png" in caught.value.where
    write_zip(file, {"other.png": png()})
    with pytest.raises(DataError, match="no longer in the zip"):
        read_item(item.path, item.member)


def test_many_threads_read_one_zip(tmp_path: Path) -> None:
    """Each gets its own member's bytes."""
    members = {f"{i:03d}.png": png() + bytes([i]) * (i + 1) for i in range(200)}
    items = opened(write_zip(tmp_path / "a.zip", members), "x").items
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read_item(i.path, i.member), items))
    assert found == list(members.values())


def test_webdataset_samples_are_read(tmp_path: Path) -> None:
    """An image and the words of its key, as txt or json; the same words twice are fine."""
    words = json.dumps({"caption": "both", "machine_caption": True}).encode()
    members = {
        "000.jpg": png(),
        "000.txt": b"both",
        "000.json": words,
        "001.webp": png(),
        "001.json": b'{"text": "json"}',
        "002.png": png(),
        "002.cls": b"3",
    }
    found = opened(write_tar(tmp_path / "shard.tar", members))
    assert [(i.text, i.machine_caption) for i in found.items] == [
        ("both", True),
        ("json", False),
        (None, False),
    ]
    assert [f.code for f in found.findings] == ["missing-caption"]


def test_words_in_a_tar_belong_to_the_image_of_their_key(tmp_path: Path) -> None:
    """The key ends at the first dot; a default never takes the place of words that are there."""
    members = {
        "0001.img.png": png(),
        "0001.txt": b"of a person",
        "0001.json": b'{"license": "MIT"}',
        "v1.0/0002.png": png(),
        "v1.0/0002.caption.txt": b"two",
        "v1.0/0002.meta.json": b"[]",
        "0003.png": png(),
        "0003.txt": b"one",
        "0003.long.txt": b"another",
    }
    found = opened(write_tar(tmp_path / "a.tar", members), "default")
    assert [(i.text, i.rights.license) for i in found.items] == [
        ("of a person", "MIT"),
        ("another", ""),
        ("two", ""),
    ]
    (only,) = found.findings
    assert (only.code, only.files) == ("ambiguous-caption", ("0003.png",))


@pytest.mark.parametrize("name", ["0002.txt", "0002.json", "0001.TXT", "0001.caption"])
def test_words_of_no_image_in_a_tar_are_not_overlooked(tmp_path: Path, name: str) -> None:
    """Their image would be trained with the default instead."""
    file = write_tar(tmp_path / "a.tar", {"0001.png": png(), name: b'{"text": "x"}'})
    (only,) = opened(file, "default").findings
    assert (only.code, only.severity, only.files) == ("unread-caption-file", "error", (name,))


def test_a_sample_with_two_images_is_refused(tmp_path: Path) -> None:
    """A segmentation map must not be trained on as if it were a picture."""
    file = write_tar(tmp_path / "a.tar", {"000.jpg": png(), "000.seg.png": png()})
    assert "several images: 000.jpg, 000.seg.png" in refusal(file)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_tar_with_links_or_devices_is_refused(tmp_path: Path, kind: bytes) -> None:
    """Only plain files are images."""
    info = tarfile.TarInfo("link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    assert "links, devices or sparse: link.png" in refusal(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../../a.png"])
def test_a_tar_member_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """As in a zip."""
    assert "point outside the tar" in refusal(write_tar(tmp_path / "a.tar", {name: png()}))


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    """It could only be read from its start to its end; the fix says what to do."""
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    assert "not a readable uncompressed tar" in refusal(tmp_path / "a.tar")


def test_what_follows_the_end_of_a_tar_is_not_lost(tmp_path: Path) -> None:
    """Two tars in one file, or a damaged header in the middle, are not read in part."""
    one = write_tar(tmp_path / "one.tar", {"a.png": png()}).read_bytes()
    (tmp_path / "two.tar").write_bytes(one + one)
    assert "two archives in one" in refusal(tmp_path / "two.tar")
    raw = bytearray(
        write_tar(tmp_path / "m.tar", {f"{i}.png": png() for i in range(3)}).read_bytes()
    )
    raw[1024 + 3] ^= 255
    (tmp_path / "m.tar").write_bytes(raw)
    assert "damaged header at byte 1024" in refusal(tmp_path / "m.tar")


def test_shards_are_one_source(tmp_path: Path) -> None:
    """A folder of tars with equal names inside; two kinds of shards are refused."""
    for number in range(2):
        write_tar(tmp_path / f"set-{number}.tar", {"000.png": png(), "000.txt": b"x"})
    found = opened(tmp_path)
    assert [i.file_name for i in found.items] == ["set-0.tar/000.png", "set-1.tar/000.png"]
    assert found.findings == []
    write_zip(tmp_path / "c.zip", {"a.png": png()})
    assert "several kinds (.tar, .zip)" in opened(tmp_path).findings[0].message


def test_a_card_below_the_top_is_not_overlooked(tmp_path: Path) -> None:
    """In archives and in folders of shards, too, its rights would be replaced by others."""
    cards = {"dataset.toml": b'holder = "A"', "sub/dataset.toml": b'holder = "B"'}
    members = {"sub/a.png": png(), "sub/a.txt": b"x", **cards}
    folder = tmp_path / "shards"
    folder.mkdir()
    write_zip(folder / "c.zip", {"a.png": png(), "a.txt": b"x"})
    (folder / "c.dataset.toml").write_text('holder = "C"')
    for path, names in (
        (
            write_zip(tmp_path / "b.zip", {"b/c/dataset.toml": b"", "b/a.png": png()}),
            ("b/c/dataset.toml",),
        ),
        (write_zip(tmp_path / "a.zip", members | {"b.png": png()}), ("sub/dataset.toml",)),
        (write_tar(tmp_path / "a.tar", members | {"b.png": png()}), ("sub/dataset.toml",)),
        (folder, ("c.dataset.toml",)),
    ):
        (only,) = opened(path, "default").findings
        assert (only.code, only.severity, only.files) == ("bad-metadata", "error", names)
        assert "separate source" in only.fix


def test_an_archive_without_images_says_what_it_holds(tmp_path: Path) -> None:
    """As for a folder."""
    found = opened(write_zip(tmp_path / "a.zip", {"notes.txt": b"x", "b.doc": b"y"}))
    (only,) = found.findings
    assert only.code == "no-images"
    assert "1 × .doc" in only.message

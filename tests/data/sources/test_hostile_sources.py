"""Archives and tables made to hurt: refused in seconds, in little memory, with the reason."""

from __future__ import annotations

import datetime
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_parts import check_folder
from styletune.data.check import MAX_IMAGES
from styletune.data.sources.tar_headers import header_problem
from styletune.errors import DataError

MEASURED = """
import json, resource, sys, time
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
from data_parts import check_folder
from styletune.errors import StyletuneError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.monotonic()
try:
    checked = check_folder(Path(sys.argv[2]), default_caption="x")
    said = [f"{f.code}: {f.message}" for f in checked.errors]
except StyletuneError as error:
    said = [str(error)]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"said": said, "mib": grown / 1024, "s": time.monotonic() - started}))
"""


def png(side: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def zip_of(file: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def padded(unit: bytes, size: int) -> bytes:
    """Text that packs a little less than a bomb: every line has a number."""
    count = size // (len(unit) + 8)
    return b"".join(unit + b"%07d\n" % i for i in range(count))


def many_empty_rows(file: Path) -> None:
    rows = b"".join(b'{"file_name": "%d.png", "text": "x"}\n' % i for i in range(3_000_000))
    zip_of(file, {"a.png": png(), "metadata.jsonl": rows})


def large_card(file: Path) -> None:
    zip_of(file, {"a.png": png(), "dataset.toml": padded(b"# a comment ", 60 << 20)})


def two_giants(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        block = os.urandom(1 << 13) + bytes((1 << 20) - (1 << 13))
        for name in ("a.png", "b.png"):
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(1000):
                    member.write(block)


def null_rows(file: Path) -> None:
    table = pa.table({"image": pa.nulls(1_500_000, pa.binary())})
    pq.write_table(table, file, row_group_size=1_500_000)


def one_long_text(file: Path) -> None:
    texts = ["x" * (80 << 20)]
    pq.write_table(pa.table({"image": [png()], "text": texts}), file, compression="zstd")


def one_text_everywhere(file: Path) -> None:
    value = pa.array(["x" * (10 << 20)])
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), value)
    table = pa.table({"image": pa.array([png()] * 400), "text": texts})
    pq.write_table(table, file, compression="zstd")


def zeros_as_images(file: Path) -> None:
    table = pa.table({"image": pa.array([bytes(300 << 20)], pa.binary())})
    pq.write_table(table, file, compression="zstd")


def packed_arrow(file: Path) -> None:
    table = pa.table({"image": pa.array([bytes(200 << 20)], pa.binary()), "text": ["x"]})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(str(file), table.schema, options=options) as writer:
        writer.write_table(table)


HOSTILE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "rows.zip": ("a.zip", many_empty_rows, "larger than"),
    "card.zip": ("a.zip", large_card, "larger than"),
    "giants.zip": ("a.zip", two_giants, "larger than 256 MiB"),
    "nulls.parquet": ("a.parquet", null_rows, "rows, more than"),
    "text.parquet": ("a.parquet", one_long_text, "MiB of text"),
    "dictionary.parquet": ("a.parquet", one_text_everywhere, "has a text of"),
    "zeros.parquet": ("a.parquet", zeros_as_images, "MiB of image"),
    "packed.arrow": ("a.arrow", packed_arrow, "compressed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_unfolds_is_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    """In a process of its own: under 30 s and 700 MiB more than before."""
    file_name, make, part = HOSTILE[name]
    make(tmp_path / file_name)
    words = [json.dumps(sys.path), str(tmp_path / file_name)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert any(part in said for said in answer["said"]), answer
    assert answer["mib"] < 700, answer
    assert answer["s"] < 30, answer


def columns(**changes: Any) -> dict[str, Any]:
    return {"image": pa.array([png()] * 3), "text": ["a", "b", "c"], **changes}


ODD_COLUMNS: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "bytes in bytes": (
        lambda: pa.table(columns(image=pa.array([{"bytes": {"bytes": png()}}] * 3))),
        "not encoded images",
    ),
    "a number as path": (
        lambda: pa.table(columns(image=pa.array([{"bytes": png(), "path": 7}] * 3))),
        "not encoded images",
    ),
    "two images": (
        lambda: pa.Table.from_arrays(
            [pa.array([png()]), pa.array([png()]), pa.array(["x"])],
            names=["image", "image", "text"],
        ),
        "appear twice: image",
    ),
    "a date as text": (
        lambda: pa.table(columns(text=pa.array([datetime.datetime(2026, 1, 1)] * 3))),
        "column text contains timestamp",
    ),
    "a zoned time as text": (
        lambda: pa.table(columns(text=pa.array([0, 1, 2], pa.timestamp("us", tz="Europe/Rome")))),
        "column text contains timestamp",
    ),
    "a far date as license": (
        lambda: pa.table(columns(license=pa.array([4_000_000 * 86_400_000] * 3, pa.date64()))),
        "column license contains date",
    ),
    "a list as holder": (lambda: pa.table(columns(holder=[["x"]] * 3)), "column holder contains"),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_columns_of_other_types_are_named(name: str, kind: str, tmp_path: Path) -> None:
    """Before a value is touched."""
    make, part = ODD_COLUMNS[name]
    file, table = tmp_path / f"a.{kind}", make()
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table)
    messages = [f.message for f in check_folder(file, default_caption="x").errors]
    assert any(part in message for message in messages), messages


def test_dictionaries_of_ordinary_texts_are_read(tmp_path: Path) -> None:
    """Writers encode repeated texts so."""
    table = pa.table(columns(text=pa.array(["a", "b", "a"]).dictionary_encode()))
    pq.write_table(table, tmp_path / "a.parquet")
    items = check_folder(tmp_path / "a.parquet").items
    assert [item.text for item in items] == ["a", "b", "a"]


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header of 512 bytes with a right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136] = b"0000644\0", size
    block[148:156], block[156:157] = b" " * 8, kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def block(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def extended(kind: bytes, content: bytes) -> bytes:
    return header(b"x", octal(len(content)), kind) + block(content)


MEMBER = header(b"a.png", octal(4)) + block(b"data")
END = bytes(1024)
HOSTILE_TARS = {
    "many pax headers": (extended(b"x", b"12 path=a.p\n") * 5000 + MEMBER + END, "too many"),
    "many long names": (extended(b"L", b"a.png\0") * 5000 + MEMBER + END, "too many"),
    "a negative size": (
        header(b"a.png", b"\xff" * 10 + (65536 - 512).to_bytes(2, "big")) + END,
        "negative size",
    ),
    "digits without end": (extended(b"x", b"1" * 1_000_000) + MEMBER + END, "damaged"),
    "a long extended header": (extended(b"x", bytes(2 << 20)) + MEMBER + END, "too long"),
    "a record of no length": (extended(b"x", b"0 path=a\n") + MEMBER + END, "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_tar_headers_made_to_hurt_are_refused(name: str, tmp_path: Path) -> None:
    """Within seconds, by our own bounds: the standard library has none."""
    content, part = HOSTILE_TARS[name]
    (tmp_path / "a.tar").write_bytes(content)
    started = time.monotonic()
    (error,) = check_folder(tmp_path / "a.tar", default_caption="x").errors[:1]
    assert (error.code, part in error.message) == ("bad-archive", True), error
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_ordinary_tars_pass_the_bounds(format_: int, tmp_path: Path) -> None:
    """Long names, times and folders of every writer."""
    with tarfile.open(tmp_path / "a.tar", "w", format=format_) as archive:
        for name in ("d", f"d/{'n' * 90}.png", "d/b.png"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name == "d" else tarfile.REGTYPE
            content = b"" if name == "d" else png()
            info.size, info.mtime = len(content), 1.5
            archive.addfile(info, io.BytesIO(content))
        if format_ != tarfile.USTAR_FORMAT:
            info, content = tarfile.TarInfo("é" * 150 + ".png"), png()
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert header_problem(tmp_path / "a.tar") == ""


def test_pipes_and_devices_among_images_are_not_read(tmp_path: Path) -> None:
    """A pipe named metadata.jsonl and a caption that links to /dev/zero."""
    (tmp_path / "a.png").write_bytes(png())
    os.mkfifo(tmp_path / "metadata.jsonl")
    (tmp_path / "a.txt").symlink_to("/dev/zero")
    started = time.monotonic()
    messages = " ".join(f.message for f in check_folder(tmp_path).errors)
    assert messages.count("not a regular file") == 2
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("lines", [1, 2])
def test_long_lines_and_captions_are_refused_before_anything_is_computed(
    lines: int, tmp_path: Path
) -> None:
    """A line of 20 MB, or a caption of 900 kB, by its length."""
    (tmp_path / "a.png").write_bytes(png())
    text = "x " * (10 << 20 if lines == 1 else 450_000)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": text}))
    started = time.monotonic()
    (error,) = (f for f in check_folder(tmp_path).errors if f.code == "bad-metadata")
    assert "characters" in error.message
    assert time.monotonic() - started < 5


def test_a_crowd_of_tiny_images_is_refused(tmp_path: Path) -> None:
    """Before one of them is decoded: each would be compared with all others."""
    file, tiny = tmp_path / "many.zip", png(8)
    zip_of(file, {f"{i}.png": tiny for i in range(MAX_IMAGES + 1)})
    with pytest.raises(DataError, match="20,001 images; a set has at most 20,000"):
        check_folder(file, default_caption="x")

"""A corpus of odd, damaged and hostile files: each is decoded right, or refused by its name.

All are decoded in one child process, so that a crash, a hang or a gigabyte too many is seen.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

MAX_S = 10.0
MAX_RSS_BYTES = 2 << 30
BACKGROUND = (51, 102, 153)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
Quarters = tuple[tuple[int, int, int], ...]
PICTURE: Quarters = (RED, GREEN, BLUE, WHITE)

CHILD = """
import json, re, sys, time
from dataclasses import asdict
from pathlib import Path
from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.inspect import inspect_image
for file in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    result = inspect_image(file, name=file.name, background="#336699")
    again = inspect_image(file.read_bytes(), name=file.name, background="#336699")
    said = {"same": result == again, "s": time.process_time() - start, **asdict(result)}
    if isinstance(result, ImageFacts):
        small = lambda y, x: list(result.small[(y * 64 + x) * 3 :][:3])
        said["quarters"] = [small(y, x) for y in (8, 56) for x in (8, 56)]
        said |= {"small": "", "thumbnail": len(result.thumbnail)}
    # Not ru_maxrss, which a child inherits from its parent.
    status = Path("/proc/self/status")
    peak_kb = re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else 0
    said["rss"] = int(peak_kb) * 1024
    print(json.dumps({"file": file.name, **said}), flush=True)
"""


def picture(size: int = 64) -> Image.Image:
    """Four flat quarters: red, green; blue, white."""
    half = size // 2
    image = Image.new("RGB", (size, size), RED)
    image.paste(GREEN, (half, 0, size, half))
    image.paste(BLUE, (0, half, half, size))
    image.paste(WHITE, (half, half, size, size))
    return image


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    if kind == "HEIF":
        register_heif()
    stream = io.BytesIO()
    (image or picture()).save(stream, kind, **options)
    return stream.getvalue()


def register_heif() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()


def noisy(kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    return encoded(kind, Image.fromarray(pixels), **options)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, depth: int = 8, kind: int = 2, extra: bytes = b"") -> bytes:
    """A PNG with this header, and the pixel data of one black row of 64 bytes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + head + extra + data + chunk(b"IEND", b"")


def with_chunk(extra: bytes) -> bytes:
    content = encoded("PNG")
    return content[:33] + extra + content[33:]


def tiff(width: int, height: int, *, data: bytes, following: int = 0, **tags: int) -> bytes:
    """A little-endian TIFF of one strip; ``tags`` as t258=16."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    entries |= {279: len(data)} | {int(key[1:]): value for key, value in tags.items()}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    start = 8 + len(data) + len(data) % 2
    body = data.ljust(start - 8, b"\0") + struct.pack("<H", len(entries)) + table
    return struct.pack("<2sHI", b"II", 42, start) + body + struct.pack("<I", following or 0)


def patched(content: bytes, at: int, fields: bytes) -> bytes:
    return content[:at] + fields + content[at + len(fields) :]


def ispe_bomb(kind: str) -> bytes:
    content = encoded(kind)
    return patched(content, content.index(b"ispe") + 8, struct.pack(">II", 60_000, 60_000))


def jpeg_bomb() -> bytes:
    content = encoded("JPEG")
    return patched(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", 60_000, 60_000))


def webp_bomb() -> bytes:
    content = encoded("WEBP", lossless=True)
    sides = struct.pack("<I", 16_382 | 16_382 << 14)
    return patched(content, content.index(b"VP8L") + 9, sides)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), color) for color in (RED, GREEN, BLUE)]
    return encoded(kind, frames[0], save_all=True, append_images=frames[1:])


def profile_bomb() -> bytes:
    packed = zlib.compress(b"\0" * 80_000_000, 9)
    return with_chunk(chunk(b"iCCP", b"p\0\0" + packed))


def cut_profile_jpeg() -> bytes:
    """The first of two parts of a profile, without the second."""
    part = b"ICC_PROFILE\0\x01\x02" + b"\0" * 200
    content = encoded("JPEG")
    return content[:2] + b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part + content[2:]


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    # pillow-heif writes the container's own turn for bytes only.
    return encoded(kind, picture().transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())


def see_through() -> Image.Image:
    """The picture as a palette, with its white quarter transparent."""
    image = picture().quantize(4, dither=Image.Dither.NONE)
    image.info["transparency"] = image.getpixel((60, 60))
    return image


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def ramp_tiff(bits: int, photometric: int) -> bytes:
    """Two rows: darkest, brightest sample of so many bits, in 64 columns each."""
    top = (1 << bits) - 1
    values = np.repeat([[0], [top]], 64, 1).astype(np.uint16)
    data = values.astype("<u2").tobytes()
    if bits == 12:
        data = bytes(64 * 3 // 2) + b"\xff" * (64 * 3 // 2)
    return tiff(64, 2, data=data, t258=bits, t262=photometric)


ROWS: Quarters = ((0, 0, 0), (0, 0, 0), WHITE, WHITE)
DECODED: dict[str, tuple[Callable[[], bytes], tuple[int, int], Quarters]] = {
    "plain.png": (lambda: encoded("PNG"), (64, 64), PICTURE),
    "plain.jpg": (lambda: encoded("JPEG", quality=95), (64, 64), PICTURE),
    "plain.webp": (lambda: encoded("WEBP", quality=95), (64, 64), PICTURE),
    "plain.tif": (lambda: encoded("TIFF"), (64, 64), PICTURE),
    "deflate.tiff": (lambda: encoded("TIFF", compression="tiff_deflate"), (64, 64), PICTURE),
    "plain.bmp": (lambda: encoded("BMP"), (64, 64), PICTURE),
    "plain.gif": (lambda: encoded("GIF"), (64, 64), PICTURE),
    "plain.avif": (lambda: encoded("AVIF", quality=95), (64, 64), PICTURE),
    "plain.heic": (lambda: encoded("HEIF", quality=95), (64, 64), PICTURE),
    "turned.heic": (lambda: turned("HEIF"), (64, 64), PICTURE),
    "turned.avif": (lambda: turned("AVIF"), (64, 64), PICTURE),
    "a png.jpg": (lambda: encoded("PNG"), (64, 64), PICTURE),
    "a heic.jpeg": (lambda: encoded("HEIF", quality=95), (64, 64), PICTURE),
    "progressive.jpg": (lambda: encoded("JPEG", progressive=True), (64, 64), PICTURE),
    "srgb profile.png": (lambda: encoded("PNG", icc_profile=srgb()), (64, 64), PICTURE),
    "phone.jpg": (
        lambda: encoded(
            "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64), GREEN)], quality=95
        ),
        (64, 64),
        PICTURE,
    ),
    "palette.png": (lambda: encoded("PNG", see_through()), (64, 64), (*PICTURE[:3], BACKGROUND)),
    "palette.gif": (lambda: encoded("GIF", see_through()), (64, 64), (*PICTURE[:3], BACKGROUND)),
    "one pixel.png": (lambda: encoded("PNG", picture().resize((1, 1), 0)), (1, 1), (WHITE,) * 4),
    "one pixel.jpg": (
        lambda: encoded("JPEG", Image.new("RGB", (1, 1), RED)),
        (1, 1),
        (RED,) * 4,
    ),
    "one column.png": (
        lambda: encoded("PNG", picture(4096).crop((0, 0, 1, 4096))),
        (1, 4096),
        (RED, RED, BLUE, BLUE),
    ),
    "one row.webp": (
        lambda: encoded("WEBP", picture(4096).crop((0, 0, 4096, 1)), lossless=True),
        (4096, 1),
        (RED, GREEN, RED, GREEN),
    ),
    "endless pages.tif": (
        lambda: tiff(8, 8, data=bytes(64), following=72),
        (8, 8),
        ((0, 0, 0),) * 4,
    ),
    "16 bit.tif": (lambda: ramp_tiff(16, 1), (64, 2), ROWS),
    "16 bit white is zero.tif": (lambda: ramp_tiff(16, 0), (64, 2), (*ROWS[2:], *ROWS[:2])),
    "12 bit.tif": (lambda: ramp_tiff(12, 1), (64, 2), ROWS),
    "gamma of sRGB.png": (
        lambda: with_chunk(chunk(b"gAMA", struct.pack(">I", 45455))),
        (64, 64),
        PICTURE,
    ),
}

DAMAGED, TOO_LARGE, FRAMES = "damaged or truncated", "too large", "several frames or pages"
NO_IMAGE, COLORS = "not a readable image", "colors are not sRGB"
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "empty"),
    "text.jpg": (lambda: b"a cat on a wall\n" * 20, NO_IMAGE),
    "page.png": (lambda: b"<!doctype html><title>404</title>", NO_IMAGE),
    "drawing.png": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
    "postscript.png": (lambda: encoded("EPS"), NO_IMAGE),
    "signature.png": (lambda: b"\x89PNG\r\n\x1a\n", NO_IMAGE),
    "half.png": (lambda: half(noisy("PNG")), DAMAGED),
    "half.jpg": (lambda: half(noisy("JPEG")), DAMAGED),
    "half progressive.jpg": (lambda: half(noisy("JPEG", progressive=True)), DAMAGED),
    "half.webp": (lambda: half(noisy("WEBP")), ""),
    "half lossless.webp": (lambda: half(noisy("WEBP", lossless=True)), ""),
    "half.tif": (lambda: noisy("TIFF")[:-20_000], DAMAGED),
    "half deflate.tif": (lambda: half(noisy("TIFF", compression="tiff_deflate")), ""),
    "half.gif": (lambda: half(noisy("GIF")), DAMAGED),
    "half.bmp": (lambda: half(noisy("BMP")), DAMAGED),
    "half.avif": (lambda: half(noisy("AVIF")), ""),
    "half.heic": (lambda: half(noisy("HEIF")), ""),
    "moves.gif": (lambda: animated("GIF"), FRAMES),
    "moves.png": (lambda: animated("PNG"), FRAMES),
    "moves.webp": (lambda: animated("WEBP"), FRAMES),
    "moves.avif": (lambda: animated("AVIF"), FRAMES),
    "pages.tif": (lambda: animated("TIFF"), FRAMES),
    "several.heic": (lambda: animated("HEIF"), FRAMES),
    "bomb.png": (lambda: png(60_000, 60_000), TOO_LARGE),
    "bomb 16 bit.png": (lambda: png(60_000, 60_000, depth=16), TOO_LARGE),
    "bomb just over.png": (lambda: png(13_350, 13_350), TOO_LARGE),
    "bomb.bmp": (
        lambda: patched(encoded("BMP"), 18, struct.pack("<ii", 60_000, 60_000)),
        TOO_LARGE,
    ),
    "bomb.gif": (
        lambda: patched(encoded("GIF"), 6, struct.pack("<HH", 60_000, 60_000)),
        TOO_LARGE,
    ),
    "bomb.tif": (lambda: tiff(60_000, 60_000, data=bytes(64)), TOO_LARGE),
    "bomb.jpg": (jpeg_bomb, TOO_LARGE),
    "bomb.webp": (webp_bomb, TOO_LARGE),
    "bomb.avif": (lambda: ispe_bomb("AVIF"), ""),
    "bomb.heic": (lambda: ispe_bomb("HEIF"), ""),
    "bomb.ppm.png": (lambda: b"P6 60000 60000 255\n" + bytes(64), TOO_LARGE),
    "cheap promise.tif": (lambda: tiff(10_000, 10_000, data=bytes(64)), DAMAGED),
    "cheap promise.png": (lambda: png(10_000, 10_000), DAMAGED),
    "profile bomb.png": (profile_bomb, ""),
    "text bomb.png": (
        lambda: with_chunk(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9))),
        DAMAGED,
    ),
    "no frame.gif": (lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";", ""),
    "damaged profile.png": (lambda: with_chunk(chunk(b"iCCP", b"p\0\0nonsense")), "profile"),
    "cut profile.jpg": (cut_profile_jpeg, "profile"),
    "linear light.png": (lambda: with_chunk(chunk(b"gAMA", struct.pack(">I", 100_000))), COLORS),
    "display p3 by code.png": (lambda: with_chunk(chunk(b"cICP", bytes([12, 13, 0, 1]))), COLORS),
    "hdr by code.png": (lambda: with_chunk(chunk(b"cICP", bytes([9, 16, 0, 1]))), COLORS),
    "hdr by code.avif": (
        lambda: encoded("AVIF").replace(b"nclx\0\x01\0\x0d", b"nclx\0\x09\0\x10"),
        COLORS,
    ),
    "display p3 by code.heic": (
        lambda: encoded("HEIF").replace(b"nclx\0\x01\0\x0d", b"nclx\0\x0c\0\x0d"),
        COLORS,
    ),
    "key in 16 bit.png": (
        lambda: png(4, 2, depth=16, extra=chunk(b"tRNS", struct.pack(">HHH", 0, 0, 0))),
        "transparent color",
    ),
    "float.tif": (
        lambda: encoded("TIFF", Image.fromarray(np.zeros((8, 8), np.float32))),
        "no defined range",
    ),
    "inks.jpg": (lambda: encoded("JPEG", Image.new("CMYK", (8, 8))), "CMYK without"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What inspect_image makes of every file, from a child process."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, (make, *_) in DECODED.items():
        (folder / name).write_bytes(make())
    for name, (make, _) in REFUSED.items():
        (folder / name).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr
    return {row["file"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", DECODED)
def test_an_odd_file_is_decoded_right(said: dict[str, dict[str, Any]], name: str) -> None:
    """Size and the colors of the four quarters are what was drawn, from a path and from bytes."""
    _, size, quarters = DECODED[name]
    row = said[name]
    assert "message" not in row, row
    assert (row["width"], row["height"]) == size
    assert np.abs(np.array(row["quarters"]) - np.array(quarters)).max() <= 6
    assert row["same"]
    assert row["turned"] == (name == "turned.avif")
    assert row["thumbnail"] > 0


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_by_name(said: dict[str, dict[str, Any]], name: str) -> None:
    """The finding is an error that names the file, the fault and what to do."""
    row = said[name]
    assert row.get("code") == "unreadable-image", row
    assert row["severity"] == "error"
    assert row["files"] == [name]
    assert REFUSED[name][1] in row["message"]
    assert row["fix"]
    assert row["same"]


def test_no_file_takes_long_or_much_memory(said: dict[str, dict[str, Any]]) -> None:
    """The slowest file takes seconds at most, and the whole corpus stays below 2 GiB."""
    assert len(said) == len(DECODED) + len(REFUSED)
    assert max(row["s"] for row in said.values()) < MAX_S
    assert max(row["rss"] for row in said.values()) < MAX_RSS_BYTES

"""What a file says about its colors is read, or the file is refused; nothing is guessed."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from test_color_profiles import P3, SRGB, gray_profile, rgb_profile

from styletune.data.pixels.decode import decode_image
from styletune.errors import DataError

RED = (200, 40, 40)
BT709, P3_POINTS, SRGB_CURVE, PQ = 1, 12, 13, 16


def decoded(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode_image(content, name="x", background=None))


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), RED).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(content: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with more chunks in front of the first of a kind."""
    at = content.index(before) - 4
    return content[:at] + b"".join(chunks) + content[at:]


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


LONG_TEXT = chunk(b"tEXt", b"Comment\0" + b"x" * 10_000)


def refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decoded(content)
    assert caught.value.fix
    return caught.value.message


def test_code_points_are_found_behind_long_texts() -> None:
    """The chunk may come anywhere in front of the pixels."""
    png = encoded("PNG")
    assert "Display P3" in refused(with_chunks(png, LONG_TEXT, cicp(P3_POINTS, SRGB_CURVE)))
    assert (decoded(with_chunks(png, LONG_TEXT, cicp(BT709, SRGB_CURVE)))[0, 0] == RED).all()
    # Behind the pixels it means nothing.
    late = with_chunks(png, cicp(P3_POINTS, SRGB_CURVE), before=b"IEND")
    assert (decoded(late)[0, 0] == RED).all()


def test_code_points_come_before_a_profile_in_png() -> None:
    """As the third edition of the standard says: both ways."""
    png = encoded("PNG")
    wide = with_chunks(png, cicp(P3_POINTS, PQ), iccp(rgb_profile(SRGB)))
    assert "PQ (HDR)" in refused(wide)
    plain = with_chunks(png, cicp(BT709, SRGB_CURVE), iccp(rgb_profile(P3)))
    assert (decoded(plain)[0, 0] == RED).all()


def test_narrow_range_is_refused() -> None:
    """Levels 16 to 235 are not what any PNG reader expects."""
    assert "narrow range" in refused(with_chunks(encoded("PNG"), cicp(BT709, SRGB_CURVE, full=0)))


def test_a_profile_behind_the_pixels_is_refused() -> None:
    """It is invalid there; some readers use it and some do not."""
    late = with_chunks(encoded("PNG"), iccp(rgb_profile(P3)), before=b"IEND")
    assert "after the pixels" in refused(late)


@pytest.mark.parametrize(
    ("space", "index"), [(2, None), (65535, "R03")], ids=["color space 2", "R03"]
)
def test_adobe_rgb_of_a_camera_is_refused(space: int, index: str | None) -> None:
    """Declared in Exif, without a profile: common in product photography."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = space
    if index is not None:
        exif.get_ifd(0x8769)[0xA005] = {1: index}
    message = refused(encoded("JPEG", exif=exif.tobytes(), quality=95))
    assert "Adobe RGB by its Exif data" in message
    # With a profile, that decides.
    profile = rgb_profile(SRGB)
    assert decoded(encoded("JPEG", exif=exif.tobytes(), icc_profile=profile)).shape == (16, 16, 3)


@pytest.mark.parametrize("space", [1, 65535])
def test_other_exif_color_spaces_mean_srgb(space: int) -> None:
    """sRGB, and uncalibrated without an index, which phones write."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = space
    content = encoded("JPEG", exif=exif.tobytes(), quality=95)
    assert np.abs(decoded(content)[0, 0].astype(int) - RED).max() <= 3


def test_orientation_in_xmp_alone_is_ignored() -> None:
    """Browsers and other readers show the picture as it is stored."""
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
        b'"http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    wide = Image.new("RGB", (32, 16), RED)
    stream = io.BytesIO()
    wide.save(stream, "JPEG", xmp=xmp)
    assert decoded(stream.getvalue()).shape == (16, 32, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    wide.save(stream, "JPEG", xmp=xmp, exif=exif.tobytes())
    assert decoded(stream.getvalue()).shape == (32, 16, 3)


def bmp(kind: bytes, rest: bytes = b"") -> bytes:
    """A BMP with the header of version 5."""
    body = bytes(RED[::-1]) * 4 * 4
    info = struct.pack("<IiiHHIIiiII", 124, 4, 4, 1, 24, 0, len(body), 2835, 2835, 0, 0)
    info += bytes(16) + kind + rest
    info = info.ljust(124, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + 124 + len(body), 0, 0, 14 + 124) + info + body


def test_a_bitmap_with_its_own_colors_is_refused() -> None:
    """An embedded profile, or primaries and gamma; sRGB and nothing at all are read."""
    assert (decoded(bmp(b"BGRs"))[0, 0] == RED).all()
    assert (decoded(bmp(b" niW"))[0, 0] == RED).all()
    assert (decoded(bmp(bytes(4)))[0, 0] == RED).all()
    assert "profile in a BMP" in refused(bmp(b"DEBM"))
    assert "BMP header" in refused(bmp(bytes(4), struct.pack("<9I", *range(1, 10))))


def tiff(**tags: object) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        number = int(name.removeprefix("t"))
        info.tagtype[number] = 5 if number == 319 else 3
        info[number] = value
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(stream, "TIFF", tiffinfo=info)
    return stream.getvalue()


def test_primaries_and_curves_of_a_tiff_are_read() -> None:
    """SRGB's own are fine, others are refused."""
    assert (decoded(tiff(t319=(0.64, 0.33, 0.30, 0.60, 0.15, 0.06)))[0, 0] == RED).all()
    assert "PrimaryChromaticities" in refused(tiff(t319=(0.68, 0.32, 0.265, 0.69, 0.15, 0.06)))
    levels = np.arange(256) / 255
    linear = tuple((levels * 65535).astype(int).tolist() * 3)
    srgb = tuple((levels**2.2 * 65535).astype(int).tolist() * 3)
    assert "TransferFunction" in refused(tiff(t301=linear))
    assert (decoded(tiff(t301=srgb))[0, 0] == RED).all()


def png16(gray: bool, profile: bytes) -> bytes:
    """A ramp of 16-bit values with a profile."""
    values = np.linspace(0, 65535, 64).astype(">u2")
    pixels = values if gray else np.repeat(values, 3)
    head = struct.pack(">IIBBBBB", 64, 1, 16, 0 if gray else 2, 0, 0, 0)
    data = zlib.compress(b"\0" + pixels.tobytes())
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + iccp(profile)
    return png + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("gray", [True, False])
def test_sixteen_linear_bits_are_not_read_with_eight(gray: bool) -> None:
    """Their dark parts would be off by several levels; a curve of 2.2 loses nothing."""
    make = gray_profile if gray else lambda gamma: rgb_profile(SRGB, gamma)
    assert "16-bit" in refused(png16(gray, make(1.0)))
    ramp = decoded(png16(gray, make(2.2)))[0, :, 0].astype(int)
    assert np.abs(ramp - np.linspace(0, 255, 64)).max() <= 10
    assert (np.diff(ramp) > 0).mean() > 0.9


def test_a_strip_without_end_is_refused_by_its_header() -> None:
    """A PNG of 1 × 80 million pixels is 1 MB; nothing of it is unpacked."""
    head = struct.pack(">IIBBBBB", 1, 80_000_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert "a strip of 1×80000000 pixels" in refused(png)


def test_pages_of_a_tiff_are_not_counted() -> None:
    """Two hundred thousand pages are known to be several after the second."""
    first = tiff()
    # Every page's directory is the first one's, each pointing to the next.
    (start,) = struct.unpack("<I", first[4:8])
    entries = struct.unpack("<H", first[start : start + 2])[0]
    size = 2 + 12 * entries + 4
    directory = first[start : start + size - 4]
    content = bytearray(first)
    place = len(content)
    struct.pack_into("<I", content, start + size - 4, place)
    for i in range(200_000):
        place += size
        content += directory + struct.pack("<I", place if i < 199_999 else 0)
    assert "several frames or pages" in refused(bytes(content))

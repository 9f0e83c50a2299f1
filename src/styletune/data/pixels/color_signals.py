"""What a file says about its colors besides an ICC profile; nothing but sRGB is guessed.

In this order: coding-independent code points in PNG (cICP), which its standard puts before a
profile; the profile; code points in AVIF and HEIC (nclx); gAMA and cHRM; Exif's color space; a
BMP's or TIFF's own fields. What is not sRGB and has no profile to convert it by is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from styletune.errors import DataError

# Code points (ITU-T H.273) that mean sRGB or nothing: BT.709 and the unspecified; BT.601 is what
# encoders write for plain sRGB files of theirs.
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 2, 5, 6), (1, 2, 6, 13)
_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_PRIMARY_NAMES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_CURVE_NAMES = {8: "linear", 16: "PQ (HDR)", 18: "HLG (HDR)"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Exif: the color space, where interoperability is described, and its index.
_EXIF_IFD, _COLOR_SPACE, _INTEROP_IFD, _INTEROP_INDEX = 0x8769, 0xA001, 0xA005, 1
_ADOBE_RGB, _UNCALIBRATED = 2, 65535
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
# TIFF 6.0, section 20.
_TRANSFER_FUNCTION, _PRIMARY_CHROMATICITIES = 301, 319


@dataclass(frozen=True, slots=True)
class ColorSignals:
    """Read before the pixels: ``code_points`` (primaries, transfer, full range) or None, and
    whether they come before a profile; the ICC profile that stands where a profile may; what a
    BMP's header says, "" for nothing.
    """

    code_points: tuple[int, int, bool] | None
    points_win: bool
    profile: bytes | None
    bitmap: str


def color_signals(image: Image.Image, source: Path | bytes, head: bytes) -> ColorSignals:
    """The signals of an opened image whose pixels have not been loaded.

    Args:
        image: as Pillow opened it.
        source: the file, or its bytes.
        head: its first kilobytes.
    """
    points: tuple[int, int, bool] | None = None
    if image.format == "PNG":
        points = _png_code_points(source)
    elif image.format in ("AVIF", "HEIF"):
        points = _nclx(head)
    bitmap = _bitmap_space(head) if image.format == "BMP" else ""
    wins = image.format == "PNG" and points is not None
    return ColorSignals(points, wins, image.info.get("icc_profile"), bitmap)


def refuse_colors(image: Image.Image, signals: ColorSignals, name: str) -> None:
    """Raise DataError for colors that are neither sRGB nor described by a profile."""
    if "icc_profile" in image.info and image.info["icc_profile"] is None:
        raise bad_profile("is damaged", name)
    other_space = _code_points(signals.code_points)
    if signals.points_win:
        image.info.pop("icc_profile", None)
    elif signals.profile:
        return
    elif image.info.get("icc_profile") and image.format == "PNG":
        raise bad_profile("comes after the pixels, where no reader may use it", name)
    elif image.info.get("icc_profile"):
        return
    elif signals.code_points is None:
        other_space = _gamma(image) or _exif_space(image) or _tiff_space(image) or signals.bitmap
    if other_space:
        raise DataError(
            f"its colors are not sRGB, and it has no color profile to convert them: {other_space}",
            where=name,
            fix="convert it to sRGB in the program that created it",
        )


def _png_code_points(source: Path | bytes) -> tuple[int, int, bool] | None:
    # Nearly no file has it, and walking chunks in Python would slow small images down.
    if isinstance(source, bytes) and source.find(b"cICP", 0, source.find(b"IDAT")) < 0:
        return None
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        for kind, size in _png_chunks(stream):
            if kind == b"cICP" and size == 4:
                primaries, transfer, _, full = stream.read(4)
                return primaries, transfer, bool(full)
    return None


def _png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Type and size of the chunks before the pixels; the stream is at their content."""
    if stream.read(8) != _PNG_SIGNATURE:
        return
    while len(head := stream.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in (b"IDAT", b"IEND"):
            return
        start = stream.tell()
        yield kind, size
        stream.seek(start + size + 4)


def _nclx(head: bytes) -> tuple[int, int, bool] | None:
    mark = b"colrnclx"
    if mark not in head:
        return None
    fields = head[head.find(mark) + len(mark) :][:7]
    if len(fields) < 7:
        return None
    # Video range is how these codecs store pixels; their decoders turn it into full range.
    return int.from_bytes(fields[:2], "big"), int.from_bytes(fields[2:4], "big"), True


def _code_points(points: tuple[int, int, bool] | None) -> str:
    if points is None:
        return ""
    primaries, transfer, full = points
    if not full:
        return "narrow range by its code points"
    if primaries in _SRGB_PRIMARIES and transfer in _SRGB_TRANSFERS:
        return ""
    return (
        f"primaries {_PRIMARY_NAMES.get(primaries, primaries)}, "
        f"transfer {_CURVE_NAMES.get(transfer, transfer)} by its code points"
    )


def _gamma(image: Image.Image) -> str:
    """A gAMA or cHRM chunk of a PNG that does not mean sRGB."""
    info = image.info
    if image.format != "PNG" or "srgb" in info:
        return ""
    # Programs round 1/2.2; 0.02 off is a step of 2 in mid gray.
    if abs(info.get("gamma", 0.45455) - 0.45455) > 0.01:
        return f"gamma {info['gamma']} instead of 0.45455"
    chromaticity = info.get("chromaticity", _SRGB_CHROMATICITY)
    if max(abs(a - b) for a, b in zip(chromaticity, _SRGB_CHROMATICITY, strict=True)) > 0.01:
        return "other primaries in its cHRM chunk"
    return ""


def own_exif(image: Image.Image) -> Image.Exif:
    """The image's Exif data alone: Pillow also takes an orientation from XMP, which browsers and
    other readers ignore. Raises nearly anything where it is damaged.
    """
    hidden = {key: image.info.pop(key) for key in _XMP_KEYS if key in image.info}
    try:
        return image.getexif()
    finally:
        image.info.update(hidden)


def _exif_space(image: Image.Image) -> str:
    """Adobe RGB as cameras declare it (DCF 2.0): interoperability index R03, no profile."""
    if not image.info.get("exif") and image.format != "TIFF":
        return ""
    try:
        exif = own_exif(image).get_ifd(_EXIF_IFD)
        space = exif.get(_COLOR_SPACE)
        if space == _ADOBE_RGB:
            return "Adobe RGB by its Exif data"
        if space == _UNCALIBRATED:
            index = own_exif(image).get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX)
            if str(index).strip("\0 ") == "R03":
                return "Adobe RGB by its Exif data"
    except Exception:  # noqa: BLE001  # Pillow's Exif parser raises nearly anything
        return ""  # the orientation is read from the same data, and says that it is damaged
    return ""


def _tiff_space(image: Image.Image) -> str:
    if image.format != "TIFF":
        return ""
    tags = image.tag_v2  # type: ignore[attr-defined]
    primaries = tuple(float(v) for v in tags.get(_PRIMARY_CHROMATICITIES, ()))
    if (
        primaries
        and max(abs(a - b) for a, b in zip(primaries, _SRGB_CHROMATICITY[2:], strict=False)) > 0.01
    ):
        return "other primaries in its PrimaryChromaticities"
    curve = tags.get(_TRANSFER_FUNCTION, ())
    if curve:
        middle = float(np.asarray(curve[: len(curve) // 3 or None])[len(curve) // 6]) / 65535
        if len(curve) < 6 or not 0.19 <= middle <= 0.24:
            return "another curve in its TransferFunction"
    return ""


def _bitmap_space(head: bytes) -> str:
    """What a BMP of version 4 or 5 says (BITMAPV5HEADER, bV5CSType and what follows)."""
    size = int.from_bytes(head[14:18], "little")
    if size < 108 or len(head) < 122:
        return ""
    kind = head[70:74]
    if kind in (b"DEBM", b"KNIL"):
        return "a color profile in a BMP, which is not read"
    calibrated = kind == bytes(4) and any(head[74:122])
    return "primaries and gamma in its BMP header" if calibrated else ""


def bad_profile(what: str, name: str) -> DataError:
    """The error for an unusable color profile."""
    return DataError(
        f"the embedded color profile {what}",
        where=name,
        fix="convert it to sRGB in the program that created it, or remove the profile to mean sRGB",
    )

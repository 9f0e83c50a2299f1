"""One image file, opened and loaded; or refused if unsupported, too large or damaged."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from styletune.errors import DataError

# Files with these names count as images to train on; their content decides how to read them.
READ_EXTENSIONS = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)
# No other decoders of Pillow: some run other programs (EPS), most were never meant for hostile
# files.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG opens MPO

MAX_PIXELS = 178_000_000
# These decoders keep up to four copies of the pixels at once; others two.
MAX_PIXELS_COPYING = 100_000_000
_COPYING = ("AVIF", "HEIF", "WEBP")

# We cap pixels ourselves; Pillow's own warning starts at half of that and names no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# What Pillow's decoders raise on damaged files, depending on the format.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)

_HEAD_BYTES = 4096
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
# Coding-independent code points (ITU-T H.273) that mean sRGB or nothing: BT.709 and the
# unspecified; BT.601 is what encoders write for plain sRGB files of theirs.
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 2, 5, 6), (1, 2, 6, 13)
_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


@contextlib.contextmanager
def open_image(
    source: Path | bytes, *, name: str, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open and load one still image as stored; its content decides, not its name.

    AVIF, BMP, GIF, HEIC (with ``pillow-heif``), JPEG, MPO (its first picture), PNG, PPM, TIFF
    and WebP are supported. Damage that Pillow detects only inside the ``with`` block is reported
    as well.

    Args:
        source: a file, or its bytes.
        name: what errors call the image.
        max_pixels: larger images are refused by their header, before decoding; AVIF, HEIC and
            WebP above 100 million at any setting.

    Raises:
        DataError: cannot be opened, not an image, damaged, truncated, too large, more than one
            frame, or colors that are neither sRGB nor described by an ICC profile.
    """
    try:
        head = _head(source)
        if not head:
            raise _not_an_image("the file is empty (0 bytes)", name)
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=_formats(head, name)) as image:
            _refuse_size(image, name, max_pixels)
            _refuse_animation(image, name)
            _refuse_layout(image, name)
            image.load()
            _refuse_colors(image, head, name)
            yield image
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from None
    except UnidentifiedImageError:
        raise _not_an_image("is not a readable image", name) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=name) from None
    except _DAMAGE as error:
        raise DataError(
            f"cannot be decoded, the file is damaged or truncated: {error}",
            where=name,
            fix="export or copy it again",
        ) from None


def header_pixels(source: Path | bytes) -> int:
    """Width times height from the header; 0 if that cannot be read."""
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=_formats(_head(source), "")) as image:
            return image.width * image.height
    except (DataError, Image.DecompressionBombError, *_DAMAGE):
        return 0


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    with source.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _formats(head: bytes, name: str) -> tuple[str, ...]:
    if head[4:8] != b"ftyp":
        return _FORMATS
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, size - 3, 4))}
    if brands.isdisjoint(_HEIF_BRANDS):
        return _FORMATS
    if not _can_read_heif():
        raise DataError(
            "is a HEIC image, which needs pillow-heif; it is not installed",
            where=name,
            fix="pip install pillow-heif, or save it as PNG or JPEG",
        )
    return ("HEIF",)


@functools.cache
def _can_read_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _refuse_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.format in _COPYING:
        max_pixels = min(max_pixels, MAX_PIXELS_COPYING)
    if image.width * image.height > max_pixels:
        what = f"the header says {image.width}×{image.height} pixels"
        raise _too_large(name, what, max_pixels)


def _too_large(name: str, what: str, max_pixels: int) -> DataError:
    return DataError(
        f"too large to decode safely: {what}; the limit is {max_pixels / 1e6:.0f} million",
        where=name,
        fix="save a smaller version; training never needs this many pixels",
    )


def _not_an_image(what: str, name: str) -> DataError:
    return DataError(what, where=name, fix="replace the file or remove it from the folder")


def _refuse_animation(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    # MPO is a photograph with a depth or gain map behind it; its first frame is the picture.
    if frames > 1 and image.format != "MPO":
        raise DataError(
            f"has {frames} frames or pages; which one to train on is ambiguous",
            where=name,
            fix="save the frame you want as a still image",
        )


def _refuse_layout(image: Image.Image, name: str) -> None:
    """Before ``load``: 16-bit layouts that Pillow silently reads wrongly."""
    layout = ""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:
            layout = "a TIFF with separate 16-bit planes"
    elif image.format == "PNG" and isinstance(image.info.get("transparency"), tuple):
        (_, _, _, raw), *_ = image.tile  # type: ignore[attr-defined]
        if str(raw).endswith("16B"):
            layout = "a 16-bit PNG with a transparent color"
    if layout:
        raise DataError(
            f"{layout} is not decoded correctly",
            where=name,
            fix="save it as PNG with 8 bits, or with interleaved colors and an alpha channel",
        )


def _refuse_colors(image: Image.Image, head: bytes, name: str) -> None:
    """Colors declared by other means than a profile are not assumed to be sRGB."""
    if "icc_profile" in image.info and image.info["icc_profile"] is None:
        raise bad_profile("is damaged", name)
    if image.info.get("icc_profile"):
        return
    other_space = _code_points(image, head) or _gamma(image)
    if other_space:
        raise DataError(
            f"its colors are not sRGB, and it has no color profile to convert them: {other_space}",
            where=name,
            fix="convert it to sRGB in the program that created it",
        )


def _code_points(image: Image.Image, head: bytes) -> str:
    """The color space in the cICP chunk of a PNG or the nclx box of an AVIF or HEIC."""
    mark = {"PNG": b"cICP", "AVIF": b"colrnclx", "HEIF": b"colrnclx"}.get(image.format or "", b"")
    start = head.find(mark) + len(mark) if mark and mark in head else None
    if start is None:
        return ""
    step = 1 if image.format == "PNG" else 2
    fields = [int.from_bytes(head[start + i * step : start + (i + 1) * step]) for i in (0, 1)]
    if fields[0] in _SRGB_PRIMARIES and fields[1] in _SRGB_TRANSFERS:
        return ""
    names = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
    curves = {8: "linear", 16: "PQ (HDR)", 18: "HLG (HDR)"}
    return (
        f"primaries {names.get(fields[0], fields[0])}, "
        f"transfer {curves.get(fields[1], fields[1])} by its code points"
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


def bad_profile(what: str, name: str) -> DataError:
    """The error for an unusable color profile."""
    return DataError(
        f"the embedded color profile {what}",
        where=name,
        fix="convert it to sRGB in the program that created it, or remove the profile to mean sRGB",
    )

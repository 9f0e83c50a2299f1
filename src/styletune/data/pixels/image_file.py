"""One image file opened and loaded, or refused by name: what it is, how large, how damaged."""

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

# The names of files that are taken for images to train on; what is inside decides how to read.
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
# Of Pillow's decoders no others: some run other programs (EPS), most were never meant to meet
# hostile files.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG opens MPO

MAX_PIXELS = 178_000_000
# These decoders hold up to four copies of the pixels at once; others two.
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
    """Open and load one still image as it is stored; its contents decide, not its name.

    AVIF, BMP, GIF, HEIC (with ``pillow-heif``), JPEG, MPO (its first picture), PNG, PPM, TIFF
    and WebP are read. Damage that Pillow only finds in the ``with`` block is reported as well.

    Args:
        source: a file, or its bytes.
        name: what errors call the image.
        max_pixels: larger images are refused by their header, before they are decoded; AVIF,
            HEIC and WebP by 100 million already.

    Raises:
        DataError: cannot be opened, not an image, damaged, cut short, too large, more than one
            frame, or colours that are neither sRGB nor given by an ICC profile.
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
        raise _not_an_image("is not an image that can be read", name) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=name) from None
    except _DAMAGE as error:
        raise DataError(
            f"cannot be decoded, the file is damaged or cut short: {error}",
            where=name,
            fix="export or copy it again",
        ) from None


def header_pixels(source: Path | bytes) -> int:
    """Width times height by the header; 0 where that cannot be read."""
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
            "is a HEIC image, which needs pillow-heif, and that is not installed",
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
    return DataError(what, where=name, fix="replace the file or take it out of the folder")


def _refuse_animation(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    # MPO is a photograph with a depth or gain map behind it; its first frame is the picture.
    if frames > 1 and image.format != "MPO":
        raise DataError(
            f"has {frames} frames or pages; which one to train on is not for us to guess",
            where=name,
            fix="save the frame you want as a still image",
        )


def _refuse_layout(image: Image.Image, name: str) -> None:
    """Before ``load``: 16-bit layouts that Pillow reads wrongly and says nothing."""
    what = ""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:
            what = "a TIFF of 16-bit planes, one a colour,"
    elif image.format == "PNG" and isinstance(image.info.get("transparency"), tuple):
        (_, _, _, raw), *_ = image.tile  # type: ignore[attr-defined]
        if str(raw).endswith("16B"):
            what = "a 16-bit PNG with a transparent colour"
    if what:
        raise DataError(
            f"{what} is not decoded correctly",
            where=name,
            fix="save it as PNG with 8 bits, or with interleaved colours and an alpha channel",
        )


def _refuse_colors(image: Image.Image, head: bytes, name: str) -> None:
    """Colours that are declared, but not in a profile that is used, are not taken for sRGB."""
    if "icc_profile" in image.info and image.info["icc_profile"] is None:
        raise bad_profile("is damaged", name)
    if image.info.get("icc_profile"):
        return
    said = _code_points(image, head) or _gamma(image)
    if said:
        raise DataError(
            f"its colours are not sRGB, and there is no colour profile to convert them by: {said}",
            where=name,
            fix="convert it to sRGB in the program that made it",
        )


def _code_points(image: Image.Image, head: bytes) -> str:
    """The colour space in the cICP chunk of a PNG or the nclx box of an AVIF or HEIC."""
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
    """A gAMA or cHRM chunk of a PNG that is not that of sRGB."""
    info = image.info
    if image.format != "PNG" or "srgb" in info:
        return ""
    # Programs round 1/2.2; 0.02 off is a step of 2 in mid grey.
    if abs(info.get("gamma", 0.45455) - 0.45455) > 0.01:
        return f"gamma {info['gamma']} instead of 0.45455"
    found = info.get("chromaticity", _SRGB_CHROMATICITY)
    if max(abs(a - b) for a, b in zip(found, _SRGB_CHROMATICITY, strict=True)) > 0.01:
        return "other primaries in its cHRM chunk"
    return ""


def bad_profile(what: str, name: str) -> DataError:
    """The error for a colour profile that cannot be used."""
    return DataError(
        f"the embedded colour profile {what}",
        where=name,
        fix="convert it to sRGB in the program that made it; without a profile it is read as sRGB",
    )

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

from styletune.data.pixels.color_signals import color_signals, refuse_colors
from styletune.errors import DataError

# No other decoders of Pillow: some run other programs (EPS), most were never meant for hostile
# files.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG opens MPO

MAX_PIXELS = 178_000_000
# No picture is longer; decoders take far more memory and time for rows of a pixel.
MAX_STRETCH, MAX_STRIP = 100, 65_535
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
# A key of ``Image.info`` of our own: bits per channel of a PNG, which Pillow forgets.
BIT_DEPTH = "styletune: bit depth"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")


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
            WebP above 100 million at any setting; so are endless strips.

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
            if image.format == "PNG":
                image.info[BIT_DEPTH] = head[24]
            signals = color_signals(image, source, head)
            image.load()
            refuse_colors(image, signals, name)
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
    long, short = max(image.size), min(image.size)
    if long > max(MAX_STRETCH * short, MAX_STRIP):
        raise DataError(
            f"a strip of {image.width}×{image.height} pixels, more than {MAX_STRETCH}:1",
            where=name,
            fix="crop it to what matters, or remove it from the folder",
        )


def _too_large(name: str, what: str, max_pixels: int) -> DataError:
    return DataError(
        f"too large to decode safely: {what}; the limit is {max_pixels / 1e6:.0f} million",
        where=name,
        fix="save a smaller version; training never needs this many pixels",
    )


def _not_an_image(what: str, name: str) -> DataError:
    return DataError(what, where=name, fix="replace the file or remove it from the folder")


def _refuse_animation(image: Image.Image, name: str) -> None:
    # MPO is a photograph with a depth or gain map behind it; its first frame is the picture.
    if image.format != "MPO" and _has_second_frame(image):
        raise DataError(
            "has several frames or pages; which one to train on is ambiguous",
            where=name,
            fix="save the frame you want as a still image",
        )


def _has_second_frame(image: Image.Image) -> bool:
    # Counting means reading all of them, and there may be 200,000.
    if image.format not in ("GIF", "TIFF"):
        return getattr(image, "n_frames", 1) > 1
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


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

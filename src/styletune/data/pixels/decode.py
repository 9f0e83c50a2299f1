"""One image file to upright 8-bit sRGB pixels."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from styletune.colors import color_bytes
from styletune.data.pixels.color_signals import bad_profile, own_exif
from styletune.data.pixels.image_file import BIT_DEPTH, MAX_PIXELS, open_image
from styletune.errors import DataError

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Color space signature in an ICC header (ICC.1:2022, table 19) -> mode of the image it fits.
_PROFILE_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}
_NUMBERS_16 = {"I;16", "I;16L", "I;16B", "I;16N"}
_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262
_STRIP_ROWS = 256
# Levels per channel at which a profile is compared with sRGB.
_GRID = 17
# Levels of 255 that 8 bits may skip in a conversion; gammas from 1.8 to 2.6 stay below.
MAX_STEP = 6


def decode_image(
    source: Path | bytes, *, name: str, background: str | None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image to upright 8-bit sRGB. The original is never changed.

    Order: pixel cap from the header, full load, color profile to sRGB (relative colorimetric
    with black point compensation; no profile means sRGB), Exif orientation, alpha over the
    declared background (in sRGB values, as browsers do). 16-bit samples are scaled, not clipped.

    Args:
        source: a file, or its bytes.
        name: what errors call the image.
        background: ``"#rrggbb"`` under transparent pixels; None if none is declared.
        max_pixels: larger images are refused before they are decoded (``open_image``).

    Returns:
        An image of mode ``RGB``.

    Raises:
        DataError: not an image, damaged, too large, animated, an unusable color profile or color
            space, or transparent without a declared background.
    """
    return decode_with_alpha(source, name=name, background=background, max_pixels=max_pixels)[0]


def decode_with_alpha(
    source: Path | bytes, *, name: str, background: str | None, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Image.Image | None]:
    """As ``decode_image``, with the upright alpha (mode ``L``); None if fully opaque."""
    with open_image(source, name=name, max_pixels=max_pixels) as image:
        colors = read_colors(image, name=name)
    del image  # two copies of the pixels are enough
    upright = turn_upright(colors)
    return flatten(upright, background, name=name), upright.alpha


@dataclass(frozen=True, slots=True)
class Colors:
    """Stored pixels in sRGB.

    ``color`` has mode ``RGB``, with whatever is under transparent pixels; ``alpha`` (mode ``L``)
    is None if fully opaque; ``turn`` the rotation still needed to be upright, None for none;
    ``profile`` the description of the ICC profile used, "" for none.
    """

    color: Image.Image
    alpha: Image.Image | None
    turn: Image.Transpose | None
    profile: str


def read_colors(image: Image.Image, *, name: str) -> Colors:
    """Convert the pixels of a loaded image (``open_image``) to sRGB. Raises DataError."""
    turn = _orientation(image, name)
    stored, alpha = _color_and_alpha(image, name)
    profile_bytes = image.info.get("icc_profile")
    if profile_bytes and _has_16_bits(image) and _is_steep(profile_bytes):
        raise DataError(
            "16-bit colors whose profile is linear or nearly so; read with 8 bits, its dark parts "
            "would be off by several levels",
            where=name,
            fix="convert it to sRGB in the program that created it",
        )
    color, profile = _to_srgb(stored, profile_bytes, name)
    color.info = {}
    # libheif rotates HEIC as its container says and clears its Exif tag, so that is ignored.
    return Colors(color, alpha, turn, profile)


def turn_upright(colors: Colors) -> Colors:
    """Apply the rotation that is still needed."""
    turn, alpha = colors.turn, colors.alpha
    if turn is None:
        return colors
    alpha = alpha.transpose(turn) if alpha is not None else None
    return Colors(colors.color.transpose(turn), alpha, None, colors.profile)


def _orientation(image: Image.Image, name: str) -> Image.Transpose | None:
    try:
        # After load: some plugins rotate the image themselves and then clear the tag.
        return _UPRIGHT.get(own_exif(image).get(_ORIENTATION_TAG, 1))
    except Exception as error:  # noqa: BLE001  # Pillow's Exif parser raises nearly anything
        raise DataError(
            f"its Exif data is damaged, so its orientation is unknown: {error}",
            where=name,
            fix="rotate it upright and save it without metadata",
        ) from None


def _color_and_alpha(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Color as RGB, L, CMYK or LAB, and the alpha band (L) unless fully opaque."""
    mode = image.mode
    if mode in _NUMBERS_16 or mode == "I":
        return _scale_16(image, name)
    if mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[mode])
    elif mode == "PA" or ("transparency" in image.info and mode in ("1", "L", "P", "RGB")):
        image = image.convert("LA" if mode == "L" else "RGBA")
    elif mode in ("1", "P", "RGBX", "YCbCr"):
        image = image.convert("L" if mode == "1" else "RGB")
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        hides = opaque_pixels(alpha) < image.width * image.height
        return image.convert("RGB" if image.mode == "RGBA" else "L"), alpha if hides else None
    if image.mode not in _PROFILE_MODES.values():
        raise DataError(
            f"pixels of type {mode} have no defined range or color",
            where=name,
            fix="save it as 8-bit or 16-bit sRGB",
        )
    return image, None


def opaque_pixels(alpha: Image.Image) -> int:
    """How many pixels of an alpha band (mode ``L``) are fully opaque."""
    return alpha.histogram()[255]


def _scale_16(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """16-bit gray to 8-bit by v·255/65535, with its color key as alpha."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise DataError(
            "32-bit or signed integer pixels have no defined range",
            where=name,
            fix="save it as 8-bit or 16-bit sRGB",
        )
    # Pillow leaves 12-bit TIFF and TIFF whose white is zero as stored.
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    white = (1 << max(tags.get(_BITS_TAG, (16,)))) - 1
    steps = np.clip(np.arange(65536), 0, white)
    if tags.get(_PHOTOMETRIC_TAG) == 0:
        steps = white - steps
    table = ((steps * 255 + white // 2) // white).astype(np.uint8)
    key = image.info.get("transparency")
    values = np.asarray(image)
    gray = np.empty(values.shape, np.uint8)
    alpha = np.full(values.shape, 255, np.uint8) if isinstance(key, int) else None
    for top in range(0, len(values), _STRIP_ROWS):  # indices take 8 bytes per pixel
        strip = slice(top, top + _STRIP_ROWS)
        gray[strip] = table[values[strip]]
        if alpha is not None:
            alpha[strip][values[strip] == key] = 0
    hides = alpha is not None and not alpha.all()
    return Image.fromarray(gray), Image.fromarray(alpha) if alpha is not None and hides else None


def _to_srgb(color: Image.Image, profile: bytes | None, name: str) -> tuple[Image.Image, str]:
    """Color to sRGB through its own profile, and that profile's description."""
    if color.mode == "CMYK" and not profile:
        raise DataError(
            "CMYK without a color profile: its colors are undefined",
            where=name,
            fix="save it as sRGB, or embed the profile it was separated with",
        )
    if color.mode == "LAB" and not profile:
        return _convert(color, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), name), ""
    if not profile:
        return _plain_rgb(color), ""
    mode = _PROFILE_MODES.get(profile[16:20])
    # Gray pixels with an RGB profile are common, and mean R = G = B.
    if mode == "RGB" and color.mode == "L":
        color = color.convert("RGB")
    if mode != color.mode:
        space = profile[16:20].decode("latin-1").strip() or "nothing"
        raise bad_profile(f"is for {space} but the pixels are {color.mode}", name)
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = ImageCms.getProfileDescription(opened).strip("\0 \n") or "unnamed"
    except (OSError, ImageCms.PyCMSError) as error:
        raise bad_profile(f"cannot be read: {error}", name) from None
    if mode == "RGB" and _is_srgb(profile):
        return _plain_rgb(color), description
    return _convert(color, opened, name), description


def _plain_rgb(color: Image.Image) -> Image.Image:
    """As RGB, detached from its file; avoids a second copy of a large image."""
    is_plain = type(color) is Image.Image and color.mode == "RGB"
    return color if is_plain else color.convert("RGB")


def _has_16_bits(image: Image.Image) -> bool:
    """Whether an image was stored with 16 bits per channel; Pillow keeps the upper 8 of colors."""
    if image.mode in _NUMBERS_16:
        return True
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(_BITS_TAG, (8,))) > 8)  # type: ignore[attr-defined]
    return image.format == "PNG" and image.info.get(BIT_DEPTH) == 16


@functools.lru_cache(maxsize=16)
def _is_steep(profile: bytes) -> bool:
    """Whether neighboring 8-bit levels become more than ``MAX_STEP`` levels of sRGB apart."""
    mode = _PROFILE_MODES.get(profile[16:20])
    if mode not in ("RGB", "L"):
        return False
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert(mode)
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        levels = np.asarray(_convert(ramp, opened, "")).astype(np.int16)
    except (OSError, DataError):  # raised again, with the file's name, when it is converted
        return False
    return bool(np.abs(np.diff(levels, axis=1)).max() > MAX_STEP)


@functools.lru_cache(maxsize=16)
def _is_srgb(profile: bytes) -> bool:
    """Whether a readable RGB profile is sRGB to a rounding step, as most are.

    Its pixels then stay unchanged: faster, and the same as those of a copy without a profile.
    """
    levels = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(_GRID, -1, 3)
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    try:
        converted = np.asarray(_convert(Image.fromarray(grid), opened, ""))
    except DataError:  # raised again, with the file's name, when the image is converted
        return False
    return bool(np.abs(converted.astype(np.int16) - grid).max() <= 1)


def _convert(color: Image.Image, profile: ImageCms.ImageCmsProfile, name: str) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            color,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        raise bad_profile(f"cannot be used: {error}", name) from None
    assert converted is not None
    return converted


def flatten(upright: Colors, background: str | None, *, name: str) -> Image.Image:
    """Color over the background; unchanged if fully opaque.

    Raises:
        DataError: there are transparent pixels and no background.
    """
    rgb, alpha = upright.color, upright.alpha
    if alpha is None:
        return rgb
    if background is None:
        pixels = alpha.width * alpha.height
        raise DataError(
            f"{pixels - opaque_pixels(alpha)} of {pixels} pixels are transparent, but no "
            "background is declared",
            where=name,
            fix='declare one: background = "#ffffff" in dataset.toml next to the images, or in '
            "the recipe's [data]",
        )
    base = Image.new("RGB", rgb.size, color_bytes(background))
    base.paste(rgb, mask=alpha)
    return base

"""One image file to upright 8-bit sRGB pixels, and those to the rectangle that is trained on."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from styletune.data.buckets import CropPlan, Size, plan_crop, refuse_upscale
from styletune.data.card import color_bytes
from styletune.errors import DataError

MAX_PIXELS = 178_000_000

# We cap pixels ourselves; Pillow's own warning starts at half of that and names no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# What Pillow's decoders raise on damaged files, depending on the format.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip

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

# Colour space signature in an ICC header (ICC.1:2022, table 19) -> mode of the image it fits.
_PROFILE_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}
_NUMBERS_16 = {"I;16", "I;16L", "I;16B", "I;16N"}


def decode_image(
    source: Path | bytes, *, name: str, background: str | None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image to upright 8-bit sRGB. The original is never changed.

    Order: pixel cap from the header, full load, colour profile to sRGB (relative colorimetric
    with black point compensation; no profile means sRGB), alpha over the declared background
    (in sRGB values, as browsers do), Exif orientation. 16-bit samples are scaled, not clipped.

    Args:
        source: a file, or its bytes.
        name: what errors call the image.
        background: ``"#rrggbb"`` under transparent pixels; None if none is declared.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        An image of mode ``RGB``.

    Raises:
        DataError: not an image, damaged, too large, animated, an unusable colour profile or
            colour space, or transparent without a declared background.
    """
    return decode_with_alpha(source, name=name, background=background, max_pixels=max_pixels)[0]


def decode_with_alpha(
    source: Path | bytes, *, name: str, background: str | None, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Image.Image | None]:
    """As ``decode_image``, with the upright alpha (mode ``L``); None if all is opaque."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _refuse_size(image.size, name, max_pixels)
            _refuse_animation(image, name)
            image.load()
            # After load: some plugins turn the image themselves and then clear the tag.
            turn = _orientation(image, name)
            profile = image.info.get("icc_profile")
            color, alpha = _color_and_alpha(image, name)
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from None
    except UnidentifiedImageError:
        raise _not_an_image(source, name) from None
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=name) from None
    except _DAMAGE as error:
        raise DataError(
            f"cannot be decoded, the file is damaged or cut short: {error}",
            where=name,
            fix="export or copy it again",
        ) from None
    rgb = _to_srgb(color, profile, name)
    if alpha is not None:
        rgb = _flatten(rgb, alpha, background, name)
    if turn is not None:
        rgb = rgb.transpose(turn)
        alpha = alpha.transpose(turn) if alpha is not None else None
    rgb.info = {}
    return rgb, alpha


def _orientation(image: Image.Image, name: str) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE as error:
        raise DataError(
            f"its Exif data is damaged, so which side is up is not known: {error}",
            where=name,
            fix="turn it upright and save it without metadata",
        ) from None


def _refuse_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _too_large(name, f"the header says {width}×{height} pixels", max_pixels)


def _too_large(name: str, what: str, max_pixels: int) -> DataError:
    return DataError(
        f"too large to decode safely: {what}; the limit is {max_pixels / 1e6:.0f} million",
        where=name,
        fix="save a smaller version; training never needs this many pixels",
    )


def _not_an_image(source: Path | bytes, name: str) -> DataError:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    what = "is not an image that can be read" if size else "the file is empty (0 bytes)"
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


def _color_and_alpha(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Colour as RGB, L, CMYK or LAB, and the alpha band (L) unless it is fully opaque."""
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
        bands = image.split()
        alpha = None if _opaque_pixels(bands[-1]) == image.width * image.height else bands[-1]
        return (Image.merge("RGB", bands[:3]) if len(bands) == 4 else bands[0]), alpha
    if image.mode not in _PROFILE_MODES.values():
        raise DataError(
            f"pixels of type {mode} have no defined range or colour",
            where=name,
            fix="save it as 8-bit or 16-bit sRGB",
        )
    return image, None


def _opaque_pixels(alpha: Image.Image) -> int:
    return alpha.histogram()[255]


def _scale_16(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """16-bit grey to 8-bit by v·255/65535, with its colour key as alpha."""
    values = np.asarray(image)
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise DataError(
            "32-bit integer pixels have no defined range",
            where=name,
            fix="save it as 8-bit or 16-bit sRGB",
        )
    wide = values.astype(np.uint32)
    gray = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    key = image.info.get("transparency")
    if not isinstance(key, int) or not (wide == key).any():
        return gray, None
    return gray, Image.fromarray(np.where(wide == key, 0, 255).astype(np.uint8))


def _to_srgb(color: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """Colour to sRGB through its own profile."""
    if color.mode == "CMYK" and not profile:
        raise DataError(
            "CMYK without a colour profile: its colours are not defined",
            where=name,
            fix="save it as sRGB, or embed the profile it was separated with",
        )
    if color.mode == "LAB" and not profile:
        return _convert(color, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), name)
    if not profile:
        return color.convert("RGB")
    mode = _PROFILE_MODES.get(profile[16:20])
    # Grey pixels under an RGB profile are common, and mean R = G = B.
    if mode == "RGB" and color.mode == "L":
        color = color.convert("RGB")
    if mode != color.mode:
        space = profile[16:20].decode("latin-1").strip() or "nothing"
        raise _bad_profile(f"is for {space} but the pixels are {color.mode}", name)
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError) as error:
        raise _bad_profile(f"cannot be read: {error}", name) from None
    return _convert(color, opened, name)


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
        raise _bad_profile(f"cannot be used: {error}", name) from None
    assert converted is not None
    return converted


def _bad_profile(what: str, name: str) -> DataError:
    return DataError(
        f"the embedded colour profile {what}",
        where=name,
        fix="convert it to sRGB in the program that made it; without a profile it is read as sRGB",
    )


def _flatten(
    rgb: Image.Image, alpha: Image.Image, background: str | None, name: str
) -> Image.Image:
    if background is None:
        pixels = alpha.width * alpha.height
        raise DataError(
            f"{pixels - _opaque_pixels(alpha)} of {pixels} pixels are transparent and no "
            "background is declared",
            where=name,
            fix='declare one: background = "#ffffff" in dataset.toml beside the images, or in '
            "the recipe's [data]",
        )
    base = Image.new("RGB", rgb.size, color_bytes(background))
    base.paste(rgb, mask=alpha)
    return base


@dataclass(frozen=True, slots=True)
class Crop:
    """Training pixels with SDXL's micro-conditioning (arXiv 2307.01952, §2.2).

    ``pixels``: (h, w, 3) uint8 sRGB; ``mask``: (h, w) float32, where the loss counts, 0 to 1,
    or None for everywhere. Sizes and the corner are (height, width), (top, left):
    ``original_size`` before resizing, ``crops_coords_top_left`` in pixels of the resized image.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.float32] | None
    original_size: Size
    crops_coords_top_left: Size
    target_size: Size


def crop_corner(plan: CropPlan, flip: bool) -> Size:
    """(top, left) of the crop in the resized image, mirrored or not.

    A mirrored image is the picture that a mirrored original would have given, and there the
    left margin is what used to be the right one. The trim is centred, so they differ by the
    odd pixel only; but the model is told the truth.
    """
    left = plan.resized[1] - plan.bucket[1] - plan.left if flip else plan.left
    return plan.top, left


def crop_image(
    image: Image.Image, plan: CropPlan, *, flip: bool, resample: Image.Resampling
) -> Image.Image:
    """Resize, cut and mirror as planned."""
    (rows, columns), (height, width) = plan.bucket, plan.resized
    resized = image.resize((width, height), resample)
    box = (plan.left, plan.top, plan.left + columns, plan.top + rows)
    cut = resized.crop(box)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut


def crop_pixels(
    image: Image.Image, plan: CropPlan, *, flip: bool = False, mask: NDArray[np.float32] | None
) -> Crop:
    """Cut a bucket out of upright RGB (antialiased Lanczos); ``mask`` is cut already."""
    cut = crop_image(image, plan, flip=flip, resample=Image.Resampling.LANCZOS)
    return Crop(np.array(cut, np.uint8), mask, plan.original, crop_corner(plan, flip), plan.bucket)


def plan_square(width: int, height: int, resolution: int, *, name: str) -> CropPlan:
    """Plan the square bucket. Raises DataError on too large an upscale."""
    plan = plan_crop(height, width, (resolution, resolution))
    refuse_upscale(plan, name)
    return plan


def square_pixels(image: Image.Image, resolution: int, *, name: str = "image") -> Crop:
    """Resize the short side to ``resolution`` and crop the centre of upright RGB.

    Raises:
        DataError: the image would be enlarged more than 1.25 times.
    """
    plan = plan_square(image.width, image.height, resolution, name=name)
    return crop_pixels(image, plan, mask=None)

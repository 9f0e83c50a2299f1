"""A mask: where the loss counts. White (255) counts fully, black not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from styletune.data.pixels.buckets import CropPlan
from styletune.data.pixels.crop import crop_mask
from styletune.data.pixels.decode import decode_with_alpha
from styletune.errors import DataError

# JPEG and color profiles move equal channels apart by this much.
MAX_TINT = 4
# A mask without anything brighter is not meant as it is read.
DARKEST_WHITE = 16


def read_mask(file: Path, size: tuple[int, int], *, name: str) -> Image.Image:
    """Decode a mask to upright gray (mode ``L``).

    Args:
        file: any image that can be read; gray, without transparency.
        size: (width, height) of the upright image it belongs to.
        name: of that image, for errors.

    Raises:
        DataError: it cannot be read, is colored, or has another size.
    """
    label = f"{name}, mask {file.name}"
    # Any background: what is transparent is refused, because it may mean either.
    image, alpha = decode_with_alpha(file, name=label, background="#000000")
    if alpha is not None:
        raise DataError(
            "the mask has transparent pixels, which may mean black or white",
            where=label,
            fix="save it as gray without transparency",
        )
    if image.size != size:
        raise DataError(
            f"the mask is {image.width}×{image.height} and the image {size[0]}×{size[1]} pixels",
            where=label,
            fix="export the mask at the size of its image",
        )
    channels = np.asarray(image).astype(np.int16)
    tint = int((channels.max(-1) - channels.min(-1)).max())
    if tint > MAX_TINT:
        raise DataError(
            "the mask is colored, so what counts is unclear", where=label, fix="save it as gray"
        )
    return image.getchannel("G")


def check_mask(mask: Image.Image, plans: Sequence[CropPlan], *, name: str) -> None:
    """Raise DataError if a mask is nearly black, or one of the crops contains nothing of it."""
    brightest = mask.getextrema()[1]
    assert isinstance(brightest, int | float)
    if 0 < brightest < DARKEST_WHITE:
        raise DataError(
            f"its brightest value is {brightest:g} of 255: it was probably saved as 0 and 1",
            where=name,
            fix="save what counts as white (255)",
        )
    for plan in plans:
        if not crop_mask(mask, plan, flip=False).any():
            part = "mask" if mask.getextrema() == (0, 0) else "crop of the mask"
            raise DataError(
                f"the whole {part} is black, so nothing of the image would be learned",
                where=name,
                fix="paint what counts white, or remove the image from the folder",
            )


def mask_hash(mask: Image.Image) -> str:
    """SHA-256 (hex) of a mask's size and values."""
    digest = hashlib.sha256(f"{mask.width}x{mask.height} L\n".encode())
    digest.update(mask.tobytes())
    return digest.hexdigest()

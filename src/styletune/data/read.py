"""A loaded set's pixels: decoded again, compared with what was loaded, and cropped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.pixels.crop import Crop, crop_mask, crop_pixels, square_pixels
from styletune.data.pixels.decode import decode_with_alpha
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.pixels.mask import mask_hash, read_mask
from styletune.data.rows import Entry, Row
from styletune.data.sources.item_bytes import read_item
from styletune.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


def read_row(row: Row) -> tuple[Image.Image, Image.Image | None]:
    """Decode one image again, upright, with its mask (mode ``L``) if it has one.

    Raises:
        DataError: it cannot be decoded, or is no longer what was loaded.
    """
    image, alpha = decode_with_alpha(
        read_item(row.path, row.member), name=row.file_name, background=row.background or None
    )
    mask = alpha if row.mask_hash else None
    if row.mask_path:
        mask = read_mask(Path(row.mask_path), image.size, name=row.file_name)
    for part, actual, expected in (
        ("image", pixel_hash(image), row.pixel_hash),
        ("mask", mask_hash(mask) if mask else "", row.mask_hash),
    ):
        if actual != expected:
            raise DataError(
                f"the {part} changed after the data set was loaded",
                where=row.file_name,
                fix="start the run again",
            )
    return image, mask


def read_square(row: Row, resolution: int) -> Crop:
    """Decode one image to its central square without a mask, for references and previews.

    Raises:
        DataError: as ``read_row``.
    """
    return square_pixels(read_row(row)[0], resolution)


def read_entry(entry: Entry) -> Crop:
    """Decode an entry's pixels and mask.

    Raises:
        DataError: the image or its mask cannot be decoded, or changed since it was loaded.
    """
    image, mask = read_row(entry.row)
    cut = None if mask is None else crop_mask(mask, entry.plan, flip=entry.flip)
    return crop_pixels(image, entry.plan, flip=entry.flip, mask=cut)

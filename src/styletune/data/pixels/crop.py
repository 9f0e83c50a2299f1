"""Cropping upright images to their buckets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.pixels.buckets import CropPlan, Size, plan_crop


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

    A mirrored image is what a mirrored original would have given, and there the
    left margin is the former right one. The trim is centered, so they differ by the odd pixel
    only; but the model gets the exact numbers.
    """
    left = plan.resized[1] - plan.bucket[1] - plan.left if flip else plan.left
    return plan.top, left


def crop_image(
    image: Image.Image, plan: CropPlan, *, flip: bool, resample: Image.Resampling
) -> Image.Image:
    """Resize, crop and mirror as planned."""
    (rows, columns), (height, width) = plan.bucket, plan.resized
    resized = image.resize((width, height), resample)
    box = (plan.left, plan.top, plan.left + columns, plan.top + rows)
    cut = resized.crop(box)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut


def crop_pixels(
    image: Image.Image, plan: CropPlan, *, flip: bool = False, mask: NDArray[np.float32] | None
) -> Crop:
    """Cut a bucket out of upright RGB (antialiased Lanczos); ``mask`` is already cropped."""
    cut = crop_image(image, plan, flip=flip, resample=Image.Resampling.LANCZOS)
    return Crop(np.array(cut, np.uint8), mask, plan.original, crop_corner(plan, flip), plan.bucket)


def square_pixels(image: Image.Image, resolution: int) -> Crop:
    """Resize the short side of upright RGB to ``resolution``, up or down, and crop the center."""
    plan = plan_crop(image.height, image.width, (resolution, resolution))
    return crop_pixels(image, plan, mask=None)


def crop_mask(mask: Image.Image, plan: CropPlan, *, flip: bool) -> NDArray[np.float32]:
    """Crop a mask like its image: (h, w) float32, 0 to 1, averaged over areas."""
    cut = crop_image(mask, plan, flip=flip, resample=Image.Resampling.BOX)
    return np.asarray(cut, np.float32) / np.float32(255)

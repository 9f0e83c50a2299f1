"""Where the loss counts: a grey image of the same size, or the image's own alpha.

White (255) counts in full, black not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.buckets import CropPlan
from styletune.data.findings import data_error, finding
from styletune.data.open import find_files
from styletune.data.orient import crop_image, decode_image
from styletune.errors import DataError, NotFound

VAE_FACTOR = 8
# JPEG and colour profiles move equal channels apart by this much.
MAX_TINT = 4


def find_masks(folder: Path, images: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """The mask of every image: the file of the same relative name, whatever its extension.

    Args:
        folder: the masks.
        images: the sources of the images, which may not hold the masks too.
        names: relative posix names of the images.

    Raises:
        NotFound: there is no such folder.
        DataError: an image has no mask or several, or a mask has no image; all are named.
    """
    if not folder.is_dir():
        raise NotFound("no such folder of masks", where=str(folder), fix="correct data.mask_path")
    if any(folder.resolve().is_relative_to(source.resolve()) for source in images):
        raise DataError(
            "the masks lie in the folder of the images, where they are taken for images",
            where=str(folder),
            fix="move them beside it",
        )
    found: dict[str, list[str]] = {}
    for name in find_files(folder).images:
        found.setdefault(_stem(name), []).append(name)
    wanted = {_stem(name) for name in names}
    faults = (
        (
            "images without a mask",
            [name for name in names if _stem(name) not in found],
            "add a mask of the same name; all white where everything counts",
        ),
        (
            "masks without an image",
            [name for stem, files in found.items() if stem not in wanted for name in files],
            "name masks like their images, or take them out of the folder",
        ),
        (
            "several masks of one name",
            [name for files in found.values() if len(files) > 1 for name in files],
            "keep one of them",
        ),
    )
    found_faults = [finding("bad-mask", files, what, fix) for what, files, fix in faults if files]
    if found_faults:
        raise data_error(str(folder), found_faults)
    return {name: folder / found[_stem(name)][0] for name in names}


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def read_mask(file: Path, size: tuple[int, int], *, name: str) -> Image.Image:
    """Decode a mask to upright grey (mode ``L``).

    Args:
        file: any image that can be read; grey, without transparency.
        size: (width, height) of the upright image it belongs to.
        name: of that image, for errors.

    Raises:
        DataError: it cannot be read, is coloured, or is of another size.
    """
    label = f"{name}, mask {file.name}"
    image = decode_image(file, name=label, background=None)
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
            "the mask is coloured, so what counts is not clear", where=label, fix="save it as grey"
        )
    return image.getchannel("G")


def check_mask(mask: Image.Image, plans: Sequence[CropPlan], *, name: str) -> None:
    """Raise DataError when nothing of a mask is left in one of the crops."""
    for plan in plans:
        if not crop_mask(mask, plan, flip=False).any():
            part = "all" if mask.getextrema() == (0, 0) else "the whole crop of"
            raise DataError(
                f"{part} the mask is black, so nothing of the image would be learnt",
                where=name,
                fix="paint white what counts, or take the image out of the folder",
            )


def mask_hash(mask: Image.Image) -> str:
    """SHA-256 (hex) of a mask's size and values."""
    digest = hashlib.sha256(f"{mask.width}x{mask.height} L\n".encode())
    digest.update(mask.tobytes())
    return digest.hexdigest()


def crop_mask(mask: Image.Image, plan: CropPlan, *, flip: bool) -> NDArray[np.float32]:
    """Cut a mask as its image is cut: (h, w) float32, 0 to 1, averaged over areas."""
    cut = crop_image(mask, plan, flip=flip, resample=Image.Resampling.BOX)
    return np.asarray(cut, np.float32) / np.float32(255)


def latent_mask(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """What share of every latent cell counts: the mean of its 8×8 pixels.

    Args:
        mask: (h, w) float32, 0 to 1; sides are multiples of 8.

    Returns:
        (h/8, w/8) float32, 0 to 1.
    """
    rows, columns = (side // VAE_FACTOR for side in mask.shape)
    assert mask.shape == (rows * VAE_FACTOR, columns * VAE_FACTOR), mask.shape
    # Double precision: the mean of 64 ones is exactly one.
    cells = mask.reshape(rows, VAE_FACTOR, columns, VAE_FACTOR).mean((1, 3), dtype=np.float64)
    shares: NDArray[np.float32] = cells.astype(np.float32)
    return shares

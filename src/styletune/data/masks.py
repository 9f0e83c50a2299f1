"""Where the loss counts: a grey image of the same size, or the image's own alpha.

White (255) counts in full, black not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from styletune.data.findings import Finding, finding, named
from styletune.data.pixels.buckets import CropPlan, Tables, choose_bucket, plan_crop
from styletune.data.pixels.crop import crop_mask
from styletune.data.pixels.decode import decode_image, decode_with_alpha
from styletune.data.sources.contents import read_item
from styletune.data.sources.files import find_files
from styletune.data.sources.items import Item
from styletune.errors import DataError, NotFound

MASKS_AT_ONCE = 2  # a 100-megapixel original takes a gigabyte while it is decoded
# JPEG and colour profiles move equal channels apart by this much.
MAX_TINT = 4


@dataclass(frozen=True, slots=True)
class Masks:
    """Of a set, by the image's file name: mask files, and the hash of every mask there is."""

    files: Mapping[str, Path]
    hashes: Mapping[str, str]


def set_masks(
    items: Sequence[Item],
    names: Sequence[str],
    sources: Sequence[Path],
    *,
    kind: Literal["none", "alpha", "folder"],
    folder: Path | None,
    tables: Tables,
) -> tuple[Masks, list[Finding]]:
    """The masks of all images, read once, and what is wrong with them (``bad-mask``).

    Args:
        items: the images that can be decoded.
        names: of all images; a mask may belong to one that cannot.
        sources: where the images are; the masks may not lie in there too.
        kind: where the loss counts: everywhere, by alpha, or by the files in ``folder``.
        folder: masks of the same relative names as their images, whatever their extensions.
        tables: the buckets that images and masks are cut to.

    Raises:
        NotFound: there is no such folder of masks.
        DataError: the masks lie in the folder of the images.
    """
    if kind == "none":
        return Masks({}, {}), []
    files, faults = dict[str, Path](), list[Finding]()
    if kind == "folder":
        assert folder is not None, "masks without a folder"
        files, faults = find_masks(folder, sources, names)
        items = [item for item in items if item.file_name in files]

    def one(item: Item) -> str | DataError:
        try:
            return _read_hash(item, files.get(item.file_name), tables)
        except DataError as error:
            return error

    with ThreadPoolExecutor(MASKS_AT_ONCE, thread_name_prefix="masks") as pool:
        results = dict(zip([i.file_name for i in items], pool.map(one, items), strict=True))
    errors = {n: e for n, e in results.items() if isinstance(e, DataError)}
    if errors:
        said = named({name: error.message for name, error in errors.items()})
        fixes = "; ".join(dict.fromkeys(error.fix for error in errors.values() if error.fix))
        message = f"{len(errors)} of {len(items)} images have no mask that can be used: {said}"
        faults.append(finding("bad-mask", tuple(errors), message, fixes))
    hashes = {n: found for n, found in results.items() if isinstance(found, str) and found}
    return Masks(files, hashes), faults


def _read_hash(item: Item, file: Path | None, tables: Tables) -> str:
    """Hash of an image's mask; "" where all is opaque. Raises DataError."""
    name = item.file_name
    image, mask = decode_with_alpha(
        read_item(item.path, item.member), name=name, background=item.background
    )
    if file is not None:
        mask = read_mask(file, image.size, name=name)
    if mask is None:
        return ""
    height, width = image.height, image.width
    plans = [plan_crop(height, width, choose_bucket(height, width, table)) for _, table in tables]
    check_mask(mask, plans, name=name)
    return mask_hash(mask)


def find_masks(
    folder: Path, sources: Sequence[Path], names: Sequence[str]
) -> tuple[dict[str, Path], list[Finding]]:
    """The mask file of every image, and what does not match.

    Raises:
        NotFound: there is no such folder.
        DataError: it lies in the folder of the images.
    """
    if not folder.is_dir():
        raise NotFound("no such folder of masks", where=str(folder), fix="correct data.mask_path")
    if any(folder.resolve().is_relative_to(source.resolve()) for source in sources):
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
    single = {stem: files[0] for stem, files in found.items() if len(files) == 1}
    matched = {name: folder / single[_stem(name)] for name in names if _stem(name) in single}
    return matched, [finding("bad-mask", files, what, fix) for what, files, fix in faults if files]


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

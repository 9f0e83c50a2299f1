"""The masks of a set: gray images of the same names, or the images' own alpha; each read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from styletune.data.findings import Finding, agree, finding, first_few
from styletune.data.inspection.store import FactsStore, get_mask, mask_key, put_mask
from styletune.data.pixels.buckets import CropPlan
from styletune.data.pixels.decode import decode_with_alpha
from styletune.data.pixels.mask import check_mask, mask_hash, read_mask
from styletune.data.rows import Masks
from styletune.data.sources.files import find_files
from styletune.data.sources.item_bytes import read_item
from styletune.data.sources.items import Item
from styletune.errors import DataError, NotFound
from styletune.files import file_sha256

MASKS_AT_ONCE = 2  # a 100-megapixel original takes a gigabyte while it is decoded


def set_masks(
    items: Sequence[Item],
    plans: Mapping[str, Sequence[CropPlan]],
    *,
    kind: Literal["none", "alpha", "folder"],
    folder: Path | None,
    sources: Sequence[Path],
    store: FactsStore,
) -> tuple[Masks, list[Finding]]:
    """The masks of all images, read once, and what is wrong with them (``bad-mask``).

    A mask that fits is remembered by the content of its files, and not decoded again.

    Args:
        items: the set.
        plans: crops by file name, of the images that can be decoded; only their masks are read.
        kind: where the loss counts: everywhere, by alpha, or by the files in ``folder``.
        folder: masks with the same relative names as their images, whatever their extensions.
        sources: where the images are; the masks must not be in there too.
        store: known masks; new ones are added.

    Raises:
        NotFound: there is no such folder of masks.
        DataError: the masks are in the folder of the images.
    """
    if kind == "none":
        return Masks(), []
    readable = [item for item in items if item.file_name in plans]
    files: dict[str, Path] = {}
    findings: list[Finding] = []
    if kind == "folder":
        assert folder is not None, "masks without a folder"
        files, findings = find_masks(folder, sources, [item.file_name for item in items])
        readable = [item for item in readable if item.file_name in files]

    def hash_or_error(item: Item) -> str | DataError:
        name = item.file_name
        try:
            return _known_hash(item, files.get(name), plans[name], store)
        except DataError as error:
            return error

    with ThreadPoolExecutor(MASKS_AT_ONCE, thread_name_prefix="masks") as pool:
        results = list(zip(readable, pool.map(hash_or_error, readable), strict=True))
    errors = {item.file_name: e for item, e in results if isinstance(e, DataError)}
    if errors:
        details = first_few({name: error.message for name, error in errors.items()})
        fixes = "; ".join(dict.fromkeys(error.fix for error in errors.values() if error.fix))
        state = agree(len(errors), "have no usable mask")
        message = f"{len(errors)} of {len(readable)} images {state}: {details}"
        findings.append(finding("bad-mask", tuple(errors), message, fixes))
    hashes = {item.file_name: h for item, h in results if isinstance(h, str) and h}
    return Masks(files, hashes), findings


def _known_hash(item: Item, file: Path | None, plans: Sequence[CropPlan], store: FactsStore) -> str:
    """``_read_hash``, from the store where it is known."""
    source = read_item(item.path, item.member)
    of_image = file_sha256(source) if isinstance(source, Path) else sha256(source).hexdigest()
    of_mask = "" if file is None else file_sha256(file)
    key = mask_key(of_image, of_mask, item.background, plans)
    known = get_mask(store, key)
    if known is None:
        known = _read_hash(item, file, plans)
        put_mask(store, key, known)
    return known


def _read_hash(item: Item, file: Path | None, plans: Sequence[CropPlan]) -> str:
    """Hash of an image's mask; "" if everything is opaque. Raises DataError."""
    name = item.file_name
    image, mask = decode_with_alpha(
        read_item(item.path, item.member), name=name, background=item.background
    )
    if file is not None:
        mask = read_mask(file, image.size, name=name)
    if mask is None:
        return ""
    check_mask(mask, plans, name=name)
    return mask_hash(mask)


def find_masks(
    folder: Path, sources: Sequence[Path], names: Sequence[str]
) -> tuple[dict[str, Path], list[Finding]]:
    """The mask file of every image, and what does not match.

    Raises:
        NotFound: there is no such folder.
        DataError: it is in the folder of the images.
    """
    if not folder.is_dir():
        raise NotFound("no such folder of masks", where=str(folder), fix="correct data.mask_path")
    if any(folder.resolve().is_relative_to(source.resolve()) for source in sources):
        raise DataError(
            "the masks are in the folder of the images, where they count as images",
            where=str(folder),
            fix="move them next to it",
        )
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(_stem(name), []).append(name)
    # Composed, where no spelling matches exactly: some systems store "é" as two characters.
    composed = {normalize("NFC", stem): stem for stem in owners}
    masks: dict[str, list[str]] = {}
    for name in find_files(folder).images:
        stem = _stem(name)
        stem = stem if stem in owners else composed.get(normalize("NFC", stem), stem)
        masks.setdefault(stem, []).append(name)
    stems = owners.keys()
    problems = (
        (
            "images that share one mask",
            [
                name
                for stem, same in owners.items()
                if len(same) > 1 and stem in masks
                for name in same
            ],
            "rename the images, so that each has a mask of its own",
        ),
        (
            "images without a mask",
            [name for name in names if _stem(name) not in masks],
            "add a mask of the same name; all white where everything counts",
        ),
        (
            "masks without an image",
            [name for stem, files in masks.items() if stem not in stems for name in files],
            "name masks like their images, or remove them from the folder",
        ),
        (
            "several masks with one name",
            [name for files in masks.values() if len(files) > 1 for name in files],
            "keep one of them",
        ),
    )
    single = {stem: files[0] for stem, files in masks.items() if len(files) == 1}
    matched = {name: folder / single[_stem(name)] for name in names if _stem(name) in single}
    return matched, [
        finding("bad-mask", files, message, fix) for message, files, fix in problems if files
    ]


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()

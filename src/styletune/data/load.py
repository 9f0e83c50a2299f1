"""The front door of the room: a folder becomes a checked, grouped, split, fingerprinted set."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from styletune.data.buckets import (
    CropPlan,
    Size,
    bucket_table,
    choose_bucket,
    default_step,
    plan_crop,
    refuse_upscale,
)
from styletune.data.card import Card, load_card
from styletune.data.duplicates import Group, families, group_duplicates, perceptual_hash
from styletune.data.findings import (
    Finding,
    duplicate_findings,
    size_findings,
    trigger_findings,
)
from styletune.data.fingerprint import data_fingerprint, pixel_hash
from styletune.data.masks import check_mask, find_masks, mask_hash, read_mask
from styletune.data.open import open_folder
from styletune.data.orient import Crop, decode_with_alpha, square_pixels
from styletune.data.split import Split, split_groups
from styletune.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    import datasets


@dataclass(frozen=True, slots=True)
class Row:
    """One image: sizes in oriented pixels, ``group`` is its duplicate family's number.

    ``mask_hash`` is empty where the loss counts everywhere; ``mask_path`` where there is no mask
    or it is the image's own alpha.
    """

    file_name: str
    path: str
    text: str
    width: int
    height: int
    pixel_hash: str
    group: int
    split: Split
    mask_path: str
    mask_hash: str


@dataclass(frozen=True, slots=True)
class LoadedData:
    """A data set that can be trained on; ``dataset`` has the fields of ``Row`` as columns.

    ``background`` is what lies under transparent pixels, from the recipe or the card;
    ``tables`` are the buckets of each resolution; ``flip`` shows every training image mirrored
    as well.
    """

    dataset: datasets.Dataset
    card: Card | None
    background: str | None
    tables: tuple[tuple[int, tuple[Size, ...]], ...]
    flip: bool
    fingerprint: str
    groups: list[Group]
    warnings: list[Finding]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is kept of a decoded image."""

    width: int
    height: int
    pixels: str
    structure: int
    mask: str
    plans: tuple[CropPlan, ...]


def load_data(
    path: Path,
    *,
    default_caption: str | None,
    holdout: float,
    resolution: int,
    extra_resolutions: tuple[int, ...] = (),
    buckets: bool = False,
    bucket_step: int | None = None,
    max_aspect: float = 2.0,
    flip: bool = False,
    mask: Literal["none", "alpha", "folder"] = "none",
    mask_path: Path | None = None,
    background: str | None = None,
    salt: str = "",
    show_progress: bool = False,
) -> LoadedData:
    """Load a folder of images: every one is decoded once, a few at a time, and none is kept.

    Args:
        path: image folder (see ``open_folder``), with a ``dataset.toml`` if there is one.
        default_caption: caption of the images that have none; None makes that an error.
        holdout: share of images to hold out, in whole duplicate families (``split_groups``).
        resolution: training area in pixels, as the side of its square; images that would be
            enlarged more than 1.25 times are refused.
        extra_resolutions: further ones at which every image is seen as well.
        buckets: keep each image's shape as nearly as the buckets allow; else crop squares.
        bucket_step: sides of buckets are multiples of it; None for ``default_step``.
        max_aspect: longest over shortest side of a bucket.
        flip: also show every training image mirrored.
        mask: where the loss counts: everywhere, by alpha, or by the masks in ``mask_path``.
        mask_path: folder of masks (``find_masks``).
        background: ``"#rrggbb"`` under transparent pixels, instead of the card's.
        salt: another one gives another split.
        show_progress: draw a progress bar on stderr.

    Raises:
        NotFound: there is no such folder, of images or of masks.
        RecipeError: the card is not valid.
        DataError: the folder, its captions or any of its images or masks cannot be used; every
            faulty image is listed.
    """
    tables = _tables((resolution, *extra_resolutions), buckets, bucket_step, max_aspect)
    opened = open_folder(path, default_caption=default_caption)
    card = load_card(path)
    names: list[str] = opened["file_name"][:]
    background = background or (card.background if card else None)
    masks: dict[str, Path] = {}
    if mask == "folder":
        assert mask_path is not None, "masks without a folder"
        masks = find_masks(mask_path, path, names)

    def inspect(name: str) -> _Facts:
        image, alpha = decode_with_alpha(path / name, name=name, background=background)
        if name in masks:
            alpha = read_mask(masks[name], image.size, name=name)
        return _facts(image, alpha if mask != "none" else None, tables, name)

    facts = _inspect_all(path, names, inspect, show_progress)
    groups = group_duplicates(
        {name: fact.pixels for name, fact in facts.items()},
        {name: fact.structure for name, fact in facts.items()},
    )
    members = families(names, groups)
    sides = split_groups([[facts[f].pixels for f in family] for family in members], holdout, salt)
    numbers = {file: number for number, family in enumerate(members) for file in family}
    dataset = _with_columns(opened, facts, numbers, sides, masks)
    texts: list[str] = opened["text"][:]
    warnings = [
        *duplicate_findings(groups),
        *trigger_findings(dict(zip(names, texts, strict=True)), card),
        *size_findings({name: fact.plans for name, fact in facts.items()}, buckets),
    ]
    return LoadedData(
        dataset, card, background, tables, flip, _fingerprint(dataset), groups, warnings
    )


def _fingerprint(dataset: datasets.Dataset) -> str:
    """That of the images; a mask counts as a part of its image's pixels."""
    kept = ("pixel_hash", "mask_hash", "text", "split")
    rows = [{key: row[key] for key in kept} for row in dataset]
    return data_fingerprint(
        {**row, "pixel_hash": f"{row['pixel_hash']} mask {row['mask_hash']}"}
        if row["mask_hash"]
        else row
        for row in rows
    )


def _tables(
    resolutions: tuple[int, ...], buckets: bool, step: int | None, max_aspect: float
) -> tuple[tuple[int, tuple[Size, ...]], ...]:
    """The buckets of each resolution; a table of one square when there are to be none."""
    if len(set(resolutions)) < len(resolutions):
        raise DataError(
            "a resolution is given twice, so its images would count twice",
            where="data.extra_resolutions",
            fix="name each once, and not the main one again",
        )
    return tuple(
        (r, bucket_table(r, step or default_step(r), max_aspect) if buckets else ((r, r),))
        for r in resolutions
    )


def train_rows(data: LoadedData) -> list[Row]:
    """The images to train on, sorted by file name."""
    return [row for row in all_rows(data) if row.split == "train"]


def holdout_rows(data: LoadedData) -> list[Row]:
    """The images kept for scoring, sorted by file name; none when ``holdout`` was 0."""
    return [row for row in all_rows(data) if row.split == "holdout"]


def all_rows(data: LoadedData) -> list[Row]:
    """Every image, sorted by file name."""
    return [Row(**row) for row in data.dataset]


def read_row(row: Row, background: str | None) -> tuple[Image.Image, Image.Image | None]:
    """Decode one image again, upright, with its mask (mode ``L``) if it has one.

    Raises:
        DataError: it cannot be decoded, or is no longer what was loaded.
    """
    image, alpha = decode_with_alpha(Path(row.path), name=row.file_name, background=background)
    mask = alpha if row.mask_hash else None
    if row.mask_path:
        mask = read_mask(Path(row.mask_path), image.size, name=row.file_name)
    for what, found, wanted in (
        ("image", pixel_hash(image), row.pixel_hash),
        ("mask", mask_hash(mask) if mask else "", row.mask_hash),
    ):
        if found != wanted:
            raise DataError(
                f"the {what} changed after the data set was loaded",
                where=row.file_name,
                fix="start the run again",
            )
    return image, mask


def read_square(row: Row, resolution: int, background: str | None) -> Crop:
    """Decode one image to its square without a mask, for references and previews.

    Raises:
        DataError: as ``read_row``.
    """
    return square_pixels(read_row(row, background)[0], resolution, name=row.file_name)


def _facts(
    image: Image.Image,
    mask: Image.Image | None,
    tables: tuple[tuple[int, tuple[Size, ...]], ...],
    name: str,
) -> _Facts:
    plans = []
    for _, table in tables:
        bucket = choose_bucket(image.height, image.width, table)
        plans.append(plan_crop(image.height, image.width, bucket))
        refuse_upscale(plans[-1], name)
    if mask is not None:
        check_mask(mask, plans, name=name)
    return _Facts(
        image.width,
        image.height,
        pixel_hash(image),
        perceptual_hash(image),
        mask_hash(mask) if mask is not None else "",
        tuple(plans),
    )


def _inspect_all(
    path: Path, names: Sequence[str], inspect: Callable[[str], _Facts], show_progress: bool
) -> dict[str, _Facts]:
    """Facts by name, decoded in parallel. Raises one DataError with every faulty image."""

    def one(name: str) -> _Facts | DataError:
        try:
            return inspect(name)
        except DataError as error:
            return error

    results = _map_with_progress(one, names, show_progress)
    errors = [result for result in results if isinstance(result, DataError)]
    if errors:
        raise _joined(path, errors, len(names))
    return {
        name: result
        for name, result in zip(names, results, strict=True)
        if isinstance(result, _Facts)
    }


def _map_with_progress(
    one: Callable[[str], _Facts | DataError], names: Sequence[str], show_progress: bool
) -> list[_Facts | DataError]:
    from rich.console import Console
    from rich.progress import track

    # A 100-megapixel original takes a gigabyte while it is decoded: few at a time.
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            return list(
                track(
                    pool.map(one, names),
                    description="Reading images",
                    total=len(names),
                    console=Console(stderr=True),
                    disable=not show_progress,
                )
            )
        except BaseException:
            # Ctrl-C must not wait for the images that are still queued.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _joined(path: Path, errors: Sequence[DataError], images: int) -> DataError:
    lines = [f"{len(errors)} of {images} images cannot be used"]
    lines += [f"  {error.where}: {error.message}" for error in errors]
    fixes = dict.fromkeys(error.fix for error in errors if error.fix)
    return DataError("\n".join(lines), where=str(path), fix="; ".join(fixes))


def _with_columns(
    opened: datasets.Dataset,
    facts: dict[str, _Facts],
    numbers: dict[str, int],
    sides: dict[str, Split],
    masks: dict[str, Path],
) -> datasets.Dataset:
    import datasets

    names: list[str] = opened["file_name"][:]
    columns = {
        "file_name": names,
        "path": opened["path"][:],
        "text": opened["text"][:],
        "width": [facts[name].width for name in names],
        "height": [facts[name].height for name in names],
        "pixel_hash": [facts[name].pixels for name in names],
        "group": [numbers[name] for name in names],
        "split": [sides[facts[name].pixels] for name in names],
        "mask_path": [str(masks[name].absolute()) if name in masks else "" for name in names],
        "mask_hash": [facts[name].mask for name in names],
    }
    numeric = {"width", "height", "group"}
    features = {key: datasets.Value("int64" if key in numeric else "string") for key in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

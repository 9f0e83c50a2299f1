"""The front door of the room: a folder becomes a checked, grouped, split, fingerprinted set."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from styletune.data.card import Card, load_card
from styletune.data.duplicates import Group, families, group_duplicates, perceptual_hash
from styletune.data.fingerprint import data_fingerprint, pixel_hash
from styletune.data.open import open_folder
from styletune.data.orient import (
    SquareCrop,
    SquarePlan,
    decode_image,
    plan_square,
    square_pixels,
)
from styletune.data.split import Split, split_groups
from styletune.errors import DataError

if TYPE_CHECKING:
    import datasets

CROP_WARNING_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about the set that does not stop the run."""

    code: Literal["exact-duplicates", "near-duplicates", "missing-trigger", "cropped", "upscaled"]
    files: tuple[str, ...]
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class Row:
    """One image: sizes in oriented pixels, ``group`` is its duplicate family's number."""

    file_name: str
    path: str
    text: str
    width: int
    height: int
    pixel_hash: str
    group: int
    split: Split


@dataclass(frozen=True, slots=True)
class LoadedData:
    """A data set that can be trained on; ``dataset`` has the fields of ``Row`` as columns.

    ``background`` is what lies under transparent pixels, from the recipe or the card.
    """

    dataset: datasets.Dataset
    card: Card | None
    background: str | None
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
    plan: SquarePlan


def load_data(
    path: Path,
    *,
    default_caption: str | None,
    holdout: float,
    resolution: int,
    background: str | None = None,
    salt: str = "",
    show_progress: bool = False,
) -> LoadedData:
    """Load a folder of images: every one is decoded once, a few at a time, and none is kept.

    Args:
        path: image folder (see ``open_folder``), with a ``dataset.toml`` if there is one.
        default_caption: caption of the images that have none; None makes that an error.
        holdout: share of images to hold out, in whole duplicate families (``split_groups``).
        resolution: side in pixels of the training square; images that would be enlarged more
            than 1.25 times are refused.
        background: ``"#rrggbb"`` under transparent pixels, instead of the card's.
        salt: another one gives another split.
        show_progress: draw a progress bar on stderr.

    Raises:
        NotFound: there is no such folder.
        RecipeError: the card is not valid.
        DataError: the folder, its captions or any of its images cannot be used; every faulty
            image is listed.
    """
    opened = open_folder(path, default_caption=default_caption)
    card = load_card(path)
    names: list[str] = opened["file_name"][:]
    background = background or (card.background if card else None)
    facts = _inspect_all(path, names, background, resolution, show_progress)
    groups = group_duplicates(
        {name: fact.pixels for name, fact in facts.items()},
        {name: fact.structure for name, fact in facts.items()},
    )
    members = families(names, groups)
    sides = split_groups([[facts[f].pixels for f in family] for family in members], holdout, salt)
    numbers = {file: number for number, family in enumerate(members) for file in family}
    dataset = _with_columns(opened, facts, numbers, sides)
    texts: list[str] = opened["text"][:]
    warnings = [
        *_duplicate_findings(groups),
        *_trigger_findings(dict(zip(names, texts, strict=True)), card),
        *_size_findings(facts, resolution),
    ]
    return LoadedData(dataset, card, background, data_fingerprint(dataset), groups, warnings)


def train_rows(data: LoadedData) -> list[Row]:
    """The images to train on, sorted by file name."""
    return [row for row in all_rows(data) if row.split == "train"]


def holdout_rows(data: LoadedData) -> list[Row]:
    """The images kept for scoring, sorted by file name; none when ``holdout`` was 0."""
    return [row for row in all_rows(data) if row.split == "holdout"]


def all_rows(data: LoadedData) -> list[Row]:
    """Every image, sorted by file name."""
    return [Row(**row) for row in data.dataset]


def read_square(row: Row, resolution: int, background: str | None) -> SquareCrop:
    """Decode one image again to its training square.

    Raises:
        DataError: it cannot be decoded, or is no longer the image that was loaded.
    """
    image = decode_image(Path(row.path), name=row.file_name, background=background)
    if pixel_hash(image) != row.pixel_hash:
        raise DataError(
            "the image changed after the data set was loaded",
            where=row.file_name,
            fix="start the run again",
        )
    return square_pixels(image, resolution, name=row.file_name)


def _inspect(file: Path, name: str, background: str | None, resolution: int) -> _Facts:
    image = decode_image(file, name=name, background=background)
    plan = plan_square(image.width, image.height, resolution, name=name)
    return _Facts(image.width, image.height, pixel_hash(image), perceptual_hash(image), plan)


def _inspect_all(
    path: Path, names: Sequence[str], background: str | None, resolution: int, show_progress: bool
) -> dict[str, _Facts]:
    """Facts by name, decoded in parallel. Raises one DataError with every faulty image."""

    def one(name: str) -> _Facts | DataError:
        try:
            return _inspect(path / name, name, background, resolution)
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
    }
    numeric = {"width", "height", "group"}
    features = {key: datasets.Value("int64" if key in numeric else "string") for key in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _duplicate_findings(groups: Sequence[Group]) -> list[Finding]:
    what = {
        "exact": "show exactly the same pixels",
        "near": "are variants of one picture; they stay on one side of the split",
    }
    fix = "keep the best of them: repeats weigh more in training and are learnt by heart"
    return [
        Finding(
            "exact-duplicates" if group.kind == "exact" else "near-duplicates",
            group.files,
            f"{len(group.files)} images {what[group.kind]}",
            fix,
        )
        for group in groups
    ]


def _trigger_findings(texts: dict[str, str], card: Card | None) -> list[Finding]:
    if card is None or card.trigger is None:
        return []
    trigger = card.trigger.strip()
    # CLIP reads lower case, so case does not count.
    pattern = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    without = tuple(name for name, text in texts.items() if not pattern.search(text))
    if not without:
        return []
    message = f'{len(without)} of {len(texts)} captions do not hold the trigger "{trigger}"'
    return [Finding("missing-trigger", without, message, "write it into every caption")]


def _size_findings(facts: dict[str, _Facts], resolution: int) -> list[Finding]:
    found = []
    cropped = {n: f for n, f in facts.items() if f.plan.lost_share > CROP_WARNING_SHARE}
    if cropped:
        losses = [
            f"{name} loses {round(f.width * f.height * f.plan.lost_share)} pixels "
            f"({f.plan.lost_share:.0%})"
            for name, f in cropped.items()
        ]
        found.append(
            Finding(
                "cropped",
                tuple(cropped),
                f"the square crop cuts away more than {CROP_WARNING_SHARE:.0%} of "
                f"{len(cropped)} images: {'; '.join(losses)}",
                "crop these by hand to what matters, nearly square",
            )
        )
    small = {n: f for n, f in facts.items() if f.plan.scale > 1}
    if small:
        sizes = [f"{name} is {f.width}×{f.height}" for name, f in small.items()]
        found.append(
            Finding(
                "upscaled",
                tuple(small),
                f"{len(small)} images are enlarged to reach {resolution} pixels and will teach "
                f"softness: {'; '.join(sizes)}",
                "find larger originals, or choose a lower data.resolution",
            )
        )
    return found

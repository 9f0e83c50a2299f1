"""The front door of the room: sources become a checked, grouped, split, fingerprinted set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.check import Checked, CheckSettings, bucket_tables, check_data, refuse
from styletune.data.findings import Finding
from styletune.data.inspection.duplicates import Group, families
from styletune.data.inspection.store import FactsStore
from styletune.data.masks import mask_hash, read_mask
from styletune.data.pixels.buckets import Tables
from styletune.data.pixels.crop import Crop, square_pixels
from styletune.data.pixels.decode import decode_with_alpha
from styletune.data.pixels.fingerprint import data_fingerprint, pixel_hash
from styletune.data.rows import Row
from styletune.data.sources.contents import read_item
from styletune.data.sources.items import Item
from styletune.data.sources.open import Source
from styletune.errors import DataError

if TYPE_CHECKING:
    import datasets
    from PIL import Image


@dataclass(frozen=True, slots=True)
class LoadedData:
    """A data set that can be trained on; ``dataset`` has the fields of ``Row`` as columns.

    ``tables`` are the buckets of each resolution; ``flip`` shows every training image mirrored
    as well; ``note`` says why facts are not kept between runs, "" if they are.
    """

    dataset: datasets.Dataset
    checked: Checked
    tables: Tables
    flip: bool
    fingerprint: str
    note: str

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self.checked.warnings

    @property
    def groups(self) -> list[Group]:
        """Copies and variants of one picture."""
        return [group for group in self.checked.groups if group.kind != "motif"]

    @property
    def trigger(self) -> str:
        """The word for the look; "" where there is none, or the sources have different ones."""
        cards = self.checked.cards.values()
        triggers = {card.trigger.strip() for card in cards if card.trigger}
        return triggers.pop() if len(triggers) == 1 else ""


def load_data(
    sources: Sequence[Source],
    settings: CheckSettings,
    *,
    store: FactsStore,
    flip: bool = False,
    tokens: Callable[[str], int] | None = None,
    relative_to: Path = Path(),
    show_progress: bool = False,
) -> LoadedData:
    """Check a set (``check_data``) and refuse it if anything in it is an error.

    Args:
        sources: from ``resolve_sources``.
        settings: how it is judged and split.
        store: facts that are known already.
        flip: also show every training image mirrored.
        tokens: how many CLIP tokens a caption is.
        relative_to: what an encoder's folder is relative to.
        show_progress: draw progress bars on stderr.

    Raises:
        NotFound: a source, an encoder or the folder of masks is not there.
        RecipeError: a card is not valid.
        DataError: everything that ``check_data`` calls an error, in the same words.
    """
    checked = check_data(
        sources,
        settings,
        store=store,
        tokens=tokens,
        relative_to=relative_to,
        show_progress=show_progress,
    )
    where = str(sources[0].path) if len(sources) == 1 else "[[data.sources]]"
    refuse(checked, where)
    items = [item for item in checked.items if item.file_name in checked.facts]
    rows = _rows(checked, items)
    # The pictures themselves are needed no more, and training lasts.
    facts = {n: replace(f, small=b"", thumbnail=b"") for n, f in checked.facts.items()}
    return LoadedData(
        _dataset(rows),
        replace(checked, facts=facts),
        bucket_tables(settings),
        flip,
        _fingerprint(rows),
        store.note,
    )


def _rows(checked: Checked, items: Sequence[Item]) -> list[Row]:
    files, hashes = checked.masks.files, checked.masks.hashes
    related = [group for group in checked.groups if group.kind != "motif"]
    members = families([item.file_name for item in items], related)
    numbers = {file: number for number, family in enumerate(members) for file in family}
    flags: dict[str, list[str]] = {}
    for warning in checked.warnings:
        for file in warning.files:
            flags.setdefault(file, []).append(warning.code)
    rows = []
    for item in items:
        name = item.file_name
        facts = checked.facts[name]
        rows.append(
            Row(
                file_name=name,
                path=item.path,
                member=item.member,
                text=item.text or "",
                machine_caption=item.machine_caption,
                width=facts.width,
                height=facts.height,
                pixel_hash=facts.pixel_hash,
                group=numbers[name],
                split=checked.sides[name],
                origin=item.origin,
                repeats=item.repeats,
                weight=item.weight,
                license=item.rights.license,
                holder=item.rights.holder,
                consent=item.rights.consent,
                source=item.rights.source,
                background=item.background or "",
                flags=sorted(set(flags.get(name, []))),
                mask_path=str(files[name].absolute()) if name in files else "",
                mask_hash=hashes.get(name, ""),
            )
        )
    return rows


def _fingerprint(rows: Sequence[Row]) -> str:
    """That of the images; a mask, repeats and a weight count as parts of an image's pixels."""

    def content(row: Row) -> str:
        parts = [row.pixel_hash]
        parts += [f"mask {row.mask_hash}"] if row.mask_hash else []
        parts += [f"repeats {row.repeats}"] if row.repeats != 1 else []
        parts += [f"weight {row.weight!r}"] if row.weight != 1 else []
        return " ".join(parts)

    return data_fingerprint(
        {"pixel_hash": content(row), "text": row.text, "split": row.split} for row in rows
    )


def order_hash(data: LoadedData) -> str:
    """SHA-256 (hex) of the images' order by file name, in which training goes through them.

    The fingerprint does not depend on names; when an image is seen, and with what noise, does.
    """
    order = [[row.pixel_hash, row.text, row.mask_hash] for row in all_rows(data)]
    return hashlib.sha256(json.dumps(order).encode()).hexdigest()


def train_rows(data: LoadedData) -> list[Row]:
    """The images to train on, sorted by file name."""
    return [row for row in all_rows(data) if row.split == "train"]


def holdout_rows(data: LoadedData) -> list[Row]:
    """The images kept for scoring, sorted by file name; none when ``holdout`` was 0."""
    return [row for row in all_rows(data) if row.split == "holdout"]


def all_rows(data: LoadedData) -> list[Row]:
    """Every image, sorted by file name."""
    return [Row(**row) for row in data.dataset]


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


def read_square(row: Row, resolution: int) -> Crop:
    """Decode one image to its square without a mask, for references and previews.

    Raises:
        DataError: as ``read_row``.
    """
    return square_pixels(read_row(row)[0], resolution)


def _dataset(rows: Sequence[Row]) -> datasets.Dataset:
    """The manifest, typed also where a column is empty."""
    import datasets

    types = {
        "machine_caption": "bool",
        "width": "int64",
        "height": "int64",
        "group": "int64",
        "repeats": "int64",
        "weight": "float64",
    }
    names = Row.__slots__
    features = {
        name: datasets.List(datasets.Value("string"))
        if name == "flags"
        else datasets.Value(types.get(name, "string"))
        for name in names
    }
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

"""The front door of the data room: a recipe's sources become a checked, split, hashed set."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.data.check import check_data, refuse
from styletune.data.checked import Checked, Expected, LoadedData
from styletune.data.inspection.store import FactsStore
from styletune.data.pixels.fingerprint import data_fingerprint
from styletune.data.read import read_row
from styletune.data.rows import Row
from styletune.data.sources.items import RIGHTS_COLUMNS, Item
from styletune.errors import DataError
from styletune.recipe.data_sections import DataSection

if TYPE_CHECKING:
    import datasets


def load_data(
    section: DataSection,
    folder: Path,
    expected: Expected,
    *,
    store: FactsStore,
    show_progress: bool = False,
) -> LoadedData:
    """Check a set and refuse it if anything in it is an error. Arguments as ``check_data``.

    Raises:
        NotFound: a source, an encoder or the folder of masks is not there.
        RecipeError: a card is not valid.
        DataError: everything that ``check_data`` calls an error, in the same words.
    """
    checked = check_data(section, folder, expected, store=store, show_progress=show_progress)
    refuse(checked)
    rows = tuple(_row(item, checked) for item in checked.items if item.file_name in checked.facts)
    # Training lasts, and needs the pictures themselves no more.
    facts = {n: replace(f, small=b"", thumbnail=b"") for n, f in checked.facts.items()}
    return LoadedData(
        rows, replace(checked, facts=facts), section.flip, _fingerprint(rows), store.note
    )


def _row(item: Item, checked: Checked) -> Row:
    name = item.file_name
    facts, mask_file = checked.facts[name], checked.masks.files.get(name)
    return Row(
        file_name=name,
        path=item.path,
        text=item.text or "",
        width=facts.width,
        height=facts.height,
        pixel_hash=facts.pixel_hash,
        member=item.member,
        split=checked.sides[name],
        repeats=item.repeats,
        weight=item.weight,
        background=item.background or "",
        mask_path=str(mask_file.absolute()) if mask_file else "",
        mask_hash=checked.masks.hashes.get(name, ""),
    )


def _fingerprint(rows: Sequence[Row]) -> str:
    """That of the images; mask, repeats and weight count as parts of an image's pixels."""

    def content(row: Row) -> str:
        parts = [row.pixel_hash]
        parts += [f"mask {row.mask_hash}"] if row.mask_hash else []
        parts += [f"repeats {row.repeats}"] if row.repeats != 1 else []
        parts += [f"weight {row.weight!r}"] if row.weight != 1 else []
        return " ".join(parts)

    return data_fingerprint(
        {"pixel_hash": content(row), "text": row.text, "split": row.split} for row in rows
    )


def as_dataset(data: LoadedData) -> datasets.Dataset:
    """The set as a Hugging Face data set, one row per image, in the order of ``data.rows``.

    ``image`` (``datasets.Image``) is what is trained on before cropping: upright 8-bit sRGB over
    the declared background, stored losslessly. The other columns are ``text`` (the caption),
    ``file_name``, ``split`` ("train" or "holdout"), ``width`` and ``height`` (pixels),
    ``license``, ``holder``, ``consent``, ``source`` ("" if undeclared), ``machine_caption``,
    ``repeats``, ``weight`` and ``pixel_hash``. Images are decoded one after the other into the
    cache of ``datasets`` (HF_DATASETS_CACHE), so the set may be larger than memory.

    Raises:
        DataError: an image cannot be decoded, or is no longer what was loaded.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    text, integer = datasets.Value("string"), datasets.Value("int64")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": text,
            "file_name": text,
            "split": text,
            "width": integer,
            "height": integer,
            **dict.fromkeys(RIGHTS_COLUMNS, text),
            "machine_caption": datasets.Value("bool"),
            "repeats": integer,
            "weight": datasets.Value("float64"),
            "pixel_hash": text,
        }
    )
    items = {item.file_name: item for item in data.checked.items}
    pairs = [(row, items[row.file_name]) for row in data.rows]
    try:
        # Not as gen_kwargs: a list there is taken for shards.
        dataset = datasets.Dataset.from_generator(lambda: _records(pairs), features=features)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
    assert isinstance(dataset, datasets.Dataset)
    return dataset


def _records(pairs: Sequence[tuple[Row, Item]]) -> Iterator[dict[str, Any]]:
    for row, item in pairs:
        png = io.BytesIO()
        read_row(row)[0].save(png, "PNG", compress_level=1)
        yield {
            "image": {"bytes": png.getvalue(), "path": None},
            "text": row.text,
            "file_name": row.file_name,
            "split": row.split,
            "width": row.width,
            "height": row.height,
            **asdict(item.rights),
            "machine_caption": item.machine_caption,
            "repeats": row.repeats,
            "weight": row.weight,
            "pixel_hash": row.pixel_hash,
        }

"""Features of images, computed once: kept by pixels, weights and preprocessing, never by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from styletune.data.inspection.store import FactsStore, get_features, put_features
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.read import read_square
from styletune.data.rows import Row
from styletune.progress import progress

if TYPE_CHECKING:
    from PIL import Image

    from styletune.encoders.clip import ClipEncoder

SAVE_EVERY = 64  # images between two saves


@dataclass(frozen=True, slots=True)
class ToEncode:
    """An image to encode: ``key`` names its pixels, ``load`` reads them again, RGB."""

    key: str
    load: Callable[[], Image.Image]


def picture_of_file(file: Path) -> ToEncode:
    """A PNG of our own."""

    def load() -> Image.Image:
        from PIL import Image

        with Image.open(file) as opened:
            return opened.convert("RGB")

    return ToEncode(pixel_hash(load()), load)


def picture_of_row(row: Row, side_px: int) -> ToEncode:
    """The central square of an image of the data set; it is read only where it is encoded."""

    def load() -> Image.Image:
        from PIL import Image

        return Image.fromarray(read_square(row, side_px).pixels)

    return ToEncode(f"{row.pixel_hash} square {side_px}", load)


def picture_features(
    encoder: ClipEncoder, pictures: Sequence[ToEncode], store: FactsStore, title: str
) -> NDArray[np.float64]:
    """Unit-length features (n, d), float32 in precision; what ``store`` has is not computed.

    Raises:
        DataError: an image of the data set changed since it was loaded.
    """
    from styletune.encoders.clip import encode_images

    name = f"{encoder.id}, preprocessing {encoder.preprocess_id}"
    known = get_features(store, name, [picture.key for picture in pictures])
    missing = list({p.key: p for p in pictures if p.key not in known}.values())
    with progress(title, len(pictures), done=len(pictures) - len(missing)) as advance:
        for start in range(0, len(missing), SAVE_EVERY):
            part = missing[start : start + SAVE_EVERY]
            images = [picture.load() for picture in part]
            encoded = encode_images(encoder, images, show_progress=False).astype(np.float32)
            new = {p.key: row for p, row in zip(part, encoded, strict=True)}
            put_features(store, name, new)
            known |= new
            advance(len(part), "")
    return np.stack([known[picture.key] for picture in pictures]).astype(np.float64)

"""Features of images, computed once: kept by pixels, weights and preprocessing, never by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from styletune.data.inspection.duplicates import perceptual_hash
from styletune.data.inspection.features import ToEncode, kept_features
from styletune.data.inspection.store import FactsStore
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.read import read_square
from styletune.data.rows import Row
from styletune.scoring.copies import Views

if TYPE_CHECKING:
    from PIL import Image

    from styletune.encoders.clip import ClipEncoder


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


def picture_views(
    encoder: ClipEncoder, pictures: Sequence[ToEncode], store: FactsStore, title: str
) -> Views:
    """What an encoder and what structure sees of n images; what ``store`` has is not computed.

    Raises:
        DataError: an image of the data set changed since it was loaded.
    """
    from styletune.encoders.clip import encode_images

    def encode(images: Sequence[Image.Image]) -> NDArray[np.floating]:
        return encode_images(encoder, images, show_progress=False)

    name = f"{encoder.id}, preprocessing {encoder.preprocess_id}"
    return Views(
        kept_features(name, encode, pictures, store, title).astype(np.float64),
        kept_features("structure 1", structures, pictures, store, "").astype(np.float64),
    )


def structures(images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """``perceptual_hash`` as (n, 768) of +1 and -1."""
    raw = b"".join(perceptual_hash(image).to_bytes(96, "big") for image in images)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8)).reshape(len(images), -1)
    return bits.astype(np.float32) * 2 - 1

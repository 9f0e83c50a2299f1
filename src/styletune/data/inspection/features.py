"""Features of a set's pictures by an image encoder, stored by their pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.store import FactsStore, get_features, put_features
from styletune.encoders.find import find_clip
from styletune.errors import NotFound
from styletune.places import device_name


def check_encoder(name: str, relative_to: Path) -> None:
    """Refuse an unknown encoder before any image is read; weights are not opened.

    Args:
        name: ``data.encoder``; "none" is fine.
        relative_to: what an encoder's folder is relative to.

    Raises:
        NotFound: an unknown name, or the folder is not there.
    """
    if name == "none":
        return
    try:
        find_clip(name, relative_to)
    except NotFound as error:
        where = f"data.encoder = {name!r}"
        raise NotFound(error.message, where=where, fix=error.fix) from None


def set_features(
    facts: Mapping[str, ImageFacts],
    encoder: str,
    store: FactsStore,
    relative_to: Path,
    *,
    show_progress: bool = False,
) -> NDArray[np.float32]:
    """Unit-length open_clip features (n, d) float32, in the order of ``facts``.

    They are computed from the thumbnails: an encoder sees only about 224 pixels anyway.

    Args:
        facts: at least one.
        encoder: as ``styletune.encoders.find.find_clip`` takes it.
        store: features that are known already; new ones are added.
        relative_to: what an encoder's folder is relative to.
        show_progress: draw a progress bar on stderr.

    Raises:
        NotFound: the encoder is not on this machine.
        BaseModelError: open_clip cannot load it.
    """
    from styletune.encoders.clip import encode_images, load_clip

    model = load_clip(encoder, relative_to, device_name())
    key = f"{model.id} of thumbnails"
    thumbnails = {f.pixel_hash: f.thumbnail for f in facts.values()}
    known = get_features(store, key, list(thumbnails))
    missing = [pixels for pixels in thumbnails if pixels not in known]
    if missing:
        pictures = [_picture(thumbnails[pixels]) for pixels in missing]
        encoded = encode_images(
            model, pictures, title="Finding motifs", show_progress=show_progress
        ).astype(np.float32)
        new = dict(zip(missing, encoded, strict=True))
        put_features(store, key, new)
        known |= new
    return np.stack([known[f.pixel_hash] for f in facts.values()])


def _picture(thumbnail: bytes) -> Image.Image:
    with Image.open(io.BytesIO(thumbnail)) as opened:
        return opened.convert("RGB")

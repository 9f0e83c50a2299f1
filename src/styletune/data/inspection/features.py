"""Features of a set's pictures by an image encoder, stored by their pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.store import FactsStore, get_features, put_features
from styletune.encoders.find import find_clip
from styletune.errors import NotFound
from styletune.places import device_name
from styletune.progress import progress

SAVE_EVERY = 64  # images between two saves


@dataclass(frozen=True, slots=True)
class ToEncode:
    """An image to encode: ``key`` names its pixels, ``load`` reads them again, RGB."""

    key: str
    load: Callable[[], Image.Image]


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
    pictures = [ToEncode(f.pixel_hash, partial(_picture, f.thumbnail)) for f in facts.values()]
    return kept_features(
        f"{model.id} of thumbnails",
        lambda images: encode_images(model, images, show_progress=False),
        pictures,
        store,
        "Finding motifs" if show_progress else "",
    )


def kept_features(
    name: str,
    encode: Callable[[Sequence[Image.Image]], NDArray[np.floating]],
    pictures: Sequence[ToEncode],
    store: FactsStore,
    title: str,
) -> NDArray[np.float32]:
    """(n, d) float32 in the order of ``pictures``: found in ``store``, or encoded and put there.

    Args:
        name: of the weights and preprocessing, or whatever else decides the features.
        encode: n images -> (n, d); an image's row must not depend on the others.
        pictures: at least one; what is known is not loaded.
        store: features that are known already; new ones are added, a part at a time.
        title: of the progress bar; none is drawn without.
    """
    known = get_features(store, name, [picture.key for picture in pictures])
    missing = list({p.key: p for p in pictures if p.key not in known}.values())
    done = len(pictures) - len(missing)
    with progress(title, len(pictures), done=done, shown=bool(title)) as advance:
        for start in range(0, len(missing), SAVE_EVERY):
            part = missing[start : start + SAVE_EVERY]
            encoded = encode([picture.load() for picture in part]).astype(np.float32)
            new = {p.key: row for p, row in zip(part, encoded, strict=True)}
            put_features(store, name, new)
            known |= new
            advance(len(part), "")
    return np.stack([known[picture.key] for picture in pictures])


def _picture(thumbnail: bytes) -> Image.Image:
    with Image.open(io.BytesIO(thumbnail)) as opened:
        return opened.convert("RGB")

"""Content hashes that depend on pixels, captions and split, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

# Goes up when the same files would give different pixels, hashes or splits.
SPEC = "styletune-data-2"
_STRIP = 256  # rows


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 (hex) of an RGB image's size and bytes, as ``decode_image`` returns it.

    Files that decode to the same upright sRGB pixels have the same one, in any format.
    """
    assert image.mode == "RGB", image.mode
    digest = hashlib.sha256(f"{image.width}x{image.height} RGB\n".encode())
    for top in range(0, image.height, _STRIP):  # in strips: large images are many bytes
        bottom = min(top + _STRIP, image.height)
        digest.update(image.crop((0, top, image.width, bottom)).tobytes())
    return digest.hexdigest()


def data_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) over the sorted hashes of (pixel hash, caption, split) of every row.

    Order, names and folders of the files do not matter; a repeated image does.

    Args:
        rows: each with ``pixel_hash``, ``text`` and ``split``.
    """
    leaves = sorted(
        hashlib.sha256(
            json.dumps(["image", row["pixel_hash"], row["text"], row["split"]]).encode()
        ).hexdigest()
        for row in rows
    )
    return hashlib.sha256(json.dumps([SPEC, *leaves]).encode()).hexdigest()

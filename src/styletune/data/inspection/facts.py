"""Facts about one image, from one decode; stored by content, so an image is decoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SMALL_PX = 64
THUMBNAIL_PX = 256


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Sizes in upright pixels. All facts follow from the file's bytes and the background.

    ``stored_mode`` and ``format`` are Pillow's names for the file's content; ``profile`` the
    description of its ICC profile, "" for none; ``turned`` whether its Exif tag rotated it;
    ``transparent_share`` the share of pixels that are not fully opaque, 0 to 1; ``opt_out`` the
    ``plus:DataMining`` term of its XMP, "" for none; ``structure`` the 768-bit
    ``perceptual_hash``; ``small`` 64×64 RGB uint8 samples (area average, whole image, row-major,
    12,288 bytes); ``thumbnail`` a WebP file of at most 256 px; ``quality`` the numbers of
    ``inspection.quality.measure``.
    """

    width: int
    height: int
    pixel_hash: str
    format: str
    stored_mode: str
    profile: str
    turned: bool
    transparent_share: float
    opt_out: str
    structure: int
    small: bytes
    thumbnail: bytes
    quality: dict[str, float]


@dataclass(frozen=True, slots=True)
class PaletteFacts:
    """The colors of a set.

    ``declared`` by the card; ``extracted`` ("#rrggbb", weight), heaviest first, weights sum to
    1; ``coverage`` by file name: the share of an image's pixels near a palette color (declared
    if there is one, else extracted).
    """

    declared: tuple[str, ...]
    extracted: tuple[tuple[str, float], ...]
    coverage: Mapping[str, float]

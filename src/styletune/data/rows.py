"""A loaded set: its images (rows), their masks, and each as training uses it (entries)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from styletune.data.pixels.buckets import CropPlan, Size
from styletune.data.pixels.crop import crop_corner
from styletune.data.split import Split


@dataclass(frozen=True, slots=True)
class Row:
    """One image that can be trained on; ``width`` and ``height`` in upright pixels.

    ``path`` and ``member`` say where its bytes are (``Item``); ``background`` is "" if none is
    declared. ``mask_hash`` is "" if the loss counts everywhere; ``mask_path`` if there is no mask
    or the mask is the image's own alpha.
    """

    file_name: str
    path: str
    text: str
    width: int
    height: int
    pixel_hash: str
    member: str = ""
    split: Split = "train"
    repeats: int = 1
    weight: float = 1.0
    background: str = ""
    mask_path: str = ""
    mask_hash: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image at one resolution, mirrored or not; its crop is planned, its pixels unread."""

    row: Row
    resolution: int
    plan: CropPlan
    flip: bool

    @property
    def bucket(self) -> Size:
        """(height, width) in pixels."""
        return self.plan.bucket

    @property
    def crops_coords_top_left(self) -> Size:
        """SDXL's conditioning of that name: (top, left) in the resized (and mirrored) image."""
        return crop_corner(self.plan, self.flip)


@dataclass(frozen=True, slots=True)
class Masks:
    """Of a set, by the image's file name: mask files, and the hashes of all masks."""

    files: Mapping[str, Path] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

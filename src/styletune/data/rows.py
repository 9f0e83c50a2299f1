"""What the loaded set is made of: images (rows), and what training sees of them (entries)."""

from __future__ import annotations

from dataclasses import dataclass, field

from styletune.data.pixels.buckets import CropPlan, Size
from styletune.data.pixels.crop import crop_corner
from styletune.data.split import Split


@dataclass(frozen=True, slots=True)
class Row:
    """One image: sizes in oriented pixels, ``group`` is its duplicate family's number.

    ``path`` and ``member`` say where its bytes are (``Item``); ``background`` is "" where none
    is declared; ``flags`` are the codes of the warnings about it. ``mask_hash`` is empty where
    the loss counts everywhere; ``mask_path`` where there is no mask or it is the image's own
    alpha.
    """

    file_name: str
    path: str
    text: str
    width: int
    height: int
    pixel_hash: str
    member: str = ""
    group: int = 0
    split: Split = "train"
    origin: str = ""
    repeats: int = 1
    weight: float = 1.0
    license: str = ""
    holder: str = ""
    consent: str = ""
    source: str = ""
    machine_caption: bool = False
    background: str = ""
    flags: list[str] = field(default_factory=list)
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
        """The corner that SDXL is told, in pixels of the resized (and mirrored) image."""
        return crop_corner(self.plan, self.flip)

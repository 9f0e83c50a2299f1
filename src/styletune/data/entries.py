"""What training goes through: every image at every resolution, as it is and mirrored."""

from __future__ import annotations

from typing import Literal, TypedDict

from styletune.data.load import LoadedData, all_rows, read_row
from styletune.data.pixels.buckets import Size, choose_bucket, plan_crop
from styletune.data.pixels.crop import Crop, crop_mask, crop_pixels
from styletune.data.rows import Entry


class BucketFacts(TypedDict):
    """Size in pixels, entries in it, and the mean share of their area that is trimmed away."""

    width: int
    height: int
    images: int
    lost_share: float


def entries(data: LoadedData, split: Literal["train", "holdout"] = "train") -> list[Entry]:
    """Everything that a split is seen as, by file name, then resolution, then mirrored.

    A mirrored image is an entry of its own, not a coin tossed at every step: so its latents are
    cached, and it comes once an epoch like any other. Held-out images are seen as they are, at
    the main resolution only: more views of one picture would not measure more.
    """
    train = split == "train"
    tables = data.tables if train else data.tables[:1]
    found = []
    for row in all_rows(data):
        if row.split != split:
            continue
        for resolution, table in tables:
            plan = plan_crop(row.height, row.width, choose_bucket(row.height, row.width, table))
            found.append(Entry(row, resolution, plan, flip=False))
            if data.flip and train:
                found.append(Entry(row, resolution, plan, flip=True))
    return found


def read_entry(entry: Entry) -> Crop:
    """Decode an entry's pixels and mask.

    Raises:
        DataError: the image or its mask cannot be decoded, or changed since it was loaded.
    """
    image, mask = read_row(entry.row)
    cut = None if mask is None else crop_mask(mask, entry.plan, flip=entry.flip)
    return crop_pixels(image, entry.plan, flip=entry.flip, mask=cut)


def bucket_report(found: list[Entry]) -> list[BucketFacts]:
    """How many entries each bucket holds, and what the crops cost; sorted by size."""
    by_bucket: dict[Size, list[float]] = {}
    for entry in found:
        by_bucket.setdefault(entry.bucket, []).append(entry.plan.lost_share)
    return [
        {
            "width": bucket[1],
            "height": bucket[0],
            "images": len(lost),
            "lost_share": round(sum(lost) / len(lost), 4),
        }
        for bucket, lost in sorted(by_bucket.items())
    ]

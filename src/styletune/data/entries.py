"""What an epoch consists of: every image at every resolution, as it is and mirrored."""

from __future__ import annotations

from collections.abc import Sequence

from styletune.data.checked import LoadedData
from styletune.data.pixels.buckets import Size
from styletune.data.rows import Entry
from styletune.data.split import Split
from styletune.runs.answers import PlanBucket


def entries(data: LoadedData, split: Split = "train") -> list[Entry]:
    """All entries of one side of the split, in the order of the rows; resolutions within.

    A mirrored image is a separate entry, not a coin toss at every step: its latents are cached,
    and it comes once per epoch like any other. Held-out images are used as they are, at
    the main resolution only: more views of one picture would not measure more.
    """
    trains = split == "train"
    resolutions = data.resolutions if trains else data.resolutions[:1]
    flips = (False, True) if trains and data.flip else (False,)
    return [
        Entry(row, resolution, plan, flip)
        for row in data.rows
        if row.split == split
        for resolution, plan in zip(resolutions, data.plans[row.file_name], strict=False)
        for flip in flips
    ]


def bucket_report(entries: Sequence[Entry]) -> tuple[PlanBucket, ...]:
    """How many entries each bucket has, and what the crops cost; sorted by size."""
    lost_shares: dict[Size, list[float]] = {}
    for entry in entries:
        lost_shares.setdefault(entry.bucket, []).append(entry.plan.lost_share)
    return tuple(
        PlanBucket(
            width=bucket[1],
            height=bucket[0],
            images=len(lost),
            lost_share=round(sum(lost) / len(lost), 4),
        )
        for bucket, lost in sorted(lost_shares.items())
    )

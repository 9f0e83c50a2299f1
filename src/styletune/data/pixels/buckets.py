"""The rectangle an image is trained as, and how it gets there: sizes only, no pixels.

All sizes are (height, width) in pixels, all corners (top, left).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from styletune.errors import DataError

Size = tuple[int, int]
# The buckets of each resolution (side in pixels).
Tables = tuple[tuple[int, tuple[Size, ...]], ...]

MAX_UPSCALE = 1.25


@dataclass(frozen=True, slots=True)
class CropPlan:
    """How an image fills a bucket: scaled to cover it, then the center is cut out.

    ``original`` is the upright size before and ``resized`` after scaling; ``top`` and ``left``
    are the corner in the resized image; ``scale`` above 1 enlarges; ``lost_share`` of the area
    is cut off, 0 to 1.
    """

    original: Size
    bucket: Size
    resized: Size
    top: int
    left: int
    scale: float
    lost_share: float


def default_step(resolution: int) -> int:
    """The divisor of bucket sides: 64 pixels, as SDXL was trained; 32 below 512."""
    return 64 if resolution >= 512 else 32


@lru_cache
def bucket_table(resolution: int, step: int, max_aspect: float) -> tuple[Size, ...]:
    """Every bucket of about resolution² pixels, never more; sorted.

    For each height the largest width that fits, the same turned, and the square. No side is
    capped: a cap at ``resolution`` would train 16:9 at half the pixels.

    Args:
        resolution: side in pixels of the square whose area is the limit.
        step: sides are multiples of it.
        max_aspect: longest over shortest side, at least 1.

    Raises:
        DataError: the step is larger than the resolution.
    """
    square = resolution // step * step
    if square == 0:
        raise DataError(
            f"buckets in steps of {step} do not fit into {resolution} pixels",
            where="data.bucket_step",
            fix=f"choose {default_step(resolution)}",
        )
    sides = range(step, int(resolution * math.sqrt(max_aspect)) + step, step)
    widest = [(a, resolution**2 // a // step * step) for a in sides]
    both = {(square, square), *widest, *((b, a) for a, b in widest)}
    return tuple(sorted(b for b in both if min(b) and max(b) <= max_aspect * min(b)))


def choose_bucket(height: int, width: int, table: tuple[Size, ...]) -> Size:
    """The bucket with the nearest aspect ratio; of equals the larger one."""
    aspect = math.log(height / width)

    def distance(bucket: Size) -> tuple[float, int, Size]:
        off = abs(math.log(bucket[0] / bucket[1]) - aspect)
        return round(off, 9), -bucket[0] * bucket[1], bucket

    return min(table, key=distance)


def plan_crop(height: int, width: int, bucket: Size) -> CropPlan:
    """Scale until the bucket is covered, then trim both ends of the side that is too long.

    The corner is what SDXL is told as ``crops_coords_top_left`` (arXiv 2307.01952, §2.2), so it
    is the real trim, not what an exact ratio would give.
    """
    rows, columns = bucket
    scale = max(rows / height, columns / width)
    resized = max(rows, round(height * scale)), max(columns, round(width * scale))
    return CropPlan(
        original=(height, width),
        bucket=bucket,
        resized=resized,
        top=(resized[0] - rows) // 2,
        left=(resized[1] - columns) // 2,
        scale=scale,
        lost_share=1 - rows * columns / (resized[0] * resized[1]),
    )


def plan_crops(height: int, width: int, tables: Tables) -> tuple[CropPlan, ...]:
    """The crop to the nearest bucket of each resolution, in the order of ``tables``."""
    return tuple(
        plan_crop(height, width, choose_bucket(height, width, table)) for _, table in tables
    )

"""What the crops cost: images that lose much of their area, or are enlarged to fill a bucket."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from styletune.data.findings import Finding, agree, finding, first_few
from styletune.data.pixels.buckets import MAX_UPSCALE, CropPlan, Tables, plan_crops

CROP_WARNING_SHARE = 0.2


def size_findings(plans: Mapping[str, Sequence[CropPlan]], buckets: bool) -> list[Finding]:
    """Images that lose a lot to their crop, and those that are enlarged a little.

    Args:
        plans: by file name, one for each resolution.
        buckets: whether crops have several shapes; only words depend on it.
    """
    return [*_cropped(plans, buckets), *_upscaled(plans)]


def _cropped(plans: Mapping[str, Sequence[CropPlan]], buckets: bool) -> list[Finding]:
    worst = {name: max(every, key=lambda plan: plan.lost_share) for name, every in plans.items()}
    cropped = {n: plan for n, plan in worst.items() if plan.lost_share > CROP_WARNING_SHARE}
    if not cropped:
        return []
    losses = [
        f"{name} loses {round(plan.original[0] * plan.original[1] * plan.lost_share)} pixels "
        f"({plan.lost_share:.0%})"
        for name, plan in cropped.items()
    ]
    crop = "crop to the nearest bucket" if buckets else "square crop"
    message = (
        f"the {crop} cuts away more than {CROP_WARNING_SHARE:.0%} of {len(cropped)} images: "
        f"{'; '.join(losses)}"
    )
    fix = (
        "crop these by hand to what matters, or raise data.max_aspect"
        if buckets
        else "crop these by hand to what matters, nearly square, or set data.buckets"
    )
    return [finding("cropped", tuple(cropped), message, fix)]


def _upscaled(plans: Mapping[str, Sequence[CropPlan]]) -> list[Finding]:
    largest = _most_enlarged(plans)
    small = {name: plan for name, plan in largest.items() if 1 < plan.scale <= MAX_UPSCALE}
    if not small:
        return []
    sizes = [f"{n} is {p.original[1]}×{p.original[0]}" for n, p in small.items()]
    buckets_px = sorted({f"{p.bucket[1]}×{p.bucket[0]}" for p in small.values()})
    message = (
        f"{len(small)} of {len(plans)} images {agree(len(small), 'are enlarged')} to fill "
        f"{', '.join(buckets_px)} pixels and will teach softness: {'; '.join(sizes)}"
    )
    fix = "find larger originals, or choose a lower data.resolution"
    return [finding("upscaled", tuple(small), message, fix)]


def too_small_findings(
    plans: Mapping[str, Sequence[CropPlan]], fitting: Callable[[], int | None]
) -> list[Finding]:
    """One finding for the images (by file name) enlarged more than ``MAX_UPSCALE`` times.

    ``fitting`` gives the largest resolution that refuses none of them, None if there is none.
    """
    too_small = {n: p for n, p in _most_enlarged(plans).items() if p.scale > MAX_UPSCALE}
    if not too_small:
        return []
    too_small = dict(sorted(too_small.items(), key=lambda pair: -pair[1].scale))
    details = {
        name: f"{plan.original[1]}×{plan.original[0]} pixels, {plan.scale:.2f} times to fill "
        f"{plan.bucket[1]}×{plan.bucket[0]}"
        for name, plan in too_small.items()
    }
    message = (
        f"{len(too_small)} of {len(plans)} images would be enlarged more than {MAX_UPSCALE} "
        f"times: {first_few(details)}"
    )
    resolution = fitting()
    fix = "find larger originals" + (
        "" if resolution is None else f", or choose data.resolution {resolution}"
    )
    return [finding("too-small", tuple(too_small), message, fix)]


def _most_enlarged(plans: Mapping[str, Sequence[CropPlan]]) -> dict[str, CropPlan]:
    return {name: max(every, key=lambda plan: plan.scale) for name, every in plans.items()}


def fitting_resolution(
    plans: Mapping[str, Sequence[CropPlan]], tables_of: Callable[[int], Tables], lowest: int
) -> int | None:
    """The largest resolution at which no image is refused, all of them tried; None if none.

    Args:
        plans: as they are now, by file name; at least one is refused.
        tables_of: the buckets of a resolution.
        lowest: no resolution below it is tried.
    """
    # The worst come first, because one that is refused decides.
    worst = sorted((every[0] for every in plans.values()), key=lambda plan: -plan.scale)
    sizes = list(dict.fromkeys(plan.original for plan in worst))
    highest = max(plan.bucket[0] * plan.bucket[1] for plan in worst)
    for resolution in range(int(math.sqrt(highest)) // 8 * 8, lowest - 1, -8):
        tables = tables_of(resolution)
        crops = (plan_crops(*size, tables)[0] for size in sizes)
        if all(crop.scale <= MAX_UPSCALE for crop in crops):
            return resolution
    return None

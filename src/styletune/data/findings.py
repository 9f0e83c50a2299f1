"""What there is to know about a set of images that does not stop the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from styletune.data.buckets import CropPlan
from styletune.data.card import Card
from styletune.data.duplicates import Group

CROP_WARNING_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about the set that does not stop the run."""

    code: Literal["exact-duplicates", "near-duplicates", "missing-trigger", "cropped", "upscaled"]
    files: tuple[str, ...]
    message: str
    fix: str


def duplicate_findings(groups: Sequence[Group]) -> list[Finding]:
    """One for each group of copies or variants."""
    what = {
        "exact": "show exactly the same pixels",
        "near": "are variants of one picture; they stay on one side of the split",
    }
    fix = "keep the best of them: repeats weigh more in training and are learnt by heart"
    return [
        Finding(
            "exact-duplicates" if group.kind == "exact" else "near-duplicates",
            group.files,
            f"{len(group.files)} images {what[group.kind]}",
            fix,
        )
        for group in groups
    ]


def trigger_findings(texts: Mapping[str, str], card: Card | None) -> list[Finding]:
    """The captions (by file name) that do not hold the card's trigger."""
    if card is None or card.trigger is None:
        return []
    trigger = card.trigger.strip()
    # CLIP reads lower case, so case does not count.
    pattern = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    without = tuple(name for name, text in texts.items() if not pattern.search(text))
    if not without:
        return []
    message = f'{len(without)} of {len(texts)} captions do not hold the trigger "{trigger}"'
    return [Finding("missing-trigger", without, message, "write it into every caption")]


def size_findings(plans: Mapping[str, Sequence[CropPlan]], buckets: bool) -> list[Finding]:
    """The images (by file name) that lose much to a crop, and those that are enlarged."""
    found = []
    worst = {name: max(every, key=lambda plan: plan.lost_share) for name, every in plans.items()}
    cropped = {n: plan for n, plan in worst.items() if plan.lost_share > CROP_WARNING_SHARE}
    if cropped:
        losses = [
            f"{name} loses {round(plan.original[0] * plan.original[1] * plan.lost_share)} pixels "
            f"({plan.lost_share:.0%})"
            for name, plan in cropped.items()
        ]
        what = "crop to the nearest bucket" if buckets else "square crop"
        found.append(
            Finding(
                "cropped",
                tuple(cropped),
                f"the {what} cuts away more than {CROP_WARNING_SHARE:.0%} of "
                f"{len(cropped)} images: {'; '.join(losses)}",
                "crop these by hand to what matters, or raise data.max_aspect"
                if buckets
                else "crop these by hand to what matters, nearly square, or set data.buckets",
            )
        )
    largest = {name: max(every, key=lambda plan: plan.scale) for name, every in plans.items()}
    small = {name: plan for name, plan in largest.items() if plan.scale > 1}
    if small:
        sizes = [f"{n} is {p.original[1]}×{p.original[0]}" for n, p in small.items()]
        buckets_px = sorted({f"{p.bucket[1]}×{p.bucket[0]}" for p in small.values()})
        found.append(
            Finding(
                "upscaled",
                tuple(small),
                f"{len(small)} images are enlarged to fill {', '.join(buckets_px)} pixels and "
                f"will teach softness: {'; '.join(sizes)}",
                "find larger originals, or choose a lower data.resolution",
            )
        )
    return found

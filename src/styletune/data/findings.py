"""What there is to know about a set of images that does not stop the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from styletune.data.inspection.duplicates import Group
from styletune.data.pixels.buckets import MAX_UPSCALE, CropPlan
from styletune.errors import DataError

CROP_WARNING_SHARE = 0.2


Severity = Literal["error", "warning", "fact"]

# Every code with its severity and what it says, for people who read the list in the manual.
CODES: dict[str, tuple[Severity, str]] = {
    "unreadable-image": ("error", "cannot be decoded: damaged, too large, animated, no image"),
    "undeclared-background": ("error", "transparent pixels and no background is declared"),
    "foreign-file": ("error", "an image of a kind that is not read"),
    "broken-file": ("error", "not a file, a link to nothing, or no permission to read it"),
    "no-images": ("error", "a source without images"),
    "bad-archive": ("error", "an archive or table that is damaged or not safe to open"),
    "bad-metadata": ("error", "a metadata file that cannot be used"),
    "missing-caption": ("error", "no caption, and no default caption"),
    "empty-caption": ("error", "a caption without words"),
    "ambiguous-caption": ("error", "two captions for one image"),
    "unread-caption-file": ("error", "a caption file of a name that is not read"),
    "placeholder": ("error", "a placeholder of a template was left in the caption"),
    "too-long-caption": ("error", "longer than CLIP's 77 tokens; the end would be cut off"),
    "too-small": ("error", "would be enlarged more than 1.25 times"),
    "bad-mask": ("error", "a mask that is missing or does not fit its image"),
    "opt-out": ("error", "its XMP data prohibits training on it"),
    "missing-rights": ("error", "licence, holder, consent or source is not declared"),
    "bad-license": ("error", "not an SPDX licence id or LicenseRef-…"),
    "cannot-split": ("error", "too few different pictures to hold some out"),
    "exact-duplicates": ("warning", "the same pixels more than once"),
    "near-duplicates": ("warning", "variants of one picture"),
    "same-motif": ("warning", "different pictures of nearly the same thing"),
    "duplicate-captions": ("warning", "one caption for several different images"),
    "missing-trigger": ("warning", "the trigger is not in the caption"),
    "inconsistent-trigger": ("warning", "the trigger is written in different ways or places"),
    "cropped": ("warning", "the crop cuts much away"),
    "upscaled": ("warning", "enlarged a little"),
    "extreme-aspect": ("warning", "very long or very tall"),
    "blurred": ("warning", "probably out of focus or enlarged before"),
    "flat": ("warning", "hardly any detail"),
    "dark": ("warning", "nearly black"),
    "bright": ("warning", "nearly white"),
    "letterboxed": ("warning", "bars of one colour at the edges"),
    "watermark": ("warning", "probably a watermark"),
    "overlaid-text": ("warning", "probably text over the picture"),
    "outlier": ("warning", "far from the look of the others"),
    "off-palette": ("warning", "far from the colours of the others"),
    "restricted-license": ("warning", "NoDerivatives or NonCommercial: limits the adapter's use"),
    "machine-captions": ("fact", "captions that a model wrote"),
    "converted-color": ("fact", "converted to sRGB through a colour profile"),
    "turned": ("fact", "turned upright"),
    "composited": ("fact", "transparent pixels laid over the background"),
    "repeats": ("fact", "shown more than once an epoch"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about the set, with the nearest thing to do about it.

    ``code`` is one of ``CODES``; an error stops training, unless the recipe lowers it.
    """

    code: str
    files: tuple[str, ...]
    message: str
    fix: str
    severity: Severity = "warning"


def finding(
    code: str, files: Sequence[str], message: str, fix: str, severity: Severity | None = None
) -> Finding:
    """A finding of one of ``CODES``, as severe as its code says unless told otherwise."""
    return Finding(code, tuple(files), message, fix, severity or CODES[code][0])


def named(numbers: Mapping[str, str], most: int = 5) -> str:
    """``"a.png (0.21) and 3 more"``: the first few names, each with what is said of it."""
    shown = ", ".join(f"{name} ({said})" for name, said in list(numbers.items())[:most])
    rest = len(numbers) - most
    return shown + (f" and {rest} more" if rest > 0 else "")


def said(found: Finding, most: int = 5) -> str:
    """A finding in a line: its message, and the files that it is about if it names none."""
    if not found.files or any(name in found.message for name in found.files):
        return found.message
    rest = len(found.files) - most
    shown = ", ".join(found.files[:most]) + (f" and {rest} more" if rest > 0 else "")
    return f"{found.message}: {shown}"


def data_error(where: str, errors: Sequence[Finding]) -> DataError:
    """All errors of a set at once; the fix of the first is the error's own."""
    lines = [said(errors[0]), *(f"{said(e)}\n  fix: {e.fix}" for e in errors[1:])]
    return DataError("\n".join(lines), where=where, fix=errors[0].fix)


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
        if group.kind != "motif"
    ]


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
    small = {name: plan for name, plan in largest.items() if 1 < plan.scale <= MAX_UPSCALE}
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


def too_small_findings(plans: Mapping[str, Sequence[CropPlan]]) -> list[Finding]:
    """One finding of the images (by file name) enlarged more than ``MAX_UPSCALE`` times."""
    largest = {name: max(every, key=lambda plan: plan.scale) for name, every in plans.items()}
    refused = {n: p for n, p in largest.items() if p.scale > MAX_UPSCALE}
    if not refused:
        return []
    refused = dict(sorted(refused.items(), key=lambda pair: -pair[1].scale))
    said = {
        name: f"{plan.original[1]}×{plan.original[0]} pixels, {plan.scale:.2f} times to fill "
        f"{plan.bucket[1]}×{plan.bucket[0]}"
        for name, plan in refused.items()
    }
    message = (
        f"{len(refused)} of {len(plans)} images would be enlarged more than {MAX_UPSCALE} times: "
        f"{named(said)}"
    )
    fitting = min(_fitting_resolution(plan) for plan in refused.values())
    fix = f"find larger originals, or choose data.resolution {fitting} or lower"
    return [finding("too-small", tuple(refused), message, fix)]


def _fitting_resolution(plan: CropPlan) -> int:
    """The largest resolution at which the image is not refused."""
    side = math.sqrt(plan.bucket[0] * plan.bucket[1])
    return int(side * MAX_UPSCALE / plan.scale + 1e-9) // 8 * 8

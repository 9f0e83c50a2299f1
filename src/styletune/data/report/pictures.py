"""One image on the report page: its thumbnails, its crop, its flags and its texts."""

from __future__ import annotations

import base64
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from styletune.data.checked import Checked
from styletune.data.findings import Finding, Severity
from styletune.data.inspection.facts import THUMBNAIL_PX, ImageFacts, PaletteFacts
from styletune.data.pixels.buckets import CropPlan, Size
from styletune.data.sources.items import Item

MANY_IMAGES = 500
SMALLER_PX = 160
STAMP_PX = 128
STAMPS_SHOWN = 12
GROUPS_SHOWN = 100
MEMBERS_SHOWN = 24
WORST_SHOWN = 8

SIDES = {"train": "train", "holdout": "held out"}
RIGHTS = {"license": "License", "holder": "Holder", "consent": "Consent", "source": "Source"}

# Marks that change the reading direction (Unicode UAX #9) could disguise a name.
_BIDI_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Cut:
    """A margin cut off by the crop, in percent of the image."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Flag:
    """One finding as a badge."""

    code: str
    label: str
    severity: Severity


@dataclass(frozen=True, slots=True)
class PagePicture:
    """One image as the page shows it; texts are ``visible_text``, ``src`` "" if undecodable."""

    id: str
    name: str
    src: str
    stamp: str
    caption: str
    machine: bool
    width: int
    height: int
    bucket: str
    lost: float | None
    enlarged: bool
    cuts: tuple[Cut, ...]
    side: str
    repeats: int
    flags: tuple[Flag, ...]
    origin: str


def make_pictures(checked: Checked, findings: Sequence[Finding]) -> dict[str, PagePicture]:
    """Every item by its file name, in order."""
    many = len(checked.items) > MANY_IMAGES
    uris = _data_uris(checked.facts, checked.facts, SMALLER_PX if many else THUMBNAIL_PX)
    small = _data_uris(checked.facts, _with_stamps(checked), STAMP_PX)
    flags: dict[str, dict[Flag, None]] = {}
    for finding in findings:
        for name in finding.files:
            flags.setdefault(name, {})[flag_of(finding)] = None
    return {
        item.file_name: _picture(
            f"i{number}",
            item,
            checked,
            (uris.get(item.file_name, ""), small.get(item.file_name, "")),
            tuple(flags.get(item.file_name, ())),
        )
        for number, item in enumerate(checked.items)
    }


def visible_text(text: str, *, one_line: bool = False) -> str:
    r"""A text without hidden parts: control and direction marks are escaped as ``\u202e``.

    Line breaks and tabs stay unless ``one_line``. Lone surrogates (bytes of a file name that
    are not UTF-8) are escaped too, so the result can always be encoded.
    """

    def escaped(char: str) -> str:
        if char in "\n\t" and not one_line:
            return char
        hidden = unicodedata.category(char) in ("Cc", "Cs") or _BIDI_MARKS.match(char)
        return char.encode("unicode_escape").decode() if hidden else char

    return text if text.isascii() and text.isprintable() else "".join(map(escaped, text))


def percent_text(share: float) -> str:
    """Whole percents, but never 0% of something or 100% of less than all."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def code_words(code: str) -> str:
    """A finding's code for people."""
    return code.replace("-", " ")


def flag_of(finding: Finding) -> Flag:
    """The badge of a finding."""
    return Flag(finding.code, code_words(finding.code), finding.severity)


def _with_stamps(checked: Checked) -> set[str]:
    """The images that are shown a second time, small."""
    stamped = {name for finding in checked.findings for name in finding.files[:STAMPS_SHOWN]}
    stamped |= {
        name for group in checked.groups[:GROUPS_SHOWN] for name in group.files[:MEMBERS_SHOWN]
    }
    return stamped | set(worst_covered(checked.palette))


def worst_covered(palette: PaletteFacts) -> list[str]:
    """The images with the least of the palette, least first."""
    ranked = sorted(palette.coverage, key=lambda name: (palette.coverage[name], name))
    return ranked[:WORST_SHOWN]


def _data_uris(
    facts: Mapping[str, ImageFacts], names: Iterable[str], side_px: int
) -> dict[str, str]:
    names = [name for name in names if name in facts]
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="thumbnails") as pool:
        uris = pool.map(lambda name: _data_uri(facts[name].thumbnail, side_px), names)
        return dict(zip(names, uris, strict=True))


def _data_uri(webp: bytes, side_px: int) -> str:
    """A WebP file inlined; made smaller only if it is larger than ``side_px``."""
    with Image.open(BytesIO(webp)) as image:
        if max(image.size) > side_px:
            image.thumbnail((side_px, side_px))
            buffer = BytesIO()
            image.save(buffer, "WEBP", quality=78, method=2)
            webp = buffer.getvalue()
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def _picture(
    number: str, item: Item, checked: Checked, uris: tuple[str, str], flags: tuple[Flag, ...]
) -> PagePicture:
    name = item.file_name
    fact, plan = checked.facts.get(name), main_plan(checked, name)
    side = checked.sides.get(name)
    return PagePicture(
        id=number,
        name=visible_text(name, one_line=True),
        src=uris[0],
        stamp=uris[1],
        caption=visible_text(item.text or ""),
        machine=item.machine_caption,
        width=fact.width if fact else 0,
        height=fact.height if fact else 0,
        bucket=size_text(plan.bucket) if plan else "",
        lost=plan.lost_share if plan else None,
        enlarged=plan is not None and plan.scale > 1,
        cuts=_cuts(plan) if plan else (),
        side=SIDES[side] if side else "",
        repeats=item.repeats,
        flags=flags,
        origin=visible_text(item.origin, one_line=True),
    )


def size_text(size: Size) -> str:
    """Width×height, as designers write it."""
    return f"{size[1]}×{size[0]}"


def _cuts(plan: CropPlan) -> tuple[Cut, ...]:
    """What the crop cuts off on each side; none overlap."""
    (rows, columns), (height, width) = plan.bucket, plan.resized
    top, left = 100 * plan.top / height, 100 * plan.left / width
    high, wide = 100 * rows / height, 100 * columns / width
    every = (
        Cut(0, 0, 100, top),
        Cut(0, top + high, 100, 100 - top - high),
        Cut(0, top, left, high),
        Cut(left + wide, top, 100 - left - wide, high),
    )
    return tuple(cut for cut in every if cut.width > 1e-9 and cut.height > 1e-9)


def main_plan(checked: Checked, name: str) -> CropPlan | None:
    """An image's crop at the main resolution; None if it cannot be decoded."""
    plans = checked.plans.get(name)
    return plans[0] if plans else None


def picture_details(item: Item, picture: PagePicture, checked: Checked) -> list[tuple[str, str]]:
    """Label and text of everything known about one image, for the large view."""
    fact, plan = checked.facts.get(item.file_name), main_plan(checked, item.file_name)
    lines = [("Split", picture.side), ("Set", picture.origin)]
    if fact:
        lines += [
            (
                "Size",
                f"{fact.width}×{fact.height} pixels" + (", rotated upright" if fact.turned else ""),
            ),
            (
                "File",
                f"{fact.format}, {fact.stored_mode}"
                + (f", {visible_text(fact.profile)}" if fact.profile else ""),
            ),
        ]
        if fact.transparent_share:
            lines.append(("Transparent", f"{percent_text(fact.transparent_share)} of the pixels"))
        if fact.opt_out:
            lines.append(("Opt-out", visible_text(fact.opt_out)))
    if plan:
        verb = "enlarged" if plan.scale > 1 else "reduced"
        scaled = f", {verb} to {percent_text(plan.scale)}" if plan.scale != 1 else ""
        lines += [
            ("Trained as", size_text(plan.bucket) + scaled),
            ("Cropped away", f"{percent_text(plan.lost_share)} of the area"),
        ]
    if item.file_name in checked.palette.coverage:
        share = checked.palette.coverage[item.file_name]
        lines.append(("In the palette", f"{percent_text(share)} of the pixels"))
    if item.repeats > 1:
        lines.append(("Repeats", f"{item.repeats} times per epoch"))
    if item.weight != 1:
        lines.append(("Loss weight", f"{item.weight:g}"))
    lines += [
        (label, visible_text(getattr(item.rights, key)) or "not declared")
        for key, label in RIGHTS.items()
    ]
    return [(label, text) for label, text in lines if text]

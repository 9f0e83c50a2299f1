"""The report on a set: one self-contained HTML file, for the designer who has to act."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from styletune.data.checked import Checked
from styletune.data.findings import CODES, Finding, Severity
from styletune.data.inspection.facts import THUMBNAIL_PX, PaletteFacts
from styletune.data.pixels.buckets import Size
from styletune.data.report.pictures import (
    GROUPS_SHOWN,
    MANY_IMAGES,
    MEMBERS_SHOWN,
    RIGHTS,
    SMALLER_PX,
    STAMPS_SHOWN,
    Flag,
    PagePicture,
    code_words,
    flag_of,
    make_pictures,
    percent_text,
    picture_details,
    size_text,
    visible_text,
    worst_covered,
)
from styletune.files import write_text

NOTES_SHOWN = 3
NAMES_SHOWN = 20
MESSAGE_LENGTH = 240
COVERAGE_BINS = 10

SEVERITIES: dict[Severity, tuple[str, str]] = {
    "error": ("✕", "Errors: training would refuse this set"),
    "warning": ("!", "Warnings: training is possible, but check these"),
    "fact": ("i", "Good to know"),
}
KINDS = {
    "exact": ("Exact copies", "the same pixels under several names"),
    "near": ("Variants of one picture", "always on one side of the split"),
    "motif": ("Nearly the same motif", "different pictures of nearly the same thing"),
}


@dataclass(frozen=True, slots=True)
class Note:
    """One finding of a code: its message, full and clipped, and the images concerned."""

    message: str
    clipped: str
    pictures: tuple[PagePicture, ...]
    others: tuple[str, ...]
    files: int


@dataclass(frozen=True, slots=True)
class Problem:
    """All findings of one code and severity."""

    flag: Flag
    meaning: str
    notes: tuple[Note, ...]
    fixes: tuple[str, ...]
    files: int
    in_sheet: int


def write_data_report(checked: Checked, file: Path, *, title: str) -> None:
    """Write the report of one checked set: 5 to 20 kB per image, 3 to 6 kB in sets over 500.

    The same set gives the same bytes. The page loads nothing from outside, shows everything
    without JavaScript, and treats names and captions as text only.

    Args:
        checked: the set; thumbnails are shown unchanged up to 500 images, and at most 160 px
            large beyond that.
        file: the HTML file; its folder is created.
        title: of the page, usually the name of the set.

    Raises:
        OutputError: the file cannot be written.
    """
    findings = sorted(checked.findings, key=_urgency)
    pictures = make_pictures(checked, findings)
    problems = _problems(findings, pictures)
    counts = Counter(finding.severity for finding in findings)
    environment = Environment(
        loader=PackageLoader("styletune.data.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = _count
    environment.filters["percent"] = percent_text
    environment.filters["breakable"] = _breakable
    html = environment.get_template("report.html.j2").render(
        title=visible_text(title, one_line=True),
        verdict=_verdict(len(checked.items), counts),
        refused=counts["error"] > 0,
        counts=counts,
        severities=SEVERITIES,
        problems=problems,
        lowered=sorted({code_words(finding.code) for finding in checked.lowered}),
        pictures=list(pictures.values()),
        filters=_filters(checked, problems, list(pictures.values())),
        kinds=KINDS,
        groups=_groups(checked, pictures),
        groups_shown=GROUPS_SHOWN,
        members_shown=MEMBERS_SHOWN,
        palette=checked.palette,
        coverage=_coverage(checked.palette, pictures),
        buckets=_buckets(checked),
        resolution=checked.resolutions[0],
        rights=_rights(checked, pictures),
        rights_names=RIGHTS,
        stamps_shown=STAMPS_SHOWN,
        notes_shown=NOTES_SHOWN,
        names_shown=NAMES_SHOWN,
        reduced=len(checked.items) > MANY_IMAGES,
        thumbnail_px=SMALLER_PX if len(checked.items) > MANY_IMAGES else THUMBNAIL_PX,
        script_data=_script_data(checked, findings, pictures),
    )
    write_text(file, html)


def _count(number: int, word: str, words: str = "") -> str:
    """``1 image``, ``2,000 images``; ``words`` for plurals that do not end in s."""
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def _breakable(name: str) -> Markup:
    """A file name, escaped, that may wrap after each folder."""
    return escape(name).replace("/", Markup("/<wbr>"))


def _verdict(images: int, counts: Mapping[Severity, int]) -> str:
    numbers = [
        _count(images, "image"),
        _count(counts["error"], "error"),
        _count(counts["warning"], "warning"),
    ]
    end = "training would refuse this set" if counts["error"] else "ready to train"
    return f"{', '.join(numbers)}: {end}"


def _urgency(finding: Finding) -> tuple[int, int, int]:
    """Errors first, then in the order of ``CODES``, then those with the most files."""
    codes = list(CODES)
    rank = codes.index(finding.code) if finding.code in CODES else len(codes)
    return list(SEVERITIES).index(finding.severity), rank, -len(finding.files)


def _problems(findings: Sequence[Finding], pictures: Mapping[str, PagePicture]) -> list[Problem]:
    by_flag: dict[Flag, list[Finding]] = {}
    for finding in findings:
        by_flag.setdefault(flag_of(finding), []).append(finding)
    problems = []
    for flag, every in by_flag.items():
        files = dict.fromkeys(name for finding in every for name in finding.files)
        problems.append(
            Problem(
                flag=flag,
                meaning=CODES[flag.code][1] if flag.code in CODES else "",
                notes=tuple(_note(finding, pictures) for finding in every),
                fixes=tuple(dict.fromkeys(visible_text(f.fix) for f in every if f.fix)),
                files=len(files),
                in_sheet=sum(name in pictures for name in files),
            )
        )
    return problems


def _note(finding: Finding, pictures: Mapping[str, PagePicture]) -> Note:
    message = visible_text(finding.message)
    clipped = message
    if len(message) > MESSAGE_LENGTH * 1.2:
        clipped = message[:MESSAGE_LENGTH].rsplit(" ", 1)[0] + " …"
    drawn = [n for n in finding.files[:STAMPS_SHOWN] if n in pictures and pictures[n].stamp]
    others = [n for n in finding.files if n not in pictures or not pictures[n].src]
    return Note(
        message=message,
        clipped=clipped,
        pictures=tuple(pictures[name] for name in drawn),
        others=tuple(visible_text(name, one_line=True) for name in others),
        files=len(finding.files),
    )


def _filters(
    checked: Checked, problems: Sequence[Problem], pictures: Sequence[PagePicture]
) -> list[dict[str, Any]]:
    """The rows of buttons above the sheet: (value, label, sign, count) each."""
    flags = [
        (p.flag.code, p.flag.label, SEVERITIES[p.flag.severity][0], p.in_sheet)
        for p in problems
        if p.in_sheet
    ]
    clear = sum(not picture.flags for picture in pictures)
    flags += [("", "no flags", "✓", clear)] if clear else []
    sides = Counter(picture.side for picture in pictures)
    members = {
        kind: len({name for group in checked.groups if group.kind == kind for name in group.files})
        for kind in KINDS
    }
    origins = Counter(picture.origin for picture in pictures)
    rows = [
        ("flag", "Flags", flags),
        ("kind", "Groups", [(k, KINDS[k][0].lower(), "", n) for k, n in members.items() if n]),
        (
            "side",
            "Split",
            [(s, s or "not split", "", n) for s, n in sorted(sides.items(), reverse=True)],
        ),
        ("origin", "Source", [(o, o, "", n) for o, n in sorted(origins.items())]),
    ]
    return [
        {"key": key, "title": name, "buttons": buttons}
        for key, name, buttons in rows
        if len(buttons) > 1 or (buttons and key in ("flag", "kind"))
    ]


def _groups(checked: Checked, pictures: Mapping[str, PagePicture]) -> list[dict[str, Any]]:
    groups = []
    for number, group in enumerate(checked.groups):
        members = [pictures[name] for name in group.files if name in pictures]
        sides = sorted({picture.side for picture in members if picture.side})
        groups.append({"number": number, "kind": group.kind, "members": members, "sides": sides})
    return groups


def _coverage(palette: PaletteFacts, pictures: Mapping[str, PagePicture]) -> dict[str, Any]:
    """A histogram of images by the share of their pixels near the palette, and the worst."""
    bins = [0] * COVERAGE_BINS
    for share in palette.coverage.values():
        bins[min(int(share * COVERAGE_BINS), COVERAGE_BINS - 1)] += 1
    worst = [
        (pictures[name], palette.coverage[name])
        for name in worst_covered(palette)
        if name in pictures
    ]
    return {"bins": bins, "highest": max(bins), "worst": worst}


def _buckets(checked: Checked) -> list[dict[str, Any]]:
    """Each main bucket with its images, widest first; losses are mean shares of the area."""
    plans = {name: every[0] for name, every in checked.plans.items()}
    by_bucket: dict[Size, list[str]] = {}
    for name, plan in plans.items():
        by_bucket.setdefault(plan.bucket, []).append(name)
    ordered = sorted(by_bucket.items(), key=lambda pair: (-pair[0][1] / pair[0][0], pair[0]))
    return [
        {
            "size": size_text(bucket),
            "width": bucket[1] / max(bucket),
            "height": bucket[0] / max(bucket),
            "images": len(names),
            "holdout": sum(checked.sides.get(name) == "holdout" for name in names),
            "lost": sum(plans[name].lost_share for name in names) / len(names),
            "enlarged": sum(plans[name].scale > 1 for name in names),
        }
        for bucket, names in ordered
    ]


def _rights(checked: Checked, pictures: Mapping[str, PagePicture]) -> dict[str, Any]:
    """Distinct declarations with their counts, most images first, and images that lack some."""
    declared = {item.file_name: item.rights for item in checked.items}
    rows = [
        ([visible_text(getattr(rights, key)) for key in RIGHTS], number)
        for rights, number in Counter(declared.values()).most_common()
    ]
    lacking = [
        (label, [pictures[name] for name, rights in declared.items() if not getattr(rights, key)])
        for key, label in RIGHTS.items()
    ]
    return {"rows": rows, "lacking": [(label, who) for label, who in lacking if who]}


def _script_data(
    checked: Checked, findings: Sequence[Finding], pictures: Mapping[str, PagePicture]
) -> dict[str, Any]:
    """Data for filters, sorting and the large view beyond the cards; texts only."""
    findings_of: dict[str, list[int]] = {}
    for number, finding in enumerate(findings):
        for name in finding.files:
            findings_of.setdefault(name, []).append(number)
    member_of: dict[str, list[int]] = {}
    for number, group in enumerate(checked.groups):
        for name in group.files:
            member_of.setdefault(name, []).append(number)
    notes = [_note(finding, {}) for finding in findings]
    return {
        "kinds": [group.kind for group in checked.groups],
        "findings": [
            {
                "label": flag_of(f).label,
                "sign": SEVERITIES[f.severity][0],
                "severity": f.severity,
                "message": note.clipped,
                "fix": visible_text(f.fix),
            }
            for f, note in zip(findings, notes, strict=True)
        ],
        "images": [
            {
                "name": picture.name,
                "caption": picture.caption,
                "flags": [flag.code for flag in picture.flags],
                "side": picture.side,
                "origin": picture.origin,
                "groups": member_of.get(item.file_name, []),
                "pixels": picture.width * picture.height,
                "lost": picture.lost or 0,
                "findings": findings_of.get(item.file_name, []),
                "details": picture_details(item, picture, checked),
            }
            for item, picture in zip(checked.items, pictures.values(), strict=True)
        ],
    }

"""The truth about a set of images: what is wrong, what to know, who is like whom, which colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from styletune.data.captions.lint import caption_findings
from styletune.data.findings import (
    Finding,
    data_error,
    duplicate_findings,
    finding,
    named,
    size_findings,
    too_small_findings,
)
from styletune.data.inspection.duplicates import Group, duplicate_groups, families
from styletune.data.inspection.facts import ImageFacts, PaletteFacts
from styletune.data.inspection.features import check_encoder, set_features
from styletune.data.inspection.inspect import inspect_all
from styletune.data.inspection.motifs import look_findings, motif_groups, outliers
from styletune.data.inspection.palette import palette_facts, palette_outliers
from styletune.data.inspection.quality import quality_findings
from styletune.data.inspection.store import FactsStore
from styletune.data.masks import Masks, set_masks
from styletune.data.pixels.buckets import (
    CropPlan,
    Tables,
    bucket_table,
    choose_bucket,
    default_step,
    plan_crop,
)
from styletune.data.rights import rights_findings
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item
from styletune.data.sources.open import Source, open_sources
from styletune.data.split import Split, fold_groups, split_groups
from styletune.errors import DataError
from styletune.runs.answers import (
    CheckBucket,
    CheckColor,
    CheckFinding,
    CheckGroup,
    CheckResult,
)


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """What decides how a set is judged; names and meanings are those of the recipe's [data].

    ``min_holdout`` is how many held-out images are needed, as for scoring.
    """

    resolution: int
    extra_resolutions: tuple[int, ...] = ()
    buckets: bool = True
    bucket_step: int | None = None
    max_aspect: float = 2.0
    default_caption: str | None = None
    background: str | None = None
    holdout: float = 0.2
    folds: int | None = None
    fold: int = 0
    allow: tuple[str, ...] = ()
    require_rights: bool = False
    opt_out_override: str | None = None
    encoder: str = "none"
    known_tokens: Collection[str] = ()
    mask: Literal["none", "alpha", "folder"] = "none"
    mask_path: Path | None = None
    min_holdout: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """Everything known about a set.

    Mappings are by file name; those that need pixels lack the images that cannot be decoded.
    ``groups`` are of kinds exact, near and motif; ``sides`` say train or holdout; ``plans`` are
    the crops at the main resolution; ``lowered`` the errors that the recipe made warnings, as
    they were.
    """

    items: tuple[Item, ...]
    cards: Mapping[str, Card]
    facts: Mapping[str, ImageFacts]
    findings: tuple[Finding, ...]
    groups: tuple[Group, ...]
    sides: Mapping[str, Split]
    plans: Mapping[str, CropPlan]
    palette: PaletteFacts
    resolution: int
    lowered: tuple[Finding, ...] = ()
    masks: Masks = field(default_factory=lambda: Masks({}, {}))

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "warning")


def check_data(
    sources: Sequence[Source],
    settings: CheckSettings,
    *,
    store: FactsStore,
    tokens: Callable[[str], int] | None = None,
    relative_to: Path = Path(),
    show_progress: bool = False,
) -> Checked:
    """Look at every image, caption and right of a set, once; nothing is changed or refused.

    Args:
        sources: from ``resolve_sources``.
        settings: how it is judged.
        store: facts that are known already; an unchanged image is not decoded again.
        tokens: how many CLIP tokens a caption is; None leaves their length unchecked.
        relative_to: what an encoder's folder is relative to.
        show_progress: draw progress bars on stderr.

    Raises:
        NotFound: a source or the encoder is not there.
        RecipeError: a card is not valid.
        DataError: the settings contradict each other, or a folder cannot be listed.
    """
    tables = bucket_tables(settings)
    check_encoder(settings.encoder, relative_to)
    opened = open_sources(
        sources, default_caption=settings.default_caption, background=settings.background
    )
    inspected = inspect_all(
        opened.items,
        store=store,
        show_progress=show_progress,
    )
    facts = {n: f for n, f in inspected.items() if isinstance(f, ImageFacts)}
    # What may be left out need not have a caption and rights.
    leaves_out = "unreadable-image" in settings.allow
    used = [i for i in opened.items if i.file_name in facts or not leaves_out]
    groups = duplicate_groups(facts)
    features = None
    if settings.encoder != "none" and facts:
        features = set_features(
            facts, settings.encoder, store, relative_to, show_progress=show_progress
        )
        groups = [*groups, *motif_groups(features, list(facts), groups)]
    plans = {name: _plans(f, tables) for name, f in facts.items()}
    declared = tuple(dict.fromkeys(c for card in opened.cards.values() for c in card.palette))
    palette = palette_facts(facts, declared)
    sides, split_faults = _split(facts, groups, settings)
    masks, mask_faults = set_masks(
        [item for item in opened.items if item.file_name in facts],
        [item.file_name for item in opened.items],
        [source.path for source in sources],
        kind=settings.mask,
        folder=settings.mask_path,
        tables=tables,
    )
    findings = [
        *_without_left_out(opened.findings, facts, leaves_out),
        *_unusable([f for f in inspected.values() if isinstance(f, Finding)], len(opened.items)),
        *too_small_findings(plans),
        *caption_findings(
            used,
            opened.cards,
            trigger=None,
            tokens=tokens,
            known_tokens=settings.known_tokens,
            default_caption=settings.default_caption,
            groups=groups,
        ),
        *_trigger_conflict(opened.cards),
        *rights_findings(
            used,
            {n: f.opt_out for n, f in facts.items() if f.opt_out},
            require=settings.require_rights,
            override=settings.opt_out_override,
        ),
        *mask_faults,
        *split_faults,
        *duplicate_findings(groups),
        *look_findings(
            groups,
            outliers(features, list(facts)) if features is not None else [],
            palette_outliers(facts, groups),
        ),
        *size_findings(plans, settings.buckets),
        *quality_findings(facts, resolution=settings.resolution),
        *_color_facts(facts),
    ]
    judged, lowered = _lower(findings, settings.allow)
    return Checked(
        opened.items,
        opened.cards,
        facts,
        judged,
        tuple(groups),
        sides,
        {name: every[0] for name, every in plans.items()},
        palette,
        settings.resolution,
        lowered,
        masks,
    )


def bucket_tables(settings: CheckSettings) -> Tables:
    """The buckets of each resolution; a table of one square when there are to be none.

    Raises:
        DataError: a resolution is given twice, or its buckets are impossible.
    """
    resolutions = (settings.resolution, *settings.extra_resolutions)
    if len(set(resolutions)) < len(resolutions):
        raise DataError(
            "a resolution is given twice, so its images would count twice",
            where="data.extra_resolutions",
            fix="name each once, and not the main one again",
        )
    if not settings.buckets:
        return tuple((r, ((r, r),)) for r in resolutions)
    return tuple(
        (r, bucket_table(r, settings.bucket_step or default_step(r), settings.max_aspect))
        for r in resolutions
    )


def _plans(facts: ImageFacts, tables: Tables) -> tuple[CropPlan, ...]:
    height, width = facts.height, facts.width
    return tuple(
        plan_crop(height, width, choose_bucket(height, width, table)) for _, table in tables
    )


def _split(
    facts: Mapping[str, ImageFacts], groups: Sequence[Group], settings: CheckSettings
) -> tuple[dict[str, Split], list[Finding]]:
    """Sides by file name; pictures of one motif may part, copies and variants may not."""
    related = [group for group in groups if group.kind != "motif"]
    pixels = [[facts[f].pixel_hash for f in family] for family in families(facts, related)]
    try:
        if settings.folds:
            by_pixels = fold_groups(pixels, settings.folds, settings.fold)
        else:
            by_pixels = split_groups(pixels, settings.holdout)
    except DataError as error:
        fault = finding("cannot-split", (), f"{error.where}: {error.message}", error.fix)
        return dict.fromkeys(facts, "train"), [fault]
    sides = {name: by_pixels[f.pixel_hash] for name, f in facts.items()}
    held = sum(side == "holdout" for side in sides.values())
    if facts and held == len(sides):
        fault = finding("cannot-split", (), "no image is left to train on", "lower data.holdout")
    elif held < settings.min_holdout:
        fault = finding(
            "cannot-split",
            (),
            f"scoring compares with at least {settings.min_holdout} held-out images, {held} are "
            "held out",
            "hold out more (data.holdout = 0.2), add images, or remove [score]",
        )
    else:
        return sides, []
    return sides, [fault]


def _without_left_out(
    findings: Sequence[Finding], facts: Mapping[str, ImageFacts], leaves_out: bool
) -> list[Finding]:
    """Findings of the sources; an image that is left out needs no caption."""
    if not leaves_out:
        return list(findings)
    kept = []
    for each in findings:
        files = tuple(name for name in each.files if name in facts)
        if each.code in ("missing-caption", "empty-caption") and files != each.files:
            if not files:
                continue
            each = replace(each, files=files)
        kept.append(each)
    return kept


def _unusable(faults: Sequence[Finding], images: int) -> list[Finding]:
    """One finding for all images with the same way out, and one if no image is left."""
    alike: dict[tuple[str, str], dict[str, str]] = {}
    for fault in faults:
        alike.setdefault((fault.code, fault.fix), {})[fault.files[0]] = fault.message
    found = []
    for (code, fix), said in alike.items():
        message = f"{len(said)} of {images} images cannot be used: {named(said)}"
        found.append(finding(code, tuple(said), message, fix))
    if faults and len(faults) == images:
        fix = "replace them by images that can be read, or give another source"
        found.append(finding("no-images", (), "none of the images can be used", fix))
    return found


def _trigger_conflict(cards: Mapping[str, Card]) -> list[Finding]:
    triggers = {name: card.trigger.strip() for name, card in cards.items() if card.trigger}
    if len(set(triggers.values())) < 2:
        return []
    said = ", ".join(f'{name}: "{trigger}"' for name, trigger in triggers.items())
    message = f"the sources have different triggers ({said}), so prompts are given none"
    return [finding("inconsistent-trigger", (), message, "use one trigger for one look")]


def _color_facts(facts: Mapping[str, ImageFacts]) -> list[Finding]:
    """What the decoder did to make upright sRGB of the files."""
    profiles = Counter(f.profile for f in facts.values() if f.profile)
    shown = ", ".join(f"{profile} ({n})" for profile, n in profiles.most_common(5))
    kinds = (
        (
            "converted-color",
            [n for n, f in facts.items() if f.profile],
            f"are read through their colour profile: {shown}",
        ),
        ("turned", [n for n, f in facts.items() if f.turned], "are turned upright by their Exif"),
        (
            "composited",
            [n for n, f in facts.items() if f.transparent_share > 0],
            "have transparent pixels, which are laid over the background",
        ),
    )
    return [
        finding(code, files, f"{len(files)} of {len(facts)} images {what}", "nothing to do")
        for code, files, what in kinds
        if files
    ]


def _lower(
    findings: Sequence[Finding], allow: Collection[str]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Errors that the recipe allows become warnings that say so: (all, worst first; the lowered)"""
    lowered = tuple(f for f in findings if f.severity == "error" and f.code in allow)
    judged = [
        replace(f, severity="warning", message=f"{f.message} (allowed by the recipe)")
        if f in lowered
        else f
        for f in findings
    ]
    order = {"error": 0, "warning": 1, "fact": 2}
    return tuple(sorted(judged, key=lambda f: order[f.severity])), lowered


def check_document(checked: Checked) -> CheckResult:
    """The ``data check --json`` document."""

    def of_severity(severity: str) -> tuple[CheckFinding, ...]:
        return tuple(
            CheckFinding(code=f.code, files=f.files, message=f.message, fix=f.fix)
            for f in checked.findings
            if f.severity == severity
        )

    sizes = Counter(plan.bucket for plan in checked.plans.values())
    return CheckResult(
        images=len(checked.items),
        readable=len(checked.facts),
        errors=of_severity("error"),
        warnings=of_severity("warning"),
        facts=of_severity("fact"),
        groups=tuple(CheckGroup(kind=g.kind, files=tuple(g.files)) for g in checked.groups),
        palette=tuple(
            CheckColor(hex=color, weight=round(weight, 4))
            for color, weight in checked.palette.extracted
        ),
        declared_palette=tuple(checked.palette.declared),
        coverage={name: round(v, 4) for name, v in checked.palette.coverage.items()},
        split=dict(checked.sides),
        resolution=checked.resolution,
        buckets=tuple(
            CheckBucket(width=width, height=height, images=n)
            for (height, width), n in sorted(sizes.items())
        ),
    )


def refuse(checked: Checked, where: str) -> None:
    """Raise DataError with every error of the set, in the words of ``data check``."""
    if checked.errors:
        raise data_error(where, checked.errors)

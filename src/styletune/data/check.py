"""The check of a set: every image, caption and right, once; and everything found about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from styletune.data.captions.lint import caption_findings, trigger_conflict
from styletune.data.checked import Checked, Expected
from styletune.data.findings import Finding, Severity, data_error
from styletune.data.inspection.duplicates import (
    ImageGroup,
    clusters,
    duplicate_findings,
    duplicate_groups,
)
from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.features import check_encoder, set_features
from styletune.data.inspection.inspect import decoding_findings, inspect_all, unusable_findings
from styletune.data.inspection.motifs import look_findings, motif_groups, outliers
from styletune.data.inspection.palette import palette_facts, palette_outliers
from styletune.data.inspection.quality import quality_findings
from styletune.data.inspection.sizes import fitting_resolution, size_findings, too_small_findings
from styletune.data.inspection.store import FactsStore
from styletune.data.masks import set_masks
from styletune.data.pixels.buckets import (
    CropPlan,
    Tables,
    bucket_table,
    default_step,
    plan_crops,
)
from styletune.data.rights import rights_findings
from styletune.data.sources.listing import list_sources, resolve_sources
from styletune.data.sources.source import Source
from styletune.data.split import split_files
from styletune.errors import DataError
from styletune.places import resolve_place
from styletune.recipe.data_sections import MIN_RESOLUTION, DataSection
from styletune.runs.answers import (
    CheckBucket,
    CheckColor,
    CheckFinding,
    CheckGroup,
    CheckResult,
)

MAX_IMAGES = 20_000


def check_data(
    section: DataSection,
    folder: Path,
    expected: Expected,
    *,
    store: FactsStore,
    show_progress: bool = False,
) -> Checked:
    """Look at every image, caption and right of a set once; nothing is changed or refused.

    Args:
        section: the sources, and how they are judged and split.
        folder: what the section's paths are relative to.
        expected: what the run expects beside the section.
        store: known facts; an unchanged image is not decoded again.
        show_progress: draw progress bars on stderr.

    Raises:
        NotFound: a source or the encoder is not there.
        RecipeError: a card is not valid.
        DataError: the settings contradict each other, a folder cannot be listed, or there are
            more than ``MAX_IMAGES``.
    """
    sources = resolve_sources(section, folder)
    tables = bucket_tables(section, expected.resolution)
    check_encoder(section.encoder, folder)
    listing = list_sources(
        sources, default_caption=section.default_caption, background=section.background
    )
    _refuse_crowd(len(listing.items), sources)
    inspected = inspect_all(listing.items, store=store, show_progress=show_progress)
    facts = {n: f for n, f in inspected.items() if isinstance(f, ImageFacts)}
    related = duplicate_groups(facts, show_progress=show_progress)
    motifs, unlike = _by_features(facts, related, section.encoder, folder, store, show_progress)
    plans = {name: plan_crops(f.height, f.width, tables) for name, f in facts.items()}
    sides, split_problems = split_files(
        {name: f.pixel_hash for name, f in facts.items()},
        clusters(facts, related),
        holdout=section.holdout,
        folds=section.folds,
        fold=section.fold,
        min_holdout=expected.min_holdout,
    )
    masks, mask_problems = set_masks(
        listing.items,
        plans,
        kind=section.mask,
        folder=resolve_place(section.mask_path, folder) if section.mask_path else None,
        sources=[source.path for source in sources],
        store=store,
    )
    # Images that may be left out need no caption and no rights.
    leaves_out = "unreadable-image" in section.allow
    used = [item for item in listing.items if item.file_name in facts or not leaves_out]
    findings = [
        *_of_used(listing.findings, {item.file_name for item in used}),
        *unusable_findings(inspected),
        *too_small_findings(plans, partial(_fitting, section, plans)),
        *caption_findings(
            used,
            listing.cards,
            tokens=expected.tokens,
            new_tokens=expected.new_tokens,
            default_caption=section.default_caption,
            variants=[group.files for group in (*related, *motifs)],
        ),
        *trigger_conflict(listing.cards),
        *rights_findings(
            used,
            {n: f.opt_out for n, f in facts.items() if f.opt_out},
            require=section.require_rights,
            override=section.opt_out_override,
        ),
        *mask_problems,
        *split_problems,
        *duplicate_findings(related),
        *look_findings(motifs, unlike, palette_outliers(facts, related)),
        *size_findings(plans, section.buckets),
        *quality_findings(facts, resolution=expected.resolution),
        *decoding_findings(facts),
    ]
    declared = tuple(dict.fromkeys(c for card in listing.cards.values() for c in card.palette))
    judged, lowered = _lower(findings, section.allow)
    return Checked(
        items=listing.items,
        cards=listing.cards,
        facts=facts,
        findings=judged,
        groups=(*related, *motifs),
        sides=sides,
        plans=plans,
        palette=palette_facts(facts, declared),
        resolutions=tuple(side for side, _ in tables),
        sources=sources,
        lowered=lowered,
        masks=masks,
    )


def _refuse_crowd(count: int, sources: Sequence[Source]) -> None:
    """Every image is compared with every other, in memory: a LoRA's set is small, or a mistake."""
    if count > MAX_IMAGES:
        raise DataError(
            f"{count:,} images; a set has at most {MAX_IMAGES:,}",
            where=", ".join(str(source.path) for source in sources),
            fix="choose those that show the style best: some tens or hundreds are enough for it",
        )


def bucket_tables(section: DataSection, resolution: int) -> Tables:
    """The buckets of each resolution, the main one first; only a square without buckets.

    Raises:
        DataError: a resolution is given twice, or its buckets are impossible.
    """
    resolutions = (resolution, *section.extra_resolutions)
    if len(set(resolutions)) < len(resolutions):
        raise DataError(
            "a resolution is given twice, so its images would count twice",
            where="data.extra_resolutions",
            fix="name each once, without the main one",
        )
    if not section.buckets:
        return tuple((r, ((r, r),)) for r in resolutions)
    return tuple(
        (r, bucket_table(r, section.bucket_step or default_step(r), section.max_aspect))
        for r in resolutions
    )


def _fitting(section: DataSection, plans: Mapping[str, Sequence[CropPlan]]) -> int | None:
    """The resolution to advise; None where images are cropped to several sizes."""
    if section.extra_resolutions:
        return None
    lowest = max(MIN_RESOLUTION, section.bucket_step or 0)
    return fitting_resolution(plans, partial(bucket_tables, section), lowest)


def _of_used(findings: Sequence[Finding], used: Collection[str]) -> list[Finding]:
    """Findings of the sources; an image that is left out needs no caption."""
    kept = []
    for each in findings:
        files = tuple(name for name in each.files if name in used)
        if each.code in ("missing-caption", "empty-caption") and files != each.files:
            if not files:
                continue
            each = replace(each, files=files)
        kept.append(each)
    return kept


def _by_features(
    facts: Mapping[str, ImageFacts],
    related: Sequence[ImageGroup],
    encoder: str,
    folder: Path,
    store: FactsStore,
    show_progress: bool,
) -> tuple[list[ImageGroup], list[tuple[str, float]]]:
    """Groups of kind motif, and outliers; none of both without an encoder."""
    if encoder == "none" or not facts:
        return [], []
    features = set_features(facts, encoder, store, folder, show_progress=show_progress)
    names = list(facts)
    return motif_groups(features, names, related), outliers(features, names, related)


def _lower(
    findings: Sequence[Finding], allow: Collection[str]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """(All findings, worst first; the errors that the recipe lowers to warnings, as they were)."""
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

    def of_severity(severity: Severity) -> tuple[CheckFinding, ...]:
        return tuple(
            CheckFinding(code=f.code, files=f.files, message=f.message, fix=f.fix)
            for f in checked.findings
            if f.severity == severity
        )

    sizes = Counter(plans[0].bucket for plans in checked.plans.values())
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
        resolution=checked.resolutions[0],
        buckets=tuple(
            CheckBucket(width=width, height=height, images=n)
            for (height, width), n in sorted(sizes.items())
        ),
    )


def refuse(checked: Checked) -> None:
    """Raise DataError with every error of the set, in the words of ``data check``."""
    if checked.errors:
        sources = checked.sources
        where = str(sources[0].path) if len(sources) == 1 else "[[data.sources]]"
        raise data_error(where, checked.errors)

"""The captions of one folder: fixed by rules, or written by a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from styletune.data.captions.fix import CaptionFix, apply_fixes, caption_fixes, fixes_diff
from styletune.data.captions.lint import caption_findings
from styletune.data.captions.model import (
    Captioned,
    CaptionSettings,
    caption_images,
    check_captionable,
    load_caption_model,
)
from styletune.data.findings import data_error
from styletune.data.sources.listing import Listing, list_sources, resolve_sources
from styletune.errors import DataError
from styletune.recipe.data_sections import DataSection

# With these nobody can say which captions people wrote, and where.
_CAPTION_ERRORS = ("ambiguous-caption", "bad-archive", "bad-metadata", "unread-caption-file")


@dataclass(frozen=True, slots=True)
class FolderFixes:
    """Proposed changes and their diff; the files ``written``, the images ``left`` to a person."""

    fixes: list[CaptionFix]
    diff: str
    written: list[str]
    left: list[str]


def fix_captions(folder: Path, trigger: str | None, *, write: bool) -> FolderFixes:
    """What rules can fix in a folder's captions; ``write`` also writes it.

    Raises:
        NotFound, DataError: as ``list_sources``; or captions there cannot be read.
        Conflict: a caption changed in the meantime; nothing has been written.
    """
    listing = _readable_captions(folder)
    findings = caption_findings(listing.items, listing.cards, trigger=trigger)
    fixes = caption_fixes(listing.items, findings, trigger, listing.cards)
    diff = fixes_diff(folder, fixes)
    if not (write and fixes):
        return FolderFixes(fixes, diff, [], [])
    applied = apply_fixes(folder, fixes)
    return FolderFixes(fixes, diff, [str(file) for file in applied.written], list(applied.left))


def caption_folder(
    folder: Path, model: str, revision: str | None, settings: CaptionSettings
) -> Captioned:
    """Caption the images of a folder that have no caption, into its ``metadata.jsonl``.

    Arguments as ``load_caption_model`` and ``caption_images``; without a trigger the card's.

    Raises:
        NotFound, BaseModelError: the model is not here, or cannot be used.
        BadInput, DataError, Conflict: as ``caption_images``; or captions there cannot be read.
    """
    listing = _readable_captions(folder)
    card = next(iter(listing.cards.values()), None)
    trigger = settings.trigger or (card.trigger if card else None)
    settings, out = replace(settings, trigger=trigger), folder / "metadata.jsonl"
    check_captionable(listing.items, out, settings)
    captioner = load_caption_model(model, revision=revision)
    return caption_images(listing.items, captioner, settings, out=out)


def _readable_captions(folder: Path) -> Listing:
    """The images of a folder. Raises DataError if some of its captions cannot be read."""
    if folder.is_file():
        raise DataError(
            "is a file; captions are written next to images in a folder",
            where=str(folder),
            fix=f"give {folder.parent}",
        )
    sources = resolve_sources(DataSection(path=str(folder)), Path.cwd())
    listing = list_sources(sources, default_caption=None)
    errors = [finding for finding in listing.findings if finding.code in _CAPTION_ERRORS]
    if errors:
        raise data_error(str(folder), errors)
    return listing

"""A checked set and a loaded one: what the check knows, and what can be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from styletune.data.captions.tokens import TokenCounter
from styletune.data.findings import Finding
from styletune.data.inspection.duplicates import ImageGroup
from styletune.data.inspection.facts import ImageFacts, PaletteFacts
from styletune.data.pixels.buckets import CropPlan
from styletune.data.rows import Masks, Row
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item
from styletune.data.sources.source import Source
from styletune.data.split import Split


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run expects of a set beside its [data] section.

    ``resolution`` is the side of the training square in pixels, in place of the section's own;
    ``tokens`` counts a caption's, None leaves lengths unchecked; ``new_tokens`` are words such as
    ``<horizon>`` to be learned, which are not placeholders; ``min_holdout`` is how many held-out
    images are needed, as for scoring.
    """

    resolution: int
    tokens: TokenCounter | None = None
    new_tokens: Collection[str] = ()
    min_holdout: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """Everything known about a set.

    Mappings are by file name; those that need pixels lack images that cannot be decoded.
    ``groups`` have kinds exact, near and motif; ``sides`` are the split; ``resolutions`` in
    pixels, the main one first, and ``plans`` one crop for each; ``lowered`` the errors that the
    recipe lowered to warnings, as they were.
    """

    items: tuple[Item, ...]
    cards: Mapping[str, Card]
    facts: Mapping[str, ImageFacts]
    findings: tuple[Finding, ...]
    groups: tuple[ImageGroup, ...]
    sides: Mapping[str, Split]
    plans: Mapping[str, tuple[CropPlan, ...]]
    palette: PaletteFacts
    resolutions: tuple[int, ...]
    sources: tuple[Source, ...] = ()
    lowered: tuple[Finding, ...] = ()
    masks: Masks = field(default_factory=Masks)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings for which training refuses the set."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings to look at; training goes on with them."""
        return tuple(f for f in self.findings if f.severity == "warning")


@dataclass(frozen=True, slots=True)
class LoadedData:
    """A data set that can be trained on.

    ``rows`` are the images by source, within a source by file name; training goes through them in
    this order. ``flip``: every training image is also used mirrored. ``fingerprint``: SHA-256
    (hex) of pixels, captions and split. ``note`` says why facts are not kept between runs, "" if
    they are.
    """

    rows: tuple[Row, ...]
    checked: Checked
    flip: bool
    fingerprint: str
    note: str

    @property
    def resolutions(self) -> tuple[int, ...]:
        """In pixels, the main one first."""
        return self.checked.resolutions

    @property
    def plans(self) -> Mapping[str, tuple[CropPlan, ...]]:
        """By file name, one crop for each resolution."""
        return self.checked.plans

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The warnings of the check."""
        return self.checked.warnings

    @property
    def groups(self) -> list[ImageGroup]:
        """Copies and variants of one picture."""
        return [group for group in self.checked.groups if group.kind != "motif"]

    @property
    def trigger(self) -> str:
        """The word for the look; "" if there is none, or the sources have different ones."""
        cards = self.checked.cards.values()
        triggers = {card.trigger.strip() for card in cards if card.trigger}
        return triggers.pop() if len(triggers) == 1 else ""


def order_hash(data: LoadedData) -> str:
    """SHA-256 (hex) of the order of the rows.

    The fingerprint does not depend on names; when an image is used, and with what noise, does.
    """
    order = [[row.pixel_hash, row.text, row.mask_hash] for row in data.rows]
    return hashlib.sha256(json.dumps(order).encode()).hexdigest()


def train_rows(data: LoadedData) -> list[Row]:
    """The images to train on, in order."""
    return [row for row in data.rows if row.split == "train"]


def holdout_rows(data: LoadedData) -> list[Row]:
    """The images kept for scoring, in order; none if ``holdout`` was 0."""
    return [row for row in data.rows if row.split == "holdout"]

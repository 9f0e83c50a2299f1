"""Where a version comes from, as it is published."""

from __future__ import annotations

from styletune.runs.documents import RightsSummary
from styletune.runs.form import DocumentPart
from styletune.runs.summary import ChosenCheckpoint


class ProvenanceData(DocumentPart):
    """Fingerprint of the training data, and the rights in it."""

    fingerprint: str
    rights: RightsSummary


class ProvenanceBase(DocumentPart):
    """The base model by its public name, SHA-256 of its weights."""

    model: str
    hash: str


class Provenance(DocumentPart):
    """``provenance.json``: what a version was made from; nothing else of the run is published."""

    recipe_hash: str
    recipe: str
    data: ProvenanceData
    base: ProvenanceBase
    versions: dict[str, str]
    seed: int
    chosen: ChosenCheckpoint

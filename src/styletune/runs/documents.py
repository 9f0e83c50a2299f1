"""``run.json``: what a run is of, and what it was made with."""

from __future__ import annotations

from styletune.runs.folder import Run
from styletune.runs.form import Document, DocumentPart, HexColor, read_document, write_document

FIX_FACTS = "restore it from a backup, or train anew with another --run-dir"


class BaseFacts(DocumentPart):
    """The base model as the recipe names it, SHA-256 of its weights, side in pixels."""

    model: str
    hash: str
    resolution: int


class DeclaredRights(DocumentPart):
    """One combination of declared rights ("" is not declared) and its number of images."""

    images: int
    license: str
    holder: str
    source: str
    consent: str


class OptOutOverride(DocumentPart):
    """Why images were used whose files prohibit training; images by prohibiting term."""

    override: str
    terms: dict[str, int]


class RightsSummary(DocumentPart):
    """Rights of the images, without file names: these may say more than the holders want.

    ``declared`` has most images first; ``lowered`` counts the files of each error that the
    recipe made a warning.
    """

    images: int
    declared: tuple[DeclaredRights, ...]
    opt_out: OptOutOverride | None
    lowered: dict[str, int]

    def holder_names(self, most: int = 3) -> str:
        """Whose images they are, most images first, in words; "" if nobody is declared."""
        names = list(dict.fromkeys(r.holder for r in self.declared if r.holder.strip()))
        rest = len(names) - most
        return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


class DataWarning(DocumentPart):
    """A warning of the data check."""

    code: str
    files: tuple[str, ...]
    message: str
    fix: str
    severity: str


class DataFacts(DocumentPart):
    """The images of a run by file name, in training order; SHA-256 of set and order."""

    fingerprint: str
    order: str
    train: tuple[str, ...]
    holdout: tuple[str, ...]
    trigger: str
    palette: tuple[HexColor, ...]
    rights: RightsSummary
    warnings: tuple[DataWarning, ...]


class RunFacts(Document):
    """``run.json``: what a run is of, and what it was made with."""

    recipe: str
    recipe_hash: str
    training_hash: str
    seed: int
    base: BaseFacts
    data: DataFacts
    versions: dict[str, str]
    platform: str
    device: str


def read_facts(run: Run) -> RunFacts:
    """Read ``run.json``. Raises NotFound, IntegrityError, or BadInput for a newer form."""
    return read_document(RunFacts, run.facts_file, FIX_FACTS)


def write_facts(run: Run, facts: RunFacts) -> None:
    """Write ``run.json``. Raises OutputError."""
    write_document(run.facts_file, facts)

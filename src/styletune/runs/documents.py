"""What a run is of and made with (``run.json``), and its checkpoints' receipts."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, JsonValue

from styletune.colors import HexColor
from styletune.runs.folder import Run
from styletune.runs.form import Document, DocumentPart, read_document, write_document

FIX_FACTS = "restore it from a backup, or train anew with another --run-dir"
FIX_RECEIPT = "restore it from a backup, or delete its folder: the run resumes from an earlier one"


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
    """What a run is of and made with (``run.json``), and its checkpoints' receipts."""

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


class Receipt(Document):
    """What a checkpoint holds and belongs to; in ``state.json``, written last.

    The hashes are those of ``training.identity.Identity``. ``optimizer`` and ``scaler`` are what
    of their states is no tensor; ``scaler`` is None unless training scales its loss.
    """

    model_config = ConfigDict(populate_by_name=True)

    step: int
    # Version 0.1.0 called it so.
    training_hash: str = Field(alias="recipe_hash")
    data_fingerprint: str
    data_order: str
    base_hash: str
    processes: int
    optimizer: dict[str, JsonValue]
    scaler: dict[str, JsonValue] | None
    adapter_sha256: str
    state_sha256: str

    def as_json(self) -> dict[str, Any]:
        """The document as the file has it."""
        return self.model_dump(mode="json", by_alias=True)


def read_receipt(run: Run, step: int) -> Receipt:
    """Read a checkpoint's ``state.json``. Raises as ``read_facts``."""
    return read_document(Receipt, run.state_facts_file(step), FIX_RECEIPT)


def write_receipt(run: Run, receipt: Receipt) -> None:
    """Write a checkpoint's ``state.json``. Raises OutputError."""
    write_document(run.state_facts_file(receipt.step), receipt)

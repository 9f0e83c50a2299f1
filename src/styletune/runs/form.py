"""Documents: frozen, typed JSON with a schema version, written and read in one way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from styletune.errors import BadInput, IntegrityError, NotFound
from styletune.files import write_json

SCHEMA_VERSION = 1
# Reports write colors into style attributes, so nothing else may pass for one.


class DocumentPart(BaseModel):
    """A part of a document: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """The JSON object, tuples as lists."""
        return self.model_dump(mode="json")


class Document(DocumentPart):
    """A whole document. One without a version was written by 0.1.0, in the form of version 1."""

    schema_version: Literal[1] = 1


_M = TypeVar("_M", bound=BaseModel)


def parse_document(model: type[_M], content: bytes, where: str, fix: str = "") -> _M:
    """Read a stored document strictly: nothing is converted, no key is unknown.

    Raises:
        IntegrityError: not JSON, or not of this form; ``fix`` says what to do about it.
        BadInput: written by a newer styletune.
    """
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"not readable as JSON: {error}", where=where, fix=fix) from None
    written = tree.get("schema_version") if isinstance(tree, dict) else None
    if isinstance(written, int) and written > SCHEMA_VERSION:
        raise BadInput(
            f"written in form {written}, this styletune reads up to {SCHEMA_VERSION}",
            where=where,
            fix="install a newer styletune",
        )
    try:
        return model.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise IntegrityError(f"changed: {explain(error)}", where=where, fix=fix) from None


def explain(error: ValidationError) -> str:
    """Every problem of a validation on one line, each with its place."""
    items = error.errors(include_url=False, include_context=False)
    places = (".".join(str(p) for p in item["loc"]) or "document" for item in items)
    return "; ".join(f"{at}: {item['msg']}" for at, item in zip(places, items, strict=True))


def read_document(model: type[_M], file: Path, fix: str) -> _M:
    """Read a document of a run folder.

    Raises:
        NotFound: there is no such file.
        IntegrityError, BadInput: as ``parse_document``.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise NotFound("no such file", where=str(file), fix=fix) from None
    return parse_document(model, content, str(file), fix)


def write_document(file: Path, document: Document) -> None:
    """Write a document as sorted, readable JSON, whole or not at all. Raises OutputError."""
    write_json(file, document.as_json())

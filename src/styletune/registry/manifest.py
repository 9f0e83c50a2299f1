"""The documents of a registry: version numbers, manifests, events, and their exact bytes."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from styletune.errors import BadInput, IntegrityError
from styletune.recipe.section import (
    MAX_NAME_CHARACTERS,
    NAME_PATTERN,
    VERSION_PATTERN,
    Section,
)
from styletune.registry.store import DIGEST_PATTERN
from styletune.runs.form import parse_document

MANIFEST_NAME = "manifest.json"
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
# No "..", no absolute path, no backslash, no hidden file: a manifest cannot leave its folder.
PATH_PATTERN = rf"^{_SEGMENT}(/{_SEGMENT})*$"
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|\+00:00)$"

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """A semantic version, ordered as semver.org §11 says."""

    release: tuple[int, int, int]
    pre: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = ".".join(str(n) for n in self.release)
        return f"{text}-{'.'.join(self.pre)}" if self.pre else text

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]]:
        # A prerelease comes before its release; numbers come before words, and by value.
        parts = tuple((not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in self.pre)
        return self.release, not self.pre, parts


def parse_version(text: str) -> Version:
    """Read ``major.minor.patch[-pre]``, strictly. Raises BadInput."""
    # fullmatch, because "$" alone would let a trailing newline pass.
    match = re.fullmatch(VERSION_PATTERN, text)
    if match is None:
        raise BadInput(
            f'"{text}" is not a version',
            fix="major.minor.patch without leading zeros, such as 1.2.0 or 1.2.0-rc.1",
        )
    major, minor, patch = (int(part) for part in match.groups()[:3])
    pre = match.group(4)
    return Version((major, minor, patch), tuple(pre.split(".")) if pre else ())


class FileEntry(Section):
    """One file of a version; ``path`` is relative, with slashes."""

    path: str = Field(pattern=PATH_PATTERN, max_length=240)
    sha256: Digest
    size: int = Field(ge=0, description="Bytes.")
    role: str


class BaseEntry(Section):
    """The model that the adapter was trained on; the hash is of its weights."""

    model: str
    hash: str
    revision: str | None = None
    resolution: int | None = Field(default=None, description="Side in pixels trained at.")
    vae: str | None = Field(default=None, description="The VAE used instead of the model's own.")


class AdapterEntry(Section):
    """How to apply the adapter; ``strength`` multiplies the scale that it was trained with."""

    strength: float = Field(ge=0, allow_inf_nan=False)
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    trigger: str = Field("", description="Words of a prompt that call the style; may be empty.")
    tokens: tuple[str, ...] = Field((), strict=False, description="New words it brings along.")
    prediction_type: Literal["epsilon", "v_prediction"] = Field(
        "epsilon", description="What the adapted UNet predicts."
    )
    zero_terminal_snr: bool = Field(False, description="Whether its noise ends in pure noise.")


class GateEntry(Section):
    """One release gate as it was when the version was published."""

    name: str
    verdict: Literal["pass", "fail", "inconclusive"]
    value: float | None = Field(None, allow_inf_nan=False)
    low: float | None = Field(None, allow_inf_nan=False)
    high: float | None = Field(None, allow_inf_nan=False)
    threshold: float | None = Field(None, allow_inf_nan=False)


class Manifest(Section):
    """Everything that makes a version what it is; its digest is the version's identity."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN, max_length=MAX_NAME_CHARACTERS)
    version: str = Field(pattern=VERSION_PATTERN)
    created: str = Field(pattern=TIME_PATTERN, description="ISO 8601, UTC.")
    description: str
    license: str = Field(min_length=1, description="SPDX id or LicenseRef-….")
    base: BaseEntry
    adapter: AdapterEntry
    recipe_hash: str
    data_fingerprint: str
    gates: tuple[GateEntry, ...]
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _files_fit_in_one_folder(self) -> Self:
        paths = [entry.path for entry in self.files]
        # macOS and Windows fold case; two such files would become one there.
        folded = {path.lower() for path in paths}
        if not paths or len(folded) != len(paths):
            raise ValueError("files must be some, and differ in more than upper and lower case")
        folders = {f[: i.start()] for f in folded for i in re.finditer("/", f)}
        if MANIFEST_NAME in folded | folders or folders & folded:
            raise ValueError(f"a file is also a folder, or is called {MANIFEST_NAME}")
        return self


class Event(Section):
    """Who did what to which bytes, when and why."""

    schema_version: Literal[1] = 1
    kind: Literal["published"]
    version: str = Field(pattern=VERSION_PATTERN)
    digest: Digest
    who: str = Field(min_length=1)
    when: str = Field(pattern=TIME_PATTERN, description="ISO 8601, UTC.")
    why: str


def canonical(model: Section) -> bytes:
    """Sorted, compact JSON in UTF-8: equal content gives equal bytes on every machine."""
    tree = model.model_dump(mode="json")
    text = json.dumps(
        tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def role_of(path: str) -> str:
    """What a file of a version is for, from its place."""
    folder, _, rest = path.partition("/")
    if path.endswith(".safetensors"):
        return f"weights-{folder}" if rest else "weights"
    roles = {
        "README.md": "card",
        "LICENSE": "license",
        "NOTICE.md": "notice",
        "provenance.json": "provenance",
        "SHA256SUMS": "checksums",
        "webui": "sidecar",
        "previews": "preview",
        "eval": "evaluation",
    }
    return roles.get(folder if rest else path, "other")


S = TypeVar("S", bound=Section)


def parse_stored(model: type[S], content: bytes, where: str) -> S:
    """Read a stored manifest or event; only its canonical bytes are accepted.

    Raises:
        IntegrityError: not JSON, not of this form, or not the bytes that we would write.
        BadInput: written by a newer styletune.
    """
    stored = parse_document(model, content, where)
    if canonical(stored) != content:
        raise IntegrityError(
            f"changed: its bytes are not those of a published {model.__name__.lower()}",
            where=where,
        )
    return stored

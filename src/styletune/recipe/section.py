"""What all sections of settings share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """Frozen, strict settings: no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __hash__(self) -> int:
        """By content: tables of patterns, of which the first match counts, have no hash."""
        return hash(self.model_dump_json())


def as_tuple(value: object) -> object:
    """TOML has lists; settings are frozen."""
    return tuple(value) if isinstance(value, list) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


def _possible_path(text: str) -> str:
    """A path that some file could have: the system's own errors name no key."""
    if "\n" in text or "\t" in text or "\r" in text:
        raise ValueError(
            "holds a line break or tab: in double quotes a backslash starts an escape; use / or "
            "single quotes"
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError("is an address: download it, and give its place on this machine")
    if any(len(part.encode()) > 255 for part in text.split("/")) or len(text.encode()) > 4000:
        raise ValueError("a part of it is longer than any file name")
    return text


PathText = Annotated[str, AfterValidator(_possible_path)]

# What the registry takes, so that a recipe cannot name what could not be published.
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*$"
MAX_NAME_CHARACTERS = 100
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_IDENTIFIER = r"(?:0|[1-9][0-9]{0,8}|[0-9]{0,8}[A-Za-z-][0-9A-Za-z-]{0,31})"
# https://semver.org, without build metadata: two builds of one version must not exist here.
VERSION_PATTERN = (
    rf"^({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER}){{0,7}}))?$"
)

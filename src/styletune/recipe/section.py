"""What all sections of settings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


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


NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*$"

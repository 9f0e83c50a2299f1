"""The data set card: ``dataset.toml`` next to the images, with their rights and their look."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from styletune.colors import HexColor
from styletune.data.sources.files import CARD_NAME
from styletune.recipe.section import Section
from styletune.recipe.toml import load_toml, parse_toml, validate


class Card(Section):
    """What a person declares about a folder of images; every key is optional."""

    name: str | None = Field(None, min_length=1, description="Name of the data set.")
    holder: str | None = Field(None, min_length=1, description="Who holds the rights.")
    license: str | None = Field(None, min_length=1, description="SPDX id or LicenseRef-….")
    source: str | None = Field(None, min_length=1, description="Where the images come from.")
    consent: str | None = Field(
        None, min_length=1, description="Who agreed to training on them, when and how."
    )
    trigger: str | None = Field(
        None, pattern=r"\S", description="Word for the look, in every caption."
    )
    palette: tuple[HexColor, ...] = Field(
        (), description='Brand colors, "#rrggbb", most important first.'
    )
    background: HexColor | None = Field(
        None, description='Color "#rrggbb" under transparent pixels.'
    )
    description: str | None = Field(None, description="A sentence or two for people.")

    @field_validator("palette", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


def load_card(folder: Path) -> Card | None:
    """Read ``dataset.toml`` of a folder of images; None if there is no such file.

    Raises:
        RecipeError: it is not TOML, or has an unknown key or an impossible value.
    """
    file = folder / CARD_NAME
    return load_toml(file, Card) if file.exists() else None


def parse_card(content: bytes, where: Path) -> Card:
    """Read the bytes of a ``dataset.toml`` inside an archive.

    Raises:
        RecipeError: as ``load_card``; it names ``where``.
    """
    return validate(Card, parse_toml(content, str(where)), where)

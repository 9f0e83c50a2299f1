"""A base model's name, and what published files say about it. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from styletune import mini
from styletune.hub import is_hub_id
from styletune.models.family import BaseWords, Family


@dataclass(frozen=True, slots=True)
class BundledBase:
    """A base model that is part of the package: its folder, and what is said about it."""

    folder: Path
    words: BaseWords


# By the name that a recipe calls it.
BUNDLED: Mapping[str, BundledBase] = {
    mini.NAME: BundledBase(
        folder=mini.BASE_DIR,
        words=BaseWords(
            architecture=mini.ARCHITECTURE,
            kohya_version=mini.KOHYA_VERSION,
            webui_version=mini.WEBUI_VERSION,
            kind=mini.KIND,
            notice=mini.NOTICE,
            load_note=mini.LOAD_NOTE,
        ),
    )
}


def base_words(model: str, family: Family) -> BaseWords:
    """What published files say about a base model: a bundled one's own words, else its family's.

    Args:
        model: a recipe's ``base.model``, or its ``public_base``.
        family: of the model.
    """
    bundled = BUNDLED.get(model)
    return family.words if bundled is None else bundled.words


# Where a model was found; only the first two have a name that means the same to others.
Origin = Literal["bundled", "hub", "local"]


def public_name(model: str, origin: Origin) -> str:
    """A model as others may see it: what a recipe calls it, reduced for local ones."""
    return model if origin != "local" else local_name(model)


def local_name(place: str) -> str:
    """The last name of a local file or folder, marked where a bundled model has the same."""
    name = PurePath(place.replace("\\", "/")).name
    return f"{name} (local)" if name in BUNDLED else name


def public_base(model: str) -> str:
    """A recorded base model as others may see it: a path is reduced to its last name.

    Only for names from records: a Hub id and a relative path of two parts look the same, so what
    was found decides elsewhere (``public_name``).
    """
    return model if model in BUNDLED or is_hub_id(model) else PurePath(model).name

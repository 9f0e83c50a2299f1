"""A base model's name, and what published files say about it. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

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


def public_base(model: str) -> str:
    """The base model as others may see it: a local folder is reduced to its last name."""
    return model if model in BUNDLED or is_hub_id(model) else PurePath(model).name

"""A base model's public name. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import PurePath

from styletune.hub import is_hub_id


def public_base(model: str) -> str:
    """The base model as others may see it: a local folder is reduced to its last name."""
    return model if model == "mini" or is_hub_id(model) else PurePath(model).name

"""The families there are. A new one is a file beside ``sdxl.py`` and an entry here."""

from __future__ import annotations

from styletune.models.family import Family
from styletune.models.sdxl import SDXL

FAMILIES: tuple[Family, ...] = (SDXL,)
# What a plan takes a model for that is not on this machine.
DEFAULT_FAMILY = SDXL


def find_family(pipeline: str) -> Family | None:
    """The family whose models are loaded with this class of diffusers."""
    return next((family for family in FAMILIES if family.pipeline == pipeline), None)


def family_of(pipe: object) -> Family:
    """The family of a loaded pipeline."""
    family = find_family(type(pipe).__name__)
    assert family is not None, type(pipe)
    return family

"""A source of images: the settings that a recipe gives it, and its place on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from styletune.recipe.data_sections import SourceSection


@dataclass(frozen=True, slots=True)
class Source:
    """One source with its settings and its place on disk.

    ``name`` is what its images' names start with; ``path`` is absolute, with links unresolved
    because their names say what they are; for a Hub data set it is the snapshot's folder.
    """

    section: SourceSection
    name: str
    path: Path
    is_hub: bool = False

"""Loading and checking a folder as the job does, with nothing stored between runs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from styletune.data.check import check_data
from styletune.data.checked import Checked, Expected, LoadedData
from styletune.data.findings import Finding
from styletune.data.inspection.store import open_facts
from styletune.data.load import load_data
from styletune.recipe.data_sections import DataSection

OPTIONS = tuple(field.name for field in fields(Expected))


def warnings_of(data: LoadedData, *codes: str) -> list[Finding]:
    """The warnings of these codes; of all but missing rights if none is given."""
    return [
        warning
        for warning in data.warnings
        if (warning.code in codes if codes else warning.code != "missing-rights")
    ]


def check_folder(path: Path, **changes: Any) -> Checked:
    """Keys are those of ``DataSection`` and of ``Expected``."""
    section, expected = _section(path, changes)
    return check_data(section, Path(), expected, store=open_facts(None))


def load_folder(path: Path, **changes: Any) -> LoadedData:
    """Keys are those of ``DataSection`` and of ``Expected``."""
    shown = bool(changes.pop("show_progress", False))
    section, expected = _section(path, changes)
    return load_data(section, Path(), expected, store=open_facts(None), show_progress=shown)


def _section(path: Path, changes: dict[str, Any]) -> tuple[DataSection, Expected]:
    options = {key: changes.pop(key) for key in OPTIONS if key in changes}
    keys = {"path": str(path), "buckets": False, **changes}
    return DataSection.model_validate(keys), Expected(**{"resolution": 128, **options})

"""Loading and checking a folder as the job does, with nothing stored between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from styletune.data.check import Checked, check_data
from styletune.data.findings import Finding
from styletune.data.inspection.store import open_facts
from styletune.data.load import LoadedData, load_data
from styletune.recipe.data_sections import DataSection

OPTIONS = ("resolution", "count_tokens", "new_tokens", "min_holdout", "show_progress")


def warnings_of(data: LoadedData, *codes: str) -> list[Finding]:
    """The warnings of these codes; of all but missing rights if none is given."""
    return [
        warning
        for warning in data.warnings
        if (warning.code in codes if codes else warning.code != "missing-rights")
    ]


def check_folder(path: Path, **changes: Any) -> Checked:
    """Keys are those of ``DataSection`` and of ``check_data``."""
    section, options = _section(path, changes)
    return check_data(section, Path(), store=open_facts(None), **options)


def load_folder(path: Path, **changes: Any) -> LoadedData:
    """Keys are those of ``DataSection`` and of ``load_data``."""
    section, options = _section(path, changes)
    return load_data(section, Path(), store=open_facts(None), **options)


def _section(path: Path, changes: dict[str, Any]) -> tuple[DataSection, dict[str, Any]]:
    options = {key: changes.pop(key) for key in OPTIONS if key in changes}
    keys = {"path": str(path), "buckets": False, **changes}
    return DataSection.model_validate(keys), {"resolution": 128, **options}

"""Loading and checking a folder as the job does, with nothing kept between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from styletune.data.check import Checked, CheckSettings, check_data
from styletune.data.findings import Finding
from styletune.data.inspection.store import open_store
from styletune.data.load import LoadedData, load_data
from styletune.data.sources.open import resolve_sources

LOADING = ("flip", "tokens", "show_progress")


def told(data: LoadedData, *codes: str) -> list[Finding]:
    """The warnings of these codes; of all but missing rights if none is given."""
    return [
        warning
        for warning in data.warnings
        if (warning.code in codes if codes else warning.code != "missing-rights")
    ]


def check_folder(path: Path, **changes: Any) -> Checked:
    settings = CheckSettings(**{"resolution": 128, "buckets": False, **changes})
    return check_data(resolve_sources(str(path), (), Path()), settings, store=open_store(None))


def load_folder(path: Path, **changes: Any) -> LoadedData:
    """Settings are those of ``CheckSettings`` and of ``load_data``."""
    loading = {key: changes.pop(key) for key in LOADING if key in changes}
    settings = CheckSettings(**{"resolution": 128, "buckets": False, **changes})
    sources = resolve_sources(str(path), (), Path())
    return load_data(sources, settings, store=open_store(None), **loading)

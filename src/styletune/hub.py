"""Models of the Hugging Face Hub that are on this machine. Nothing is ever downloaded here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from styletune.errors import NotFound

_WANTED = ("*.json", "*.txt", "*/*.safetensors")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a Hub model; ``unfinished`` counts downloads that were broken off."""

    folder: Path
    commit: str
    unfinished: int


def is_hub_id(model: str) -> bool:
    """Whether a name has the form ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model, re.ASCII) is not None


def download_command(model: str, revision: str | None, patterns: tuple[str, ...] = _WANTED) -> str:
    """The command that fetches what is needed, for people to run themselves."""
    pin = f" --revision {revision}" if revision else ""
    includes = "".join(f' --include "{p}"' for p in patterns)
    return f"hf download {model}{pin}{includes}"


def find_snapshot(model: str, revision: str | None, where: str) -> Snapshot:
    """Find a commit, branch or tag in the local cache; None is the branch main.

    Raises:
        NotFound: the model, or this revision of it, is not here; ``fix`` is the command that
            fetches it.
    """
    folder = _repository(model)
    command = download_command(model, revision)
    if not folder.is_dir():
        raise NotFound(
            f"neither a folder nor a Hub model on this machine: {model}",
            where=where,
            fix=f"{command}  (a gated model: accept its licence on https://huggingface.co/{model} "
            "and run hf auth login first)",
        )
    unfinished = len(list((folder / "blobs").glob("*.incomplete")))
    here = sorted(p.name for p in (folder / "snapshots").glob("*") if p.is_dir())
    commit = _commit(folder, revision, here)
    if commit in here:
        return Snapshot(folder / "snapshots" / commit, commit, unfinished)
    if unfinished:
        raise NotFound(
            f"the download of {model} was broken off ({unfinished} unfinished files)",
            where=where,
            fix=f"{command}  (continues it)",
        )
    if here and revision:
        raise NotFound(
            f"revision {revision} of {model} is not on this machine; here: {', '.join(here)}",
            where=where,
            fix=f"{command}, or pin one that is here",
        )
    if here:
        raise NotFound(
            f"{model} is on this machine only as {', '.join(here)}, not as its branch main",
            where=where,
            fix=f'revision = "{here[-1]}", or {command}',
        )
    raise NotFound(
        f"a download of {model} was begun but no file arrived",
        where=where,
        fix=f"accept the model's licence, if it has one, on https://huggingface.co/{model}, run "
        f"hf auth login, then {command}",
    )


def find_files(model: str, names: tuple[str, ...]) -> Path | None:
    """The folder of any commit of a model on this machine that has all the named files."""
    for folder in sorted((_repository(model) / "snapshots").glob("*")):
        if all((folder / name).is_file() for name in names):
            return folder
    return None


def _repository(model: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")


def _commit(folder: Path, revision: str | None, here: list[str]) -> str | None:
    if revision in here:
        return revision
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    short = revision is not None and re.fullmatch("[0-9a-f]{7,39}", revision) is not None
    near = [c for c in here if short and c.startswith(revision or "")]
    return near[0] if len(near) == 1 else None

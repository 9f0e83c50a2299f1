"""Models and data sets of the Hugging Face Hub on this machine. Nothing is ever downloaded here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from styletune.errors import NotFound

RepoType = Literal["model", "dataset"]
_KIND_WORDS = {"model": "model", "dataset": "data set"}
_MODEL_FILES = ("*.json", "*.txt", "*/*.safetensors")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a Hub repository; ``unfinished`` counts interrupted downloads."""

    folder: Path
    commit: str
    unfinished: int


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is not None


def download_command(
    name: str,
    revision: str | None,
    patterns: tuple[str, ...] = _MODEL_FILES,
    kind: RepoType = "model",
) -> str:
    """The command that downloads what is needed, for people to run themselves."""
    pin = f" --revision {revision}" if revision else ""
    if kind == "dataset":
        return f"hf download {name} --repo-type dataset{pin}"
    includes = "".join(f' --include "{p}"' for p in patterns)
    return f"hf download {name}{pin}{includes}"


def cached_commits(name: str, kind: RepoType) -> list[str]:
    """The commits of a repository on this machine, sorted; none if it is not here."""
    snapshots = _cache_folder(name, kind) / "snapshots"
    return sorted(p.name for p in snapshots.glob("*") if p.is_dir())


def find_snapshot(
    name: str, revision: str | None, where: str, kind: RepoType = "model"
) -> Snapshot:
    """Find a revision in the local cache.

    Args:
        name: "owner/name".
        revision: commit (its first seven digits are enough), branch or tag; None is main.
        where: the key that names it, for errors.
        kind: a data set must be downloaded completely; which of a model's files are needed, and
            so whether ``unfinished`` matters, only its loader knows.

    Raises:
        NotFound: the repository, or this revision of it, is not here; ``fix`` is the command
            that downloads it.
    """
    folder, words = _cache_folder(name, kind), _KIND_WORDS[kind]
    command = download_command(name, revision, kind=kind)
    if not folder.is_dir():
        page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
        raise NotFound(
            f"neither a local path nor a Hub {words} on this machine: {name}",
            where=where,
            fix=f"{command}  (if it is gated, first accept its license on {page} and run "
            "hf auth login)",
        )
    unfinished = len(list((folder / "blobs").glob("*.incomplete")))
    here = cached_commits(name, kind)
    commit = _find_commit(folder, revision or "main", here)
    if commit in here and not (unfinished and kind == "dataset"):
        return Snapshot(folder / "snapshots" / commit, commit, unfinished)
    if unfinished:
        raise NotFound(
            f"the download of {name} was interrupted ({unfinished} unfinished files)",
            where=where,
            fix=f"{command}  (resumes it)",
        )
    if not here:
        raise NotFound(
            f"a download of {name} was started, but nothing was downloaded",
            where=where,
            fix=f"accept its license, if it has one, on https://huggingface.co/{name}, run "
            f"hf auth login, then {command}",
        )
    raise NotFound(
        f"revision {revision or 'main'} of {name} is not on this machine; here: {', '.join(here)}",
        where=where,
        fix=f'{command}, or pin one that is here: revision = "{here[-1]}"',
    )


def find_cached_files(name: str, files: tuple[str, ...]) -> Path | None:
    """The folder of any commit of a model on this machine that has all these files."""
    for folder in sorted((_cache_folder(name, "model") / "snapshots").glob("*")):
        if all((folder / file).is_file() for file in files):
            return folder
    return None


def _cache_folder(name: str, kind: RepoType) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)


def _find_commit(folder: Path, revision: str, here: list[str]) -> str | None:
    if revision in here:
        return revision
    # Branches and tags are files; "../" or "/" in a revision would lead to others.
    reference = folder / "refs" / revision
    if not revision.startswith("/") and ".." not in revision.split("/") and reference.is_file():
        return reference.read_text().strip()
    is_short = re.fullmatch("[0-9a-f]{7,39}", revision) is not None
    matches = [commit for commit in here if is_short and commit.startswith(revision)]
    return matches[0] if len(matches) == 1 else None

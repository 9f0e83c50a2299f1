"""Data sets of the Hugging Face Hub that are on this machine. Nothing is ever downloaded here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from styletune.data.findings import Finding
from styletune.data.sources.files import SHARD_EXTENSIONS, shorten
from styletune.errors import DataError, NotFound

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")


def find_dataset(name: str, revision: str | None, near: str) -> Path:
    """The folder of a Hub data set's commit in the local cache.

    Args:
        name: "owner/name".
        revision: commit (its first seven digits are enough), branch or tag; None where only one
            commit is here.
        near: what to say about a folder of that name, which is not there either.

    Raises:
        NotFound: the data set, or this revision of it, is not here or not whole; ``fix`` is the
            command that fetches it.
        DataError: several commits are here and none is pinned.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    pin = f" --revision {revision}" if revision else ""
    command = f"hf download {name} --repo-type dataset{pin}"
    if not folder.is_dir():
        raise NotFound(
            f"neither a folder or file nor a Hub data set on this machine: {name}",
            where="[data]",
            fix=f"{command}  (or, for a folder: {near})",
        )
    if unfinished := len(list((folder / "blobs").glob("*.incomplete"))):
        raise NotFound(
            f"the download of {name} was broken off ({unfinished} unfinished files)",
            where="[data]",
            fix=f"{command}  (continues it)",
        )
    here = sorted(p.name for p in (folder / "snapshots").glob("*") if p.is_dir())
    shown = ", ".join(here) or "nothing"
    if revision is None and len(here) > 1:
        raise DataError(
            f"several commits of {name} are on this machine: {shown}",
            where="[data]",
            fix=f'pin one: [[data.sources]] with path = "{name}", revision = "{here[-1]}"',
        )
    commits = here if revision is None else _commits(folder, revision, here)
    if len(commits) != 1:
        raise NotFound(
            f"revision {revision or 'main'} of {name} is not on this machine; here: {shown}",
            where="[data]",
            fix=command + (", or [[data.sources]] with revision = one of these" if here else ""),
        )
    return folder / "snapshots" / commits[0]


def _commits(folder: Path, revision: str, here: Sequence[str]) -> list[str]:
    if revision in here:
        return [revision]
    # Branches and tags are files; "../" in a revision would lead to others.
    reference = folder / "refs" / revision
    if ".." not in revision.split("/") and reference.is_file():
        return [commit for commit in here if commit == reference.read_text().strip()]
    if re.fullmatch("[0-9a-f]{7,39}", revision):
        return [commit for commit in here if commit.startswith(revision)]
    return []


def split_folder(snapshot: Path, split: str) -> Path:
    """The folder named by a split, at the top or in ``data``; else ``data`` if shards lie in it,
    for pictures of the read-me may lie around it; else the snapshot.

    Raises:
        DataError: there are folders of other splits only.
    """
    for parent in (snapshot, snapshot / "data"):
        there = sorted(s for s in {*SPLITS, split} if (parent / s).is_dir())
        if split in there:
            return parent / split
        if there:
            raise _no_split(snapshot, split, there)
    shards = (p for p in (snapshot / "data").glob("*") if p.suffix in SHARD_EXTENSIONS)
    return snapshot / "data" if next(shards, None) else snapshot


def pick_split(folder: Path, shards: Sequence[str], split: str) -> tuple[list[str], list[Finding]]:
    """The shards whose name holds a split as a word; all where no name holds any.

    Raises:
        DataError: there are shards of other splits only.
    """
    words = {name: _words(name) for name in shards}
    chosen = [name for name in shards if split.lower() in words[name]]
    of_others = {w for name in shards if name not in chosen for w in words[name] & {*SPLITS}}
    if not chosen and of_others:
        raise _no_split(folder, split, sorted(of_others))
    if not chosen:
        return list(shards), []
    unclear = tuple(n for n in shards if n not in chosen and not words[n] & {*SPLITS})
    if not unclear:
        return chosen, []
    message = f"shards that name no split beside those of {split}: {shorten(unclear)}"
    fix = f"put {split} into their names, or take them out of the folder"
    return chosen, [Finding("bad-archive", unclear, message, fix, "error")]


def mixed_splits(shards: Sequence[str]) -> list[Finding]:
    """A finding where the shards of a local folder name several splits: all would be read."""
    splits = {name: _words(name) & {*SPLITS} for name in shards}
    named = {frozenset(words) for words in splits.values() if words}
    if len(named) < 2:
        return []
    files = tuple(name for name in shards if splits[name])
    message = f"shards of several splits ({', '.join(sorted(frozenset().union(*named)))})"
    fix = "make each file or folder that you mean a [[data.sources]] with path of its own"
    return [Finding("bad-archive", files, f"{message}: {shorten(files)}", fix, "error")]


def _words(name: str) -> set[str]:
    return set(re.split(r"[-_./]", name.lower()))


def _no_split(folder: Path, split: str, there: Sequence[str]) -> DataError:
    return DataError(
        f"no split {split}; there are: {', '.join(there)}",
        where=str(folder),
        fix=f'[[data.sources]] with split = "{there[0]}"',
    )

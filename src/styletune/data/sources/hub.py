"""Data sets of the Hub: which commit, folder and shards a source means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from styletune.data.findings import Finding, finding, shorten
from styletune.data.sources.files import SHARD_EXTENSIONS
from styletune.errors import DataError, NotFound
from styletune.hub import cached_commits, find_snapshot

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")


def find_dataset(name: str, revision: str | None, hint: str) -> Path:
    """The folder of a data set's commit in the local cache.

    Args:
        name: "owner/name".
        revision: commit, branch or tag as ``find_snapshot`` takes them; may be None where only
            one commit is here.
        hint: the nearest local path, if a folder was meant.

    Raises:
        NotFound: the data set, or this revision of it, is not here or not complete; ``fix`` is
            the command that downloads it.
        DataError: several commits are here and none is pinned.
    """
    commits = cached_commits(name, "dataset")
    where = "[[data.sources]] revision" if revision else "[data]"
    commit = revision or (commits[-1] if commits else None)
    try:
        snapshot = find_snapshot(name, commit, where, "dataset")
    except NotFound as error:
        if commits:
            raise
        fix = f"{error.fix}  (or, if you meant a folder: {hint})"
        raise NotFound(error.message, where=where, fix=fix) from None
    if revision is None and len(commits) > 1:
        raise DataError(
            f"several commits of {name} are on this machine: {', '.join(commits)}",
            where=where,
            fix=f'pin one: [[data.sources]] with path = "{name}", revision = "{commits[-1]}"',
        )
    return snapshot.folder


def split_folder(snapshot: Path, split: str) -> Path:
    """The folder named after a split, at the top or in ``data``.

    Without such folders ``data`` if shards are in it, since pictures of the README may be next
    to it; else the snapshot.

    Raises:
        DataError: there are folders of other splits only.
    """
    for parent in (snapshot, snapshot / "data"):
        present = sorted(s for s in {*SPLITS, split} if (parent / s).is_dir())
        if split in present:
            return parent / split
        if present:
            raise _no_split(snapshot, split, present)
    shards = (p for p in (snapshot / "data").glob("*") if p.suffix in SHARD_EXTENSIONS)
    return snapshot / "data" if next(shards, None) else snapshot


def pick_split(folder: Path, shards: Sequence[str], split: str) -> tuple[list[str], list[Finding]]:
    """The shards whose name contains a split as a word; all where no name contains any.

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
    unclear = [n for n in shards if n not in chosen and not words[n] & {*SPLITS}]
    if not unclear:
        return chosen, []
    message = f"shards that name no split next to those of {split}: {shorten(unclear)}"
    fix = f"put {split} into their names, or remove them from the folder"
    return chosen, [finding("bad-archive", unclear, message, fix)]


def mixed_splits(shards: Sequence[str]) -> list[Finding]:
    """A finding where the shards of a local folder name several splits: all would be read."""
    splits = {name: _words(name) & {*SPLITS} for name in shards}
    named = {frozenset(words) for words in splits.values() if words}
    if len(named) < 2:
        return []
    files = [name for name in shards if splits[name]]
    message = f"shards of several splits ({', '.join(sorted(frozenset().union(*named)))})"
    fix = "make each file or folder that you mean a [[data.sources]] with its own path"
    return [finding("bad-archive", files, f"{message}: {shorten(files)}", fix)]


def _words(name: str) -> set[str]:
    return set(re.split(r"[-_./]", name.lower()))


def _no_split(folder: Path, split: str, present: Sequence[str]) -> DataError:
    return DataError(
        f"no split {split}; there are: {', '.join(present)}",
        where=str(folder),
        fix=f'[[data.sources]] with split = "{present[0]}"',
    )

"""What lies in a folder of images, by kind; nothing is skipped in silence."""

from __future__ import annotations

import difflib
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from styletune.data.pixels.image_file import READ_EXTENSIONS
from styletune.data.sources.card import CARD_NAME
from styletune.errors import DataError

# Pictures to their owner, but not to us: they must not vanish from the set unnoticed.
FOREIGN_EXTENSIONS = (
    ".apng",
    ".arw",
    ".cr2",
    ".cr3",
    ".dds",
    ".dng",
    ".eps",
    ".exr",
    ".hdr",
    ".ico",
    ".j2k",
    ".jp2",
    ".jpe",
    ".jpx",
    ".jxl",
    ".nef",
    ".orf",
    ".pgm",
    ".pnm",
    ".ppm",
    ".psb",
    ".psd",
    ".qoi",
    ".raf",
    ".raw",
    ".rw2",
    ".svg",
    ".tga",
    ".xcf",
)
# Files that hold many images.
SHARD_EXTENSIONS = (".arrow", ".parquet", ".tar", ".zip")
# Archives that are not read, but must not be overlooked either.
FOREIGN_SHARDS = (".7z", ".gz", ".h5", ".lmdb", ".rar", ".tgz", ".xz", ".zst")


@dataclass(frozen=True, slots=True)
class Found:
    """Relative posix names in a tree by kind, sorted, without hidden files and the card.

    ``broken`` are no files, links to nothing, without permission, or of a name that is not
    text; ``loops`` are links to a folder that the tree lies in; ``shards`` hold many images.
    """

    images: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    loops: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def nearest(path: Path) -> str:
    """What to say about a path that is not there."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} is not there either"
    there = sorted(
        p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix in SHARD_EXTENSIONS
    )
    near = difflib.get_close_matches(path.name, there, n=1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"folders there: {shorten(there) or 'none'}"


def find_files(path: Path) -> Found:
    """List a folder tree. Symbolic links are followed, but no folder is read twice.

    Raises:
        DataError: the folder itself cannot be listed.
    """
    names, broken, loops = list[str](), list[str](), list[str]()
    waiting, seen = [path], set[str]()
    above = path.resolve().parents

    def unlistable(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == path:
            raise DataError(
                f"the folder cannot be listed: {error.strerror}", where=str(path)
            ) from None
        broken.append(folder.relative_to(path).as_posix() + "/")

    while waiting:
        start = waiting.pop(0)
        if start != path and start.resolve() in above:
            loops.append(start.relative_to(path).as_posix())
            continue
        for folder, children, files in os.walk(start, onerror=unlistable):
            real = os.path.realpath(folder)
            if real in seen:
                children.clear()
                continue
            seen.add(real)
            children[:] = sorted(c for c in children if not c.startswith("."))
            # Real folders first: a file keeps its real name when a link leads to it too.
            waiting += [Path(folder, c) for c in children if Path(folder, c).is_symlink()]
            relative = Path(folder).relative_to(path).as_posix()
            prefix = "" if relative == "." else f"{relative}/"
            names += [prefix + f for f in files if not f.startswith(".")]
    found = sort_names(names)
    unread = {n for n in found.images if not _readable(path, n)}
    return Found(
        tuple(n for n in found.images if n not in unread),
        found.foreign,
        tuple(sorted({*map(printable, broken), *found.broken, *unread})),
        tuple(sorted(map(printable, loops))),
        found.metadata,
        found.shards,
        found.texts,
        found.others,
    )


def _readable(path: Path, name: str) -> bool:
    file = path / name
    return file.is_file() and os.access(file, os.R_OK)


def sort_names(names: Iterable[str]) -> Found:
    """Names of files by kind; the card at the top is left out."""
    kinds: dict[str, list[str]] = {kind: [] for kind in Found.__slots__}
    for name in sorted(names):
        if name != CARD_NAME:
            kinds[_kind(name)].append(printable(name))
    return Found(**{kind: tuple(members) for kind, members in kinds.items()})


def printable(name: str) -> str:
    """A name as valid text: bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _kind(name: str) -> str:
    stem, suffix = posixpath.splitext(posixpath.basename(name))
    suffix = suffix.lower()
    if printable(name) != name:
        return "broken"
    if stem.lower() == "metadata" and suffix not in (*READ_EXTENSIONS, *FOREIGN_EXTENSIONS):
        return "metadata"
    kinds = {
        "images": READ_EXTENSIONS,
        "foreign": FOREIGN_EXTENSIONS,
        "shards": (*SHARD_EXTENSIONS, *FOREIGN_SHARDS),
        "texts": (".txt",),
    }
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "others")


def shorten(names: list[str] | tuple[str, ...], most: int = 5) -> str:
    """The first few names, then how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

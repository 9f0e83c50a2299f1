"""The files of a folder of images, by kind; none is skipped silently."""

from __future__ import annotations

import difflib
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from styletune.data.findings import printable, shorten
from styletune.errors import DataError

# Files with these names count as images to train on; their content decides how to read them.
READ_EXTENSIONS = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)
# Unsupported images, and videos: they must not vanish from the set unnoticed.
FOREIGN_EXTENSIONS = (
    ".apng",
    ".arw",
    ".avi",
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
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
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
    ".webm",
    ".wmv",
    ".xcf",
)
# Files that contain many images.
SHARD_EXTENSIONS = (".arrow", ".parquet", ".tar", ".zip")
# Unsupported archives: they must not vanish either.
FOREIGN_SHARDS = (".7z", ".gz", ".h5", ".lmdb", ".rar", ".tgz", ".xz", ".zst")


@dataclass(frozen=True, slots=True)
class FilesByKind:
    """Relative posix names in a tree by kind, sorted, without hidden files and the card.

    ``broken`` are special files, broken links, unreadable, or have a name that is not text;
    ``loops`` are links to a folder that contains the tree; ``shards`` contain many images.
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
    """A hint about a path that does not exist."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    present = sorted(
        p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix in SHARD_EXTENSIONS
    )
    near = difflib.get_close_matches(path.name, present, n=1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"folders there: {shorten(present) or 'none'}"


def find_files(path: Path) -> FilesByKind:
    """List a folder tree. Symbolic links are followed, but no folder is read twice.

    Raises:
        DataError: the folder itself cannot be listed.
    """
    names: list[str] = []
    broken: list[str] = []
    loops: list[str] = []
    waiting, visited = [path], set[str]()
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
            if real in visited:
                children.clear()
                continue
            visited.add(real)
            children[:] = sorted(c for c in children if not c.startswith("."))
            # Real folders first: a file keeps its real name even if a link also leads to it.
            waiting += [Path(folder, c) for c in children if Path(folder, c).is_symlink()]
            relative = Path(folder).relative_to(path).as_posix()
            prefix = "" if relative == "." else f"{relative}/"
            names += [prefix + f for f in files if not f.startswith(".")]
    by_kind = sort_names(names)
    unreadable = {n for n in by_kind.images if not _readable(path, n)}
    return replace(
        by_kind,
        images=tuple(n for n in by_kind.images if n not in unreadable),
        broken=tuple(sorted({*map(printable, broken), *by_kind.broken, *unreadable})),
        loops=tuple(sorted(map(printable, loops))),
    )


def _readable(path: Path, name: str) -> bool:
    file = path / name
    return file.is_file() and os.access(file, os.R_OK)


def sort_names(names: Iterable[str]) -> FilesByKind:
    """File names by kind; the card at the top is left out."""
    kinds: dict[str, list[str]] = {kind: [] for kind in FilesByKind.__slots__}
    for name in sorted(names):
        if name != CARD_NAME:
            kinds[_kind(name)].append(printable(name))
    return FilesByKind(**{kind: tuple(members) for kind, members in kinds.items()})


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


CARD_NAME = "dataset.toml"

"""A folder of images with captions to a ``datasets.Dataset``; nothing is skipped in silence.

Hugging Face ImageFolder conventions: ``metadata.jsonl`` or ``metadata.csv`` with ``file_name``
and ``text`` in any folder, or a ``.txt`` of the same name beside an image.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.card import CARD_NAME
from styletune.data.metadata import METADATA_NAMES, Captions, read_metadata
from styletune.errors import DataError, NotFound

if TYPE_CHECKING:
    import datasets

EXTENSIONS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Pictures to their owner, but not to us: they must not vanish from the set unnoticed.
FOREIGN_EXTENSIONS = (
    ".arw", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".jp2", ".jxl",
    ".nef", ".orf", ".psb", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga", ".xcf",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of fault: what is said, about which files or lines, and what to do."""

    message: str
    names: tuple[str, ...]
    fix: str


@dataclass(frozen=True, slots=True)
class Found:
    """Relative posix names in a folder tree by kind, without hidden files and the card."""

    images: tuple[str, ...]
    foreign: tuple[str, ...]
    broken: tuple[str, ...]
    metadata: tuple[str, ...]
    texts: tuple[str, ...]
    others: tuple[str, ...]


def open_folder(path: Path, *, default_caption: str | None) -> datasets.Dataset:
    """Open a folder of captioned images.

    Args:
        path: the folder; sub-folders are included, hidden ones are not.
        default_caption: caption of the images that have none; None makes that an error.

    Returns:
        Columns ``file_name`` (posix, relative), ``path`` (absolute) and ``text``; one row an
        image, sorted by file name, in memory, without any cache on disk.

    Raises:
        NotFound: there is no such folder.
        DataError: no images, or anything in it is not clear; all problems at once.
    """
    _require_folder(path)
    if default_caption is not None and not default_caption.strip():
        raise DataError(
            "the default caption is empty",
            where="data.default_caption",
            fix="write what the images show, or leave it out",
        )
    found = find_files(path)
    if not (found.images or found.foreign or found.broken):
        raise _no_images(path, found)
    problems = _file_problems(found)
    captions, metadata_problems = read_metadata(path, found.metadata)
    problems += [Problem(*parts) for parts in metadata_problems]
    # After a fault in the metadata every caption would seem to be missing: say the cause only.
    if not metadata_problems:
        sidecars, sidecar_problems = _read_sidecars(path, found)
        problems += sidecar_problems + _caption_problems(found, captions, sidecars)
        texts = {**sidecars, **captions.texts}
        bare = [name for name in found.images if name not in texts]
        if default_caption is None and not sidecar_problems:
            problems += _bare_problem(bare, found)
        texts.update(dict.fromkeys(bare, default_caption or ""))
    if problems:
        raise data_error(path, problems)
    return _dataset(path, found.images, texts)


def _dataset(path: Path, names: tuple[str, ...], texts: dict[str, str]) -> datasets.Dataset:
    import datasets

    string = datasets.Value("string")
    return datasets.Dataset.from_dict(
        {
            "file_name": list(names),
            "path": [str((path / name).absolute()) for name in names],
            "text": [texts[name].strip() for name in names],
        },
        features=datasets.Features({"file_name": string, "path": string, "text": string}),
    )


def _require_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.exists():
        raise DataError(
            "is a file, not a folder of images", where=str(path), fix=f"give {path.parent}"
        )
    fix = f"the folder {path.parent} is not there either"
    if path.parent.is_dir():
        folders = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
        near = difflib.get_close_matches(path.name, folders, n=1)
        fix = f"folders there: {shorten(folders) or 'none'}"
        if near:
            fix = f"did you mean {path.parent / near[0]}?"
    raise NotFound("no such folder", where=str(path), fix=fix)


def find_files(path: Path) -> Found:
    """List a folder tree. Symbolic links are followed, but no folder is read twice.

    Raises:
        DataError: a folder cannot be listed.
    """
    names: list[str] = []
    waiting, seen = [path], set[str]()
    while waiting:
        start = waiting.pop(0)
        if start != path and start.resolve() in path.resolve().parents:
            raise DataError(
                "a link to a folder that this one lies in", where=str(start), fix="remove the link"
            )
        for folder, children, files in os.walk(start, onerror=_unlistable):
            real = os.path.realpath(folder)
            if real in seen:
                children.clear()
                continue
            seen.add(real)
            children[:] = sorted(c for c in children if not c.startswith("."))
            # Real folders first: a file keeps its real name when a link leads to it too.
            waiting += [Path(folder, c) for c in children if Path(folder, c).is_symlink()]
            relative = Path(folder).relative_to(path)
            names += [(relative / f).as_posix() for f in files if not f.startswith(".")]
    kinds: dict[str, list[str]] = {kind: [] for kind in Found.__slots__}
    for name in sorted(names):
        if name != CARD_NAME:
            kinds[_kind(path, name)].append(name)
    return Found(**{kind: tuple(members) for kind, members in kinds.items()})


def _unlistable(error: OSError) -> None:
    raise DataError(
        f"the folder cannot be listed: {error.strerror}", where=str(error.filename)
    ) from None


def _kind(path: Path, name: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix in EXTENSIONS:
        return "images" if (path / name).is_file() else "broken"
    if suffix in FOREIGN_EXTENSIONS:
        return "foreign"
    if Path(name).stem.lower() == "metadata":
        return "metadata"
    return "texts" if suffix == ".txt" else "others"


def _no_images(path: Path, found: Found) -> DataError:
    rest = [*found.metadata, *found.texts, *found.others]
    kinds = Counter(Path(name).suffix.lower() or "no extension" for name in rest)
    there = ", ".join(f"{n} × {kind}" for kind, n in kinds.most_common(5))
    return DataError(
        f"no images in this folder; found {there or 'nothing'}",
        where=str(path),
        fix=f"extensions that are read: {', '.join(EXTENSIONS)}",
    )


def _file_problems(found: Found) -> list[Problem]:
    problems = []
    if found.foreign:
        problems.append(
            Problem(
                "images of a kind that is not read",
                found.foreign,
                "save them as .png or .jpg, or take them out of the folder",
            )
        )
    if found.broken:
        problems.append(
            Problem(
                "not files, or links to nothing",
                found.broken,
                "restore the originals or take them out of the folder",
            )
        )
    strange = tuple(n for n in found.metadata if Path(n).name not in METADATA_NAMES)
    if strange:
        problems.append(
            Problem(
                "metadata files of a name that is not read",
                strange,
                f"name them {' or '.join(METADATA_NAMES)}",
            )
        )
    return problems


def _read_sidecars(path: Path, found: Found) -> tuple[dict[str, str], list[Problem]]:
    """Captions from ``.txt`` files beside images, by image name."""
    texts, here = {}, set(found.texts)
    unreadable = []
    for name in found.images:
        sidecar = str(Path(name).with_suffix(".txt").as_posix())
        if sidecar not in here:
            continue
        try:
            texts[name] = (path / sidecar).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            unreadable.append(f"{sidecar} ({error})")
    problem = Problem("captions that cannot be read", tuple(unreadable), "save them as UTF-8 text")
    return texts, [problem] if unreadable else []


def _caption_problems(found: Found, captions: Captions, sidecars: dict[str, str]) -> list[Problem]:
    images = set(found.images)
    empty = [name for name, text in {**sidecars, **captions.texts}.items() if not text.strip()]
    kinds = [
        (
            "metadata rows whose image is not there",
            [name for name in captions.listed if name not in images],
            "correct file_name (it is relative to the metadata file) or remove the rows",
        ),
        (
            "images with more than one metadata row",
            [name for name, rows in Counter(captions.listed).items() if rows > 1],
            "keep one row an image",
        ),
        (
            "images with a caption in the metadata and in a .txt file",
            sorted(set(captions.texts) & set(sidecars)),
            "keep one of the two",
        ),
        ("empty captions", sorted(empty), "write what the image shows"),
        (
            "caption files that are not read",
            _unread_captions(found),
            "name them like the image with .txt in place of its extension",
        ),
    ]
    return [Problem(message, tuple(names), fix) for message, names, fix in kinds if names]


def _unread_captions(found: Found) -> list[str]:
    """Files that look like sidecars, but of a name that would be ignored: photo.jpg.txt."""
    stems = {Path(name).with_suffix("").as_posix() for name in found.images}
    folded = {name.casefold() for name in (*found.images, *stems)}
    wrong = []
    for name in (*found.texts, *found.others):
        stem, suffix = Path(name).with_suffix("").as_posix(), Path(name).suffix
        meant = suffix.lower() in (".txt", ".caption", ".cap") and stem.casefold() in folded
        if meant and not (stem in stems and suffix == ".txt"):
            wrong.append(name)
    return sorted(wrong)


def _bare_problem(bare: list[str], found: Found) -> list[Problem]:
    if not bare:
        return []
    return [
        Problem(
            f"{len(bare)} of {len(found.images)} images have no caption",
            tuple(bare),
            "add captions (metadata.jsonl, metadata.csv or a .txt beside each image), or set "
            "data.default_caption in the recipe",
        )
    ]


def shorten(names: list[str] | tuple[str, ...], most: int = 5) -> str:
    """The first few names, then how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def data_error(path: Path, problems: list[Problem]) -> DataError:
    """All problems of a folder in one error; the fix of the first is the error's own."""
    lines = [f"{p.message}: {shorten(p.names)}" for p in problems]
    lines[1:] = [
        f"{path}: {line} ({p.fix})" for line, p in zip(lines[1:], problems[1:], strict=True)
    ]
    return DataError("\n".join(lines), where=str(path), fix=problems[0].fix)

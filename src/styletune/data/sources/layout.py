"""The ImageFolder layout, in a folder or in an archive: which words belong to which image.

``metadata.jsonl``, ``.csv`` or ``.parquet`` in any folder, or a ``.txt`` or ``.json`` of the
same name (in a tar: of the same key) beside an image; and the folders ``N_words`` of kohya's
trainers.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path

from styletune.data.findings import Finding
from styletune.data.sources.archives import sample_key
from styletune.data.sources.card import CARD_NAME
from styletune.data.sources.contents import read_item
from styletune.data.sources.files import Found, shorten
from styletune.data.sources.items import Item, Rights
from styletune.data.sources.metadata import (
    METADATA_NAMES,
    NOTHING,
    RIGHTS_COLUMNS,
    BadRowError,
    Captions,
    Words,
    parse_words,
    read_metadata,
)
from styletune.errors import DataError

MAX_CAPTION_BYTES = 16 << 20
MAX_METADATA_BYTES = 512 << 20
# kohya reads any number; one above this is a year.
MAX_FOLDER_REPEATS = 200
_CARD_END = f".{CARD_NAME}"


@dataclass(frozen=True, slots=True)
class Tree:
    """Files below ``path``: a folder, or an archive with what ``read_item`` needs of each."""

    path: Path
    found: Found
    members: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one place before defaults; ``complete`` is False when captions could not be
    read, so that a missing one says nothing.
    """

    items: list[Item]
    findings: list[Finding]
    complete: bool = True


def tree_part(tree: Tree, origin: str) -> Part:
    """All images of a tree with their own captions and rights, sorted by name."""
    found = tree.found
    findings = _file_findings(found)
    captions, metadata_findings = _metadata(tree)
    sidecars, sidecar_findings = _sidecars(tree)
    findings += metadata_findings + sidecar_findings
    complete = not any(f.code == "bad-metadata" for f in findings)
    # After a fault in the metadata every caption would seem to be missing: say the cause only.
    if not metadata_findings:
        findings += _caption_findings(tree, captions, sidecars)
    findings += card_findings(found)
    folders = kohya_folders(found.images)
    items = []
    for name in found.images:
        words = _merged(captions.words.get(name), sidecars.get(name))
        repeats, phrase = folders.get(name.partition("/")[0], (1, None))
        path, member = place(tree, name)
        text = phrase if words.text is None else words.text
        items.append(
            Item(
                name,
                path,
                member,
                text,
                origin,
                words.machine_caption,
                repeats,
                rights=words.rights,
            )
        )
    return Part(items, findings, complete)


def place(tree: Tree, name: str) -> tuple[str, str]:
    """``Item.path`` and ``Item.member`` of a file in a tree."""
    if tree.members is None:
        return f"{tree.path}/{name}", ""
    return str(tree.path), tree.members[name]


def read_file(tree: Tree, name: str, max_bytes: int = MAX_METADATA_BYTES) -> bytes:
    """Bytes of a small file in a tree.

    Raises:
        DataError: it cannot be read, or is larger than ``max_bytes``.
    """
    content = read_item(*place(tree, name), max_bytes)
    if isinstance(content, bytes):
        return content
    try:
        if content.stat().st_size > max_bytes:
            raise DataError(f"is larger than {max_bytes >> 20} MiB", where=name)
        return content.read_bytes()
    except OSError as error:
        raise DataError(f"{error.strerror}", where=name) from None


def kohya_folders(images: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Repeats and caption by first-level folder, as kohya's ``N_words`` says.

    As in sd-scripts, N is all before the first underscore and the words all after it, underscores
    kept. Only when every image lies in such a folder, with N from 1 to 200 and not written
    with a leading zero, which numbers folders rather than repeats; else there are none.
    """
    found: dict[str, tuple[int, str]] = {}
    for folder in {posixpath.dirname(name) for name in images}:
        match = re.fullmatch(r"([1-9]\d{0,2})_(.*[^\W_].*)", folder)
        if match is None or "/" in folder or int(match[1]) > MAX_FOLDER_REPEATS:
            return {}
        found[folder] = (int(match[1]), match[2].strip())
    return found


def card_findings(found: Found) -> list[Finding]:
    """Cards that are not the place's own, whose rights its images would lack unnoticed."""
    cards = [n for n in found.others if f".{posixpath.basename(n)}".lower().endswith(_CARD_END)]
    return _error(
        "bad-metadata",
        cards,
        f"data set cards that are not read; only {CARD_NAME} at the top is",
        "make the folder or file of each a source of its own ([[data.sources]] with path), or "
        "take the card away",
    )


def _error(code: str, names: Iterable[str], message: str, fix: str) -> list[Finding]:
    files = tuple(names)
    return [Finding(code, files, message, fix, "error")] if files else []


def _file_findings(found: Found) -> list[Finding]:
    strange = [n for n in found.metadata if posixpath.basename(n) not in METADATA_NAMES]
    return [
        *_error(
            "foreign-file",
            found.foreign,
            "images of a kind that is not read",
            "save them as .png or .jpg, or take them out of the folder",
        ),
        *_error(
            "foreign-file",
            found.shards,
            "archives or tables among images, which are not opened there",
            "give each as a source of its own, or take them out of the folder",
        ),
        *_error(
            "broken-file",
            found.broken,
            "not files, links to nothing, without permission, or of a name that is not text",
            "restore the originals or take them out of the folder",
        ),
        *_error(
            "broken-file",
            found.loops,
            "a link to a folder that this one lies in",
            "remove the link",
        ),
        *_error(
            "bad-metadata",
            strange,
            "metadata files of a name that is not read",
            f"name them {' or '.join(METADATA_NAMES)}",
        ),
    ]


def _metadata(tree: Tree) -> tuple[Captions, list[Finding]]:
    contents, findings = dict[str, bytes](), list[Finding]()
    for name in tree.found.metadata:
        if posixpath.basename(name) not in METADATA_NAMES:
            continue
        try:
            contents[name] = read_file(tree, name)
        except DataError as error:
            message = f"cannot be read ({error.message})"
            findings += _error("bad-metadata", [name], message, "check its permissions and size")
    captions, faults = read_metadata(contents)
    findings += [Finding("bad-metadata", n, what, fix, "error") for what, n, fix in faults]
    return captions, findings


def _sidecars(tree: Tree) -> tuple[dict[str, Words], list[Finding]]:
    """What ``.txt`` and ``.json`` files beside images say, by image name."""
    here = dict[str, list[str]]()
    for name in (*tree.found.texts, *tree.found.others):
        if name.endswith((".txt", ".json")):
            here.setdefault(_key(tree, name), []).append(name)
    found, bad, unlike = dict[str, Words](), list[str](), list[str]()
    for name in tree.found.images:
        said = []
        for sidecar in here.get(_key(tree, name), ()):
            parse = _text_words if sidecar.endswith(".txt") else _json_words
            try:
                said.append(parse(read_file(tree, sidecar, MAX_CAPTION_BYTES)))
            except (UnicodeDecodeError, ValueError, RecursionError, BadRowError) as error:
                bad.append(f"{sidecar} ({error})")
            except DataError as error:
                bad.append(f"{sidecar} ({error.message})")
        if len({words.text.strip() for words in said if words.text is not None}) > 1:
            unlike.append(name)
        if said:
            found[name] = reduce(_merged, said)
    unreadable = f"captions that cannot be read: {shorten(bad)}"
    return found, [
        *_error(
            "bad-metadata",
            [b.partition(" (")[0] for b in bad],
            unreadable,
            "save them as UTF-8 text or JSON, or take them out of the folder",
        ),
        *_error(
            "ambiguous-caption",
            unlike,
            "images with unlike captions beside them",
            "keep one of them",
        ),
    ]


def _is_tar(tree: Tree) -> bool:
    return tree.members is not None and tree.path.suffix.lower() == ".tar"


def _key(tree: Tree, name: str) -> str:
    """What an image and the files beside it share."""
    return sample_key(name) if _is_tar(tree) else posixpath.splitext(name)[0]


def _text_words(content: bytes) -> Words:
    return Words(content.decode("utf-8-sig"))


def _json_words(content: bytes) -> Words:
    """An object with "text" or "caption"; any other says nothing of the image."""
    row = json.loads(content.decode("utf-8-sig"))
    if not isinstance(row, dict):
        return Words()
    return parse_words(row, "text" if "text" in row else "caption")


def _merged(first: Words | None, second: Words | None) -> Words:
    """The first where it says something, else the second."""
    if first is None or second is None:
        return first or second or Words()
    own = first if first.text is not None else second
    machine = first.machine_caption or second.machine_caption
    return Words(own.text, machine, merge_rights(first.rights, second.rights))


def merge_rights(first: Rights, second: Rights) -> Rights:
    """Each field of the first that is declared, else of the second."""
    if second == NOTHING or first == second:
        return first
    if first == NOTHING:
        return second
    assert {f.name for f in fields(Rights)} == set(RIGHTS_COLUMNS)
    return Rights(*(getattr(first, c) or getattr(second, c) for c in RIGHTS_COLUMNS))


def _caption_findings(
    tree: Tree, captions: Captions, sidecars: Mapping[str, Words]
) -> list[Finding]:
    images = set(tree.found.images)
    rows = Counter(captions.listed)
    twice = {n for n, w in captions.words.items() if w.text is not None}
    twice &= {n for n, w in sidecars.items() if w.text is not None}
    return [
        *_error(
            "bad-metadata",
            dict.fromkeys(name for name in captions.listed if name not in images),
            "metadata rows whose image is not there",
            "correct file_name (it is relative to the metadata file) or remove the rows",
        ),
        *_error(
            "ambiguous-caption",
            [name for name, count in rows.items() if count > 1],
            "images with more than one metadata row",
            "keep one row an image",
        ),
        *_error(
            "ambiguous-caption",
            sorted(twice),
            "images with a caption in the metadata and in a file beside them",
            "keep one of the two",
        ),
        *_error(
            "unread-caption-file",
            _unread_captions(tree),
            "caption files that are not read",
            "name them like the image with .txt in place of its extension",
        ),
    ]


def _unread_captions(tree: Tree) -> list[str]:
    """Files that look like sidecars, but of a name that would be ignored: photo.jpg.txt.

    In a tar these are all texts that belong to no image.
    """
    found, tar = tree.found, _is_tar(tree)
    keys = {_key(tree, name) for name in found.images}
    folded = {name.casefold() for name in (*found.images, *keys)}
    wrong = []
    for name in (*found.texts, *found.others) if keys else ():
        stem, suffix = posixpath.splitext(name)
        read = _key(tree, name) in keys and suffix in (".txt", ".json")
        looks = suffix.lower() in (".txt", ".caption", ".cap") and stem.casefold() in folded
        looks |= tar and suffix.lower() in (".txt", ".json", ".caption", ".cap")
        if looks and not read:
            wrong.append(name)
    return sorted(wrong)

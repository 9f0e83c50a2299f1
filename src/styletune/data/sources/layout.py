"""The ImageFolder layout, in a folder or in an archive: which caption belongs to which image.

``metadata.jsonl``, ``.csv`` or ``.parquet`` in any folder, or a ``.txt`` or ``.json`` of the
same name (in a tar: of the same key) next to an image; and kohya's ``N_words`` folders. Names are
compared in Unicode's composed form: some systems store "é" as two characters.
"""

from __future__ import annotations

import difflib
import json
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path

from styletune.data.findings import Finding, finding, shorten
from styletune.data.sources.archives import read_member, sample_key
from styletune.data.sources.files import CARD_NAME, FilesByKind
from styletune.data.sources.items import RIGHTS_COLUMNS, Item, Rights
from styletune.data.sources.metadata import (
    METADATA_NAMES,
    UNDECLARED,
    BadRowError,
    Captions,
    Words,
    checked_text,
    parse_words,
    read_metadata,
)
from styletune.data.sources.unread import unread_findings
from styletune.errors import DataError
from styletune.text import MAX_TEXT_BYTES, decode_text, read_bounded

# Of a file: 600 bytes for each of a hundred thousand images.
MAX_METADATA_BYTES = 64 << 20
# Wrong names that the nearest is looked for, and names that are compared letter by letter.
MOST_NEAREST, MOST_COMPARED = 5, 2000
# kohya accepts any number; one above this is a year.
MAX_FOLDER_REPEATS = 200
# OneTrainer's masks.
_MASK_END = "-masklabel"
_CARD_END = f".{CARD_NAME}"


@dataclass(frozen=True, slots=True)
class Tree:
    """Files below ``path``: a folder, or an archive with what ``read_item`` needs of each."""

    path: Path
    files: FilesByKind
    members: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one source before defaults; ``complete`` is False if captions could not be read,
    so that missing ones mean nothing.
    """

    items: list[Item]
    findings: list[Finding]
    complete: bool = True


def tree_part(tree: Tree, origin: str) -> Part:
    """All images of a tree with their own captions and rights, sorted by name."""
    files = tree.files
    findings = _file_findings(files)
    captions, metadata_findings = _metadata(tree)
    _match_composed(captions, files.images)
    keys = _matched_keys(tree)
    sidecars, sidecar_findings = _sidecars(tree, keys)
    findings += metadata_findings + sidecar_findings
    complete = not any(f.code == "bad-metadata" for f in findings)
    # With broken metadata every caption would seem to be missing: report only the cause.
    if not metadata_findings:
        findings += _caption_findings(tree, captions, sidecars)
    findings += card_findings(files)
    folders = kohya_folders(files.images)
    findings += _half_kohya(tree, folders)
    items, bare = [], []
    for name in files.images:
        words = _merged(captions.words.get(name), sidecars.get(name))
        repeats, phrase = folders.get(name.partition("/")[0], (1, None))
        path, member = locate(tree, name)
        if words.text is None:
            bare.append(name)
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
    if complete:
        findings += unread_findings(files, keys, bare, is_tar=_is_tar(tree))
    return Part(items, findings, complete)


def _match_composed(captions: Captions, images: Sequence[str]) -> None:
    """Give rows the name of their image as the folder spells it."""
    here = set(images)
    spelled = {unicodedata.normalize("NFC", name): name for name in images}
    for number, listed in enumerate(captions.listed):
        name = spelled.get(unicodedata.normalize("NFC", listed), listed)
        if listed not in here and name != listed:
            captions.listed[number] = name
            captions.words[name] = captions.words[listed]


def locate(tree: Tree, name: str) -> tuple[str, str]:
    """``Item.path`` and ``Item.member`` of a file in a tree."""
    if tree.members is None:
        return f"{tree.path}/{name}", ""
    return str(tree.path), tree.members[name]


def read_file(tree: Tree, name: str, max_bytes: int = MAX_METADATA_BYTES) -> bytes:
    """Bytes of a small file in a tree.

    Raises:
        DataError: it cannot be read, or is larger than ``max_bytes``.
    """
    path, member = locate(tree, name)
    if member:
        return read_member(Path(path), member, max_bytes)
    try:
        return read_bounded(Path(path), max_bytes)
    except ValueError as error:
        raise DataError(str(error), where=name) from None
    except OSError as error:
        raise DataError(f"{error.strerror}", where=name) from None


def kohya_folders(images: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Repeats and caption by first-level folder, as kohya's ``N_words`` says.

    As in sd-scripts, N is everything before the first underscore and the words everything after
    it. Only if every image is in such a folder, with N from 1 to 200 and no leading zero, which
    numbers folders rather than repeats; otherwise empty.
    """
    folders: dict[str, tuple[int, str]] = {}
    for folder in {posixpath.dirname(name) for name in images}:
        match = _kohya_match(folder)
        if match is None:
            return {}
        folders[folder] = (int(match[1]), match[2].strip())
    return folders


def _kohya_match(folder: str) -> re.Match[str] | None:
    match = re.fullmatch(r"([1-9]\d{0,2})_([^/]*[^\W_][^/]*)", folder)
    return match if match and int(match[1]) <= MAX_FOLDER_REPEATS else None


def _half_kohya(tree: Tree, folders: Mapping[str, tuple[int, str]]) -> list[Finding]:
    """Images in folders named ``N_words`` whose N is not read, because others are not in one."""
    if folders:
        return []
    named: list[str] = []
    outside: list[str] = []
    for name in tree.files.images:
        folder = posixpath.basename(posixpath.dirname(name)) or tree.path.name
        (named if _kohya_match(folder) else outside).append(name)
    if not named:
        return []
    first = posixpath.dirname(named[0]) or tree.path.name
    cause = f"{outside[0]} lies outside them" if outside else "they are not right below the source"
    return [
        finding(
            "repeats",
            named,
            f"the N of folders named N_words, such as {first}, is not read as repeats: {cause}",
            "put every image into such a folder right below data.path; or set repeats in "
            "[[data.sources]] and rename the folders",
            "warning",
        )
    ]


def card_findings(files: FilesByKind) -> list[Finding]:
    """Cards that do not belong to the source itself: their rights would silently be ignored."""
    cards = [n for n in files.others if f".{posixpath.basename(n)}".lower().endswith(_CARD_END)]
    return _error(
        "bad-metadata",
        cards,
        f"data set cards that would be ignored; only {CARD_NAME} at the top is read",
        "make the folder or file of each a separate source ([[data.sources]] with path), or "
        "remove the card",
    )


def _error(code: str, names: Iterable[str], message: str, fix: str) -> list[Finding]:
    files = tuple(names)
    return [finding(code, files, message, fix)] if files else []


def _file_findings(files: FilesByKind) -> list[Finding]:
    images = {posixpath.splitext(name)[0] for name in files.images}
    labels = [
        name
        for name in files.images
        if (stem := posixpath.splitext(name)[0]).endswith(_MASK_END)
        and stem.removesuffix(_MASK_END) in images
    ]
    unknown = [n for n in files.metadata if posixpath.basename(n) not in METADATA_NAMES]
    return [
        *_error(
            "foreign-file",
            labels,
            f"masks named …{_MASK_END} among the images, where they would be trained as pictures",
            'move them into a folder, named like their images, and set data.mask = "folder"',
        ),
        *_error(
            "foreign-file",
            files.foreign,
            "images or videos in unsupported formats",
            "save them as .png or .jpg, or remove them from the folder",
        ),
        *_error(
            "foreign-file",
            files.shards,
            "archives or tables among images, which are not opened there",
            "make each a separate source, or remove them from the folder",
        ),
        *_error(
            "broken-file",
            files.broken,
            "not files, broken links, no permission to read, or a name that is not text",
            "restore the originals or remove them from the folder",
        ),
        *_error(
            "broken-file",
            files.loops,
            "a link to a folder that contains this one",
            "remove the link",
        ),
        *_error(
            "bad-metadata",
            unknown,
            "metadata files with unknown names",
            f"name them {' or '.join(METADATA_NAMES)}",
        ),
    ]


def _metadata(tree: Tree) -> tuple[Captions, list[Finding]]:
    contents: dict[str, bytes] = {}
    findings: list[Finding] = []
    for name in tree.files.metadata:
        if posixpath.basename(name) not in METADATA_NAMES:
            continue
        try:
            contents[name] = read_file(tree, name)
        except DataError as error:
            message = f"cannot be read ({error.message})"
            findings += _error("bad-metadata", [name], message, "check its permissions and size")
    captions, problems = read_metadata(contents)
    for message, names, fix in problems:
        findings.append(finding("bad-metadata", names, message, fix))
    return captions, findings


def _sidecars(tree: Tree, keys: Mapping[str, str]) -> tuple[dict[str, Words], list[Finding]]:
    """Captions and rights in ``.txt`` and ``.json`` files next to images, by image name."""
    files: dict[str, list[str]] = {}
    for name in (*tree.files.texts, *tree.files.others):
        if name.endswith((".txt", ".json")):
            files.setdefault(keys[name], []).append(name)
    words: dict[str, Words] = {}
    bad: list[str] = []
    different: list[str] = []
    for name in tree.files.images:
        parsed: list[Words] = []
        for sidecar in files.get(keys[name], ()):
            parse = _text_words if sidecar.endswith(".txt") else _json_words
            try:
                parsed.append(parse(read_file(tree, sidecar, MAX_TEXT_BYTES)))
            except RecursionError:
                bad.append(f"{sidecar} (nested too deeply)")
            except (ValueError, BadRowError) as error:
                bad.append(f"{sidecar} ({error})")
            except DataError as error:
                bad.append(f"{sidecar} ({error.message})")
        if len({each.text.strip() for each in parsed if each.text is not None}) > 1:
            different.append(name)
        if parsed:
            words[name] = reduce(_merged, parsed)
    unreadable = f"captions that cannot be read: {shorten(bad)}"
    return words, [
        *_error(
            "bad-metadata",
            [b.partition(" (")[0] for b in bad],
            unreadable,
            "save them as UTF-8 text or JSON, or remove them from the folder",
        ),
        *_error(
            "ambiguous-caption",
            different,
            "images with different captions next to them",
            "keep one of them",
        ),
        *_shared_findings(tree, files),
    ]


def _shared_findings(tree: Tree, files: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Files next to images that would be the caption of several: a.jpg and a.png with a.txt."""
    images: dict[str, list[str]] = {}
    for name in tree.files.images:
        images.setdefault(_key(tree, name), []).append(name)
    shared = {key: names for key, names in images.items() if len(names) > 1 and key in files}
    listed = [f"{' and '.join(names)} share {files[key][0]}" for key, names in shared.items()]
    return _error(
        "ambiguous-caption",
        [name for names in shared.values() for name in names],
        f"one caption file for several images: {shorten(listed)}",
        "rename the images, so that each has a caption of its own",
    )


def _is_tar(tree: Tree) -> bool:
    return tree.members is not None and tree.path.suffix.lower() == ".tar"


def _key(tree: Tree, name: str) -> str:
    """The part of the name that an image shares with the files next to it."""
    return sample_key(name) if _is_tar(tree) else posixpath.splitext(name)[0]


def _matched_keys(tree: Tree) -> dict[str, str]:
    """``_key`` of every file; of those beside images the key of their image.

    Names are equal in Unicode's composed form too, but an exact match comes first: a folder may
    hold both spellings.
    """
    files = tree.files
    own = {name: _key(tree, name) for name in files.images}
    exact = set(own.values())
    composed = {unicodedata.normalize("NFC", key): key for key in exact}
    keys = dict(own)
    for name in (*files.texts, *files.others):
        key = _key(tree, name)
        keys[name] = key if key in exact else composed.get(unicodedata.normalize("NFC", key), key)
    return keys


def _text_words(content: bytes) -> Words:
    return Words(checked_text(decode_text(content)))


def _json_words(content: bytes) -> Words:
    """Words of an object with "text" or "caption"; none of any other."""
    row = json.loads(decode_text(content))
    if not isinstance(row, dict):
        return Words()
    return parse_words(row, "text" if "text" in row else "caption")


def _merged(first: Words | None, second: Words | None) -> Words:
    """The first where it declares something, else the second."""
    if first is None or second is None:
        return first or second or Words()
    own = first if first.text is not None else second
    machine = first.machine_caption or second.machine_caption
    return Words(own.text, machine, merge_rights(first.rights, second.rights))


def merge_rights(first: Rights, second: Rights) -> Rights:
    """Each field of the first that is declared, else of the second."""
    if second == UNDECLARED or first == second:
        return first
    if first == UNDECLARED:
        return second
    assert {f.name for f in fields(Rights)} == set(RIGHTS_COLUMNS)
    return Rights(*(getattr(first, c) or getattr(second, c) for c in RIGHTS_COLUMNS))


def _missing_images(captions: Captions, images: Collection[str]) -> list[Finding]:
    """Metadata rows whose image is not there, with the nearest names."""
    missing = list(dict.fromkeys(name for name in captions.listed if name not in images))
    listed = []
    # An image that has its row already is hardly the one that is meant.
    rowless = sorted(set(images) - set(captions.listed))
    for name in missing[:MOST_NEAREST]:
        near = _nearest_image(name, rowless)
        listed.append(f'{name} (did you mean "{near}"?)' if near else name)
    more = f" and {len(missing) - len(listed)} more" if len(missing) > len(listed) else ""
    return _error(
        "bad-metadata",
        missing,
        f"metadata rows whose image does not exist: {', '.join(listed)}{more}",
        "correct file_name (it is relative to the metadata file) or remove the rows",
    )


def _nearest_image(name: str, images: Sequence[str]) -> str | None:
    """The image that a wrong name probably means: other case, slashes, extension or folder."""
    plain = name.replace("\\", "/").removeprefix("./").casefold()
    rules: tuple[Callable[[str], str], ...] = (
        str.casefold,
        lambda n: posixpath.splitext(n)[0].casefold(),
        lambda n: posixpath.basename(n).casefold(),
    )
    for rule in rules:
        for image in images:
            if rule(image) == rule(plain):
                return image
    near = difflib.get_close_matches(name, images[:MOST_COMPARED], n=1, cutoff=0.7)
    return near[0] if near else None


def _caption_findings(
    tree: Tree, captions: Captions, sidecars: Mapping[str, Words]
) -> list[Finding]:
    images = set(tree.files.images)
    rows = Counter(captions.listed)
    twice = {n for n, w in captions.words.items() if w.text is not None}
    twice &= {n for n, w in sidecars.items() if w.text is not None}
    return [
        *_missing_images(captions, images),
        *_error(
            "ambiguous-caption",
            [name for name, count in rows.items() if count > 1],
            "images with more than one metadata row",
            "keep one row per image",
        ),
        *_error(
            "ambiguous-caption",
            sorted(twice),
            "images with a caption in the metadata and in a file next to them",
            "keep one of the two",
        ),
    ]

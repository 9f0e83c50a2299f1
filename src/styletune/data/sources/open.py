"""Every place that images come from becomes items, with their captions and rights.

A folder or zip in the ImageFolder layout, a WebDataset tar, a parquet or Arrow table, a folder
of such shards, or a Hub data set that is on this machine. A card is ``dataset.toml`` in the
folder; in an archive at its root or in its only top folder; for any single file also
``NAME.dataset.toml`` beside it.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from styletune.data.findings import Finding
from styletune.data.pixels.image_file import READ_EXTENSIONS
from styletune.data.sources.archives import bad_archive, crowded_samples, list_tar, list_zip
from styletune.data.sources.card import CARD_NAME, Card, load_card, parse_card
from styletune.data.sources.contents import read_item
from styletune.data.sources.files import (
    SHARD_EXTENSIONS,
    Found,
    find_files,
    nearest,
    shorten,
    sort_names,
)
from styletune.data.sources.hub import find_dataset, mixed_splits, pick_split, split_folder
from styletune.data.sources.items import Item, Rights
from styletune.data.sources.layout import (
    Part,
    Tree,
    card_findings,
    merge_rights,
    read_file,
    tree_part,
)
from styletune.data.sources.tables import list_table
from styletune.errors import DataError, NotFound
from styletune.hub import is_hub_id
from styletune.recipe.data_sections import SourceSection

__all__ = ["Opened", "Source", "open_sources", "read_item", "resolve_sources"]


_DEFAULTS = {key: info.default for key, info in SourceSection.model_fields.items()}


@dataclass(frozen=True, slots=True)
class Source:
    """One place; ``path`` is absolute and its links are kept, for their names say what they are.

    For a Hub data set ``path`` is the snapshot's folder and ``hub`` its id; the other fields are
    those of ``SourceSection``.
    """

    name: str
    path: Path
    hub: str = ""
    split: str = "train"
    repeats: int = 1
    weight: float = 1.0
    default_caption: str | None = None
    image_column: str = "image"
    caption_column: str = "text"


@dataclass(frozen=True, slots=True)
class Opened:
    """Items sorted by name within each source, cards by source, and all that is wrong."""

    items: tuple[Item, ...]
    cards: dict[str, Card]
    findings: list[Finding]


def resolve_sources(
    path: str | None, sections: Sequence[SourceSection], folder: Path
) -> tuple[Source, ...]:
    """The sources of a recipe: its one path, or its tables.

    Args:
        path: ``data.path``, a source without further settings.
        sections: ``data.sources``, used when there is no path.
        folder: what relative paths are relative to, the recipe's folder.

    Raises:
        NotFound: nothing lies at a path; a Hub data set is not on this machine.
        DataError: a file of a kind that is not read, keys of a Hub data set for what is none, or
            two sources of one name.
    """
    if path is not None:
        sections = [SourceSection(path=path)]
    sources = tuple(_resolve(section, folder) for section in sections)
    counts = Counter(source.name for source in sources)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"two sources are called {shorten(twice)}",
            where="[[data.sources]]",
            fix='give one of them another name = "…"',
        )
    return sources


def _resolve(section: SourceSection, folder: Path) -> Source:
    # Not resolve(): in the Hub's cache a link is called images.zip and its target a hash.
    path, hub = Path(os.path.abspath(folder / section.path)), ""  # noqa: PTH100
    name = path.stem if path.suffix.lower() in SHARD_EXTENSIONS else path.name
    if not path.exists() and is_hub_id(section.path):
        hub, path = section.path, find_dataset(section.path, section.revision, nearest(path))
    # A resolved recipe spells defaults out and must load again, so those are not refused.
    elif given := [k for k in ("revision", "split") if getattr(section, k) != _DEFAULTS[k]]:
        raise DataError(
            f"{section.path} is no Hub data set, so it has no {' and no '.join(given)}",
            where=f"[[data.sources]] {', '.join(given)}",
            fix="remove it" if len(given) == 1 else "remove them",
        )
    elif not path.exists():
        raise NotFound("no such folder or file", where=str(path), fix=nearest(path))
    elif not path.is_dir() and path.suffix.lower() not in SHARD_EXTENSIONS:
        raise DataError(
            "is a file, not a folder of images",
            where=str(path),
            fix=f"give {path.parent}, or a file of {', '.join(SHARD_EXTENSIONS)}",
        )
    return Source(
        section.name or name or "images",
        path,
        hub,
        section.split,
        section.repeats,
        section.weight,
        section.default_caption,
        section.image_column,
        section.caption_column,
    )


def open_sources(
    sources: Sequence[Source], *, default_caption: str | None, background: str | None = None
) -> Opened:
    """List all images of all sources. No image is decoded, nothing is written.

    Args:
        sources: from ``resolve_sources``.
        default_caption: caption of images that have none anywhere else; None makes them errors.
        background: ``"#rrggbb"`` under transparent pixels, instead of the cards'.

    Raises:
        NotFound: a source is gone.
        DataError: a default caption without words, a folder that cannot be listed, or columns
            of what is no table.
        RecipeError: a card is not valid.
    """
    for where, text in [("data.default_caption", default_caption)] + [
        (f"default_caption of {s.name}", s.default_caption) for s in sources
    ]:
        if text is not None and not text.strip():
            raise DataError(
                "the default caption is empty",
                where=where,
                fix="write what the images show, or leave it out",
            )
    items, cards, findings = list[Item](), dict[str, Card](), list[Finding]()
    for source in sources:
        part, card = _open(source)
        if card is not None:
            cards[source.name] = card
        default = source.default_caption or default_caption
        prefix = f"{source.name}/" if len(sources) > 1 else ""
        finished = [_finish(i, source, card, default, background, prefix) for i in part.items]
        items += finished
        said = f"{source.name}: " if prefix else ""
        for f in part.findings:
            files = tuple(prefix + name for name in f.files)
            findings.append(replace(f, files=files, message=said + f.message))
        findings += [
            replace(f, message=said + f.message)
            for f in _item_findings(finished, source, complete=part.complete)
        ]
    return Opened(tuple(items), cards, findings)


def _finish(
    item: Item,
    source: Source,
    card: Card | None,
    default_caption: str | None,
    background: str | None,
    prefix: str,
) -> Item:
    """An item with what holds for its whole source."""
    text, rights = item.text, item.rights
    if text is None:
        text = default_caption
    if card is not None:
        background = background or card.background
        rights = merge_rights(rights, _card_rights(card))
    return Item(
        prefix + item.file_name,
        item.path,
        item.member,
        None if text is None else text.strip(),
        source.name,
        item.machine_caption,
        item.repeats * source.repeats,
        source.weight,
        background,
        rights,
    )


def _card_rights(card: Card) -> Rights:
    return Rights(card.license or "", card.holder or "", card.consent or "", card.source or "")


def _item_findings(items: Sequence[Item], source: Source, *, complete: bool) -> list[Finding]:
    """What is wrong with the captions of a source, wherever they came from, and its repeats."""
    findings = []
    bare = tuple(item.file_name for item in items if item.text is None)
    if bare and complete:
        message = f"{len(bare)} of {len(items)} images have no caption"
        fix = (
            "add captions (metadata.jsonl, metadata.csv or a .txt beside each image), or set "
            "data.default_caption in the recipe"
        )
        findings.append(Finding("missing-caption", bare, message, fix, "error"))
    empty = tuple(item.file_name for item in items if item.text == "")
    if empty:
        fix = "write what the image shows"
        findings.append(Finding("empty-caption", empty, "empty captions", fix, "error"))
    many = tuple(item.file_name for item in items if item.repeats > 1)
    if many:
        counts = Counter(item.repeats for item in items if item.repeats > 1)
        shown = ", ".join(f"{n} images {times} times" for times, n in sorted(counts.items()))
        # Above the source's own number: it stands in a folder's name.
        named = any(item.repeats > source.repeats for item in items)
        what = ", by folders named N_words" if named else ""
        fix = "rename the folders if N is no number of repeats" if named else "change repeats"
        message = f"an epoch shows {shown}{what}"
        findings.append(Finding("repeats", many, message, fix, "fact"))
    return findings


def _open(source: Source) -> tuple[Part, Card | None]:
    """Images, faults and card of one source."""
    path = source.path
    if not path.exists():
        raise NotFound("no such folder or file", where=str(path), fix=nearest(path))
    if path.is_dir():
        return _open_folder(source)
    part, card = _open_file(path, source)
    beside = path.with_name(f"{path.stem}.{CARD_NAME}")
    if beside.is_file():
        outer = parse_card(beside.read_bytes(), beside)
        card = _one_card(path.name, [outer, card], part.findings)
    return part, card


def _open_folder(source: Source) -> tuple[Part, Card | None]:
    path = source.path
    if source.hub:
        path = split_folder(path, source.split)
    found = find_files(path)
    card = load_card(path) or (load_card(source.path) if path != source.path else None)
    shards = [name for name in found.shards if name.lower().endswith(SHARD_EXTENSIONS)]
    if not shards or found.images:
        _refuse_columns(source)
        part = tree_part(Tree(path, found), source.name)
        if not (found.images or any(f.code != "bad-metadata" for f in part.findings)):
            part.findings.insert(0, _no_images(path, found))
        return part, card
    kinds = sorted({Path(name).suffix.lower() for name in shards})
    if len(kinds) > 1:
        fix = "keep one kind: the same images in two would count twice"
        mixed = bad_archive(path, f"shards of several kinds ({', '.join(kinds)})", [], fix)
        return Part([], [mixed]), card
    if source.hub:
        chosen, faults = pick_split(path, shards, source.split)
    else:
        chosen, faults = shards, mixed_splits(shards)
    findings = faults + card_findings(found)
    items, cards, complete = list[Item](), [card], True
    for shard in chosen:
        part, inner = _open_file(path / shard, source)
        items += [replace(item, file_name=f"{shard}/{item.file_name}") for item in part.items]
        findings += [_within(finding, shard) for finding in part.findings]
        cards.append(inner)
        complete = complete and part.complete
    return Part(items, findings, complete), _one_card(path.name, cards, findings)


def _refuse_columns(source: Source) -> None:
    given = [c for c in ("image_column", "caption_column") if getattr(source, c) != _DEFAULTS[c]]
    if given:
        raise DataError(
            f"{source.name} is no table, so it has no {' and no '.join(given)}",
            where=f"[[data.sources]] {', '.join(given)}",
            fix="remove it" if len(given) == 1 else "remove them",
        )


def _within(finding: Finding, shard: str) -> Finding:
    """A shard's finding, named from the folder; of the shard itself it names only the file."""
    base = posixpath.basename(shard)
    files = tuple(shard if name == base else f"{shard}/{name}" for name in finding.files)
    return replace(finding, files=files)


def _one_card(name: str, cards: Sequence[Card | None], findings: list[Finding]) -> Card | None:
    unlike = list[Card]()
    for card in cards:
        if card is not None and card not in unlike:
            unlike.append(card)
    if len(unlike) > 1:
        message = "several data set cards that say different things"
        findings.append(Finding("bad-metadata", (name,), message, "keep one of them", "error"))
    return unlike[0] if unlike else None


def _open_file(path: Path, source: Source) -> tuple[Part, Card | None]:
    """A single archive or table, with the card inside it."""
    if path.suffix.lower() not in (".zip", ".tar"):
        rows, findings = list_table(
            path, image_column=source.image_column, caption_column=source.caption_column
        )
        items = [
            Item(
                name,
                str(path),
                member,
                words.text,
                source.name,
                words.machine_caption,
                rights=words.rights,
            )
            for name, member, words in rows
        ]
        if not rows and not findings:
            fix = "write the images into it again, or take it out of the sources"
            message = "a table without rows"
            findings.append(Finding("no-images", (path.name,), message, fix, "error"))
        return Part(items, findings, complete=not findings), None
    _refuse_columns(source)
    members, findings = (list_zip if path.suffix.lower() == ".zip" else list_tar)(path)
    if findings:
        return Part([], findings), None
    members = {n: m for n, m in members.items() if not any(p[:1] == "." for p in n.split("/"))}
    if path.suffix.lower() == ".tar" and (crowded := crowded_samples(list(members))):
        fix = "keep one image a key (the name up to its first dot)"
        return Part([], [bad_archive(path, "samples with several images", crowded, fix)]), None
    cards = _card_names(list(members))
    found = sort_names(name for name in members if name not in cards)
    tree = Tree(path, found, members)
    part = tree_part(tree, source.name)
    if not (found.images or any(f.code != "bad-metadata" for f in part.findings)):
        part.findings.insert(0, _no_images(path, found))
    inner = [parse_card(read_file(tree, name), path / name) for name in cards]
    return part, _one_card(path.name, inner, part.findings)


def _card_names(names: list[str]) -> list[str]:
    """Cards at the root of an archive or in its only top folder."""
    tops = {name.partition("/")[0] for name in names}
    only = f"{tops.pop()}/{CARD_NAME}" if len(tops) == 1 else CARD_NAME
    return [name for name in names if name in (CARD_NAME, only)]


def _no_images(path: Path, found: Found) -> Finding:
    rest = [*found.metadata, *found.shards, *found.texts, *found.others]
    kinds = Counter(Path(name).suffix.lower() or "no extension" for name in rest)
    there = ", ".join(f"{n} × {kind}" for kind, n in kinds.most_common(5))
    message = f"no images in {path.name}; found {there or 'nothing'}"
    fix = f"extensions that are read: {', '.join(READ_EXTENSIONS)}; archives: "
    return Finding("no-images", (), message, fix + ", ".join(SHARD_EXTENSIONS), "error")

"""Every source of images becomes a list of items, with their captions and rights.

A folder or zip in the ImageFolder layout, a WebDataset tar, a parquet or Arrow table, a folder
of such shards, or a Hub data set on this machine. A card is ``dataset.toml`` in the folder; in an
archive at its root or in its only top folder; for any single file also ``NAME.dataset.toml`` next
to it.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from styletune.data.findings import Finding, agree, bad_archive, finding, shorten
from styletune.data.sources.archives import crowded_samples, list_tar, list_zip
from styletune.data.sources.card import Card, load_card, parse_card
from styletune.data.sources.files import (
    CARD_NAME,
    READ_EXTENSIONS,
    SHARD_EXTENSIONS,
    FilesByKind,
    find_files,
    nearest,
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
from styletune.data.sources.source import Source
from styletune.data.sources.tables import list_table
from styletune.errors import DataError, NotFound
from styletune.hub import is_hub_id
from styletune.places import resolve_place
from styletune.recipe.data_sections import DataSection, SourceSection
from styletune.recipe.toml import load_toml
from styletune.text import MAX_TEXT_BYTES, has_words

_DEFAULTS = {key: info.default for key, info in SourceSection.model_fields.items()}


@dataclass(frozen=True, slots=True)
class Listing:
    """Items sorted by name within each source, cards by source, and everything wrong."""

    items: tuple[Item, ...]
    cards: dict[str, Card]
    findings: list[Finding]


def resolve_sources(section: DataSection, folder: Path) -> tuple[Source, ...]:
    """The sources of a recipe: its one path, or its tables.

    Args:
        section: its ``path``, or else its ``sources``.
        folder: what relative paths are relative to, the recipe's folder.

    Raises:
        NotFound: nothing is at a path; a Hub data set is not on this machine.
        DataError: an unsupported file, keys of a Hub data set for anything else, or two sources
            with one name.
    """
    tables = section.sources if section.path is None else (SourceSection(path=section.path),)
    sources = tuple(_resolve(table, folder) for table in tables)
    counts = Counter(source.name for source in sources)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"two sources are called {shorten(twice)}",
            where="[[data.sources]]",
            fix='give one of them another name = "…"',
        )
    return sources


def _resolve(section: SourceSection, folder: Path) -> Source:
    path = resolve_place(section.path, folder)
    name = path.stem if path.suffix.lower() in SHARD_EXTENSIONS else path.name
    name = section.name or name or "images"
    if not path.exists() and is_hub_id(section.path):
        snapshot = find_dataset(section.path, section.revision, nearest(path))
        return Source(section, name, snapshot, is_hub=True)
    _refuse_keys(section, ("revision", "split"), f"{section.path} is not a Hub data set")
    if not path.exists():
        raise NotFound("no such folder or file", where=str(path), fix=nearest(path))
    if not path.is_dir() and path.suffix.lower() not in SHARD_EXTENSIONS:
        raise DataError(
            "is a file, not a folder of images",
            where=str(path),
            fix="give a folder"
            + (f", such as {path.parent}" if path.suffix.lower() in READ_EXTENSIONS else "")
            + f", or a file of {', '.join(SHARD_EXTENSIONS)}",
        )
    return Source(section, name, path)


def _refuse_keys(section: SourceSection, keys: Sequence[str], reason: str) -> None:
    """Raise DataError if keys that mean nothing here differ from their defaults."""
    # A resolved recipe spells defaults out and must load again, so those are accepted.
    changed = [key for key in keys if getattr(section, key) != _DEFAULTS[key]]
    if changed:
        raise DataError(
            f"{reason}, so it has no {' and no '.join(changed)}",
            where=f"[[data.sources]] {', '.join(changed)}",
            fix="remove it" if len(changed) == 1 else "remove them",
        )


def list_sources(
    sources: Sequence[Source], *, default_caption: str | None, background: str | None = None
) -> Listing:
    """List all images of all sources. No image is decoded, nothing is written.

    Args:
        sources: from ``resolve_sources``.
        default_caption: caption of images without any other; None makes them errors.
        background: ``"#rrggbb"`` under transparent pixels, instead of the cards'.

    Raises:
        NotFound: a source is gone.
        DataError: an empty default caption, a folder that cannot be listed, or columns of a
            source that is not a table.
        RecipeError: a card is not valid.
    """
    _refuse_empty_defaults(sources, default_caption)
    items: list[Item] = []
    cards: dict[str, Card] = {}
    findings: list[Finding] = []
    for source in sources:
        part, card = _read_source(source)
        if card is not None:
            cards[source.name] = card
        default = source.section.default_caption or default_caption
        prefix = f"{source.name}/" if len(sources) > 1 else ""
        finished = [_finish(i, source, card, default, background, prefix) for i in part.items]
        items += finished
        speaker = f"{source.name}: " if prefix else ""
        for f in part.findings:
            files = tuple(prefix + name for name in f.files)
            findings.append(replace(f, files=files, message=speaker + f.message))
        findings += [
            replace(f, message=speaker + f.message)
            for f in _item_findings(finished, source, complete=part.complete)
        ]
    return Listing(tuple(items), cards, findings)


def _refuse_empty_defaults(sources: Sequence[Source], default_caption: str | None) -> None:
    defaults = [("data.default_caption", default_caption)] + [
        (f"default_caption of {source.name}", source.section.default_caption) for source in sources
    ]
    for where, text in defaults:
        if text is not None and not has_words(text):
            raise DataError(
                "the default caption is empty",
                where=where,
                fix="write what the images show, or leave it out",
            )


def _finish(
    item: Item,
    source: Source,
    card: Card | None,
    default_caption: str | None,
    background: str | None,
    prefix: str,
) -> Item:
    """An item with what applies to its whole source."""
    text, rights = item.text, item.rights
    if text is None:
        text = default_caption
    if card is not None:
        background = background or card.background
        rights = merge_rights(rights, card_rights(card))
    return Item(
        prefix + item.file_name,
        item.path,
        item.member,
        None if text is None else text.strip(),
        source.name,
        item.machine_caption,
        item.repeats * source.section.repeats,
        source.section.weight,
        background,
        rights,
    )


def card_rights(card: Card) -> Rights:
    """The rights that a card declares."""
    return Rights(card.license or "", card.holder or "", card.consent or "", card.source or "")


def _item_findings(items: Sequence[Item], source: Source, *, complete: bool) -> list[Finding]:
    """What is wrong with the captions of a source, wherever they are from, and its repeats."""
    findings = []
    bare = [item.file_name for item in items if item.text is None]
    if bare and complete:
        message = f"{len(bare)} of {len(items)} images {agree(len(bare), 'have no caption')}"
        fix = (
            "add captions (metadata.jsonl, metadata.csv or a .txt next to each image), or set "
            "data.default_caption in the recipe"
        )
        findings.append(finding("missing-caption", bare, message, fix))
    empty = [i.file_name for i in items if i.text is not None and not has_words(i.text)]
    if empty:
        fix = "write what the image shows"
        findings.append(finding("empty-caption", empty, "empty captions", fix))
    repeated = [item.file_name for item in items if item.repeats > 1]
    if repeated:
        counts = Counter(item.repeats for item in items if item.repeats > 1)
        listed = ", ".join(f"{n} images {times} times" for times, n in sorted(counts.items()))
        # Above the source's own number: it is from a folder's name.
        is_named = any(item.repeats > source.section.repeats for item in items)
        cause = ", because of folders named N_words" if is_named else ""
        fix = "rename the folders if N is not a number of repeats" if is_named else "change repeats"
        findings.append(finding("repeats", repeated, f"an epoch shows {listed}{cause}", fix))
    return findings


def _read_source(source: Source) -> tuple[Part, Card | None]:
    """Images, findings and card of one source."""
    path = source.path
    if not path.exists():
        raise NotFound("no such folder or file", where=str(path), fix=nearest(path))
    if path.is_dir():
        return _read_folder(source)
    part, card = _read_file(path, source)
    card_file = path.with_name(f"{path.stem}.{CARD_NAME}")
    if card_file.is_file():
        outer = load_toml(card_file, Card)
        card = _one_card(path.name, [outer, card], part.findings)
    return part, card


def _read_folder(source: Source) -> tuple[Part, Card | None]:
    path = split_folder(source.path, source.section.split) if source.is_hub else source.path
    files = find_files(path)
    card = load_card(path) or (load_card(source.path) if path != source.path else None)
    shards = [name for name in files.shards if name.lower().endswith(SHARD_EXTENSIONS)]
    if not shards or files.images:
        return _read_tree(Tree(path, files), source), card
    kinds = sorted({Path(name).suffix.lower() for name in shards})
    if len(kinds) > 1:
        fix = "keep one kind: the same images in two would count twice"
        mixed = bad_archive(path, f"shards of several kinds ({', '.join(kinds)})", [], fix)
        return Part([], [mixed]), card
    if source.is_hub:
        chosen, findings = pick_split(path, shards, source.section.split)
    else:
        chosen, findings = shards, mixed_splits(shards)
    findings = findings + card_findings(files)
    items, cards, complete = list[Item](), [card], True
    for shard in chosen:
        part, inner = _read_file(path / shard, source)
        items += [replace(item, file_name=f"{shard}/{item.file_name}") for item in part.items]
        findings += [_within(f, shard) for f in part.findings]
        cards.append(inner)
        complete = complete and part.complete
    return Part(items, findings, complete), _one_card(path.name, cards, findings)


def _read_tree(tree: Tree, source: Source) -> Part:
    """The images of a folder or archive, or why there are none."""
    columns = ("image_column", "caption_column")
    _refuse_keys(source.section, columns, f"{source.name} is not a table")
    part = tree_part(tree, source.name)
    if not (tree.files.images or any(f.code != "bad-metadata" for f in part.findings)):
        part.findings.insert(0, _no_images(tree.path, tree.files))
    return part


def _within(inner: Finding, shard: str) -> Finding:
    """A shard's finding, named from the folder; a finding on the shard itself names only it."""
    base = posixpath.basename(shard)
    files = tuple(shard if name == base else f"{shard}/{name}" for name in inner.files)
    return replace(inner, files=files)


def _one_card(name: str, cards: Sequence[Card | None], findings: list[Finding]) -> Card | None:
    different: list[Card] = []
    for card in cards:
        if card is not None and card not in different:
            different.append(card)
    if len(different) > 1:
        message = "several data set cards that contradict each other"
        findings.append(finding("bad-metadata", (name,), message, "keep one of them"))
    return different[0] if different else None


def _read_file(path: Path, source: Source) -> tuple[Part, Card | None]:
    """A single archive or table, with the card inside it."""
    suffix = path.suffix.lower()
    if suffix not in (".zip", ".tar"):
        return _read_table(path, source), None
    members, findings = (list_zip if suffix == ".zip" else list_tar)(path)
    if findings:
        return Part([], findings), None
    members = {n: m for n, m in members.items() if not any(p[:1] == "." for p in n.split("/"))}
    if suffix == ".tar" and (crowded := crowded_samples(list(members))):
        fix = "keep one image per key (the name up to its first dot)"
        return Part([], [bad_archive(path, "samples with several images", crowded, fix)]), None
    cards = _card_names(list(members))
    tree = Tree(path, sort_names(name for name in members if name not in cards), members)
    part = _read_tree(tree, source)
    inner = [parse_card(read_file(tree, name, MAX_TEXT_BYTES), path / name) for name in cards]
    return part, _one_card(path.name, inner, part.findings)


def _read_table(path: Path, source: Source) -> Part:
    rows, findings = list_table(
        path,
        image_column=source.section.image_column,
        caption_column=source.section.caption_column,
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
        fix = "write the images into it again, or remove it from the sources"
        findings.append(finding("no-images", (path.name,), "a table without rows", fix))
    return Part(items, findings, complete=not findings)


def _card_names(names: list[str]) -> list[str]:
    """Cards at the root of an archive or in its only top folder."""
    tops = {name.partition("/")[0] for name in names}
    only = f"{tops.pop()}/{CARD_NAME}" if len(tops) == 1 else CARD_NAME
    return [name for name in names if name in (CARD_NAME, only)]


def _no_images(path: Path, files: FilesByKind) -> Finding:
    others = [*files.metadata, *files.shards, *files.texts, *files.foreign, *files.others]
    kinds = Counter(Path(name).suffix.lower() or "no extension" for name in others)
    listed = ", ".join(f"{n} × {kind}" for kind, n in kinds.most_common(5))
    message = f"no images in {path.name}; it contains {listed or 'nothing'}"
    fix = f"supported extensions: {', '.join(READ_EXTENSIONS)}; archives: "
    return finding("no-images", (), message, fix + ", ".join(SHARD_EXTENSIONS))

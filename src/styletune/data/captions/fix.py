"""Captions mended by rule: proposed first, shown as a diff, written only when told to."""

from __future__ import annotations

import csv
import difflib
import io
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from styletune.data.captions.lint import find_trigger, trigger_of, trigger_place
from styletune.data.findings import Finding
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item
from styletune.errors import Conflict
from styletune.files import write_bytes

METADATA_TEXTS = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True, slots=True)
class CaptionFix:
    """A caption ``before`` and ``after``; ``why`` says what was done, comma-separated."""

    file_name: str
    before: str
    after: str
    why: str


def caption_fixes(
    items: Sequence[Item],
    findings: Sequence[Finding],
    trigger: str | None,
    cards: Mapping[str, Card] | None = None,
) -> list[CaptionFix]:
    """Propose what a rule can mend: space, commas, and the triggers that ``findings`` name.

    A missing trigger is put first; one in other words, case or place is made like the rest.
    Nothing else is touched: what a picture shows is for people to say.

    Args:
        items: the images; those without a caption are passed over.
        findings: of ``caption_findings``; triggers are mended only where these name the file.
        trigger: goes before those of the cards.
        cards: the card of each source, by ``Item.origin``.
    """
    named = {
        code: {file for each in findings if each.code == code for file in each.files}
        for code in ("missing-trigger", "inconsistent-trigger")
    }
    fixes = []
    for item in items:
        if item.text is None or not item.text.strip():
            continue
        text, why = _tidy(item.text)
        wanted = trigger_of(item, cards or {}, trigger)
        if wanted and any(item.file_name in files for files in named.values()):
            text, more = _with_trigger(text, wanted)
            why += more
        if text != item.text:
            fixes.append(CaptionFix(item.file_name, item.text, text, ", ".join(why)))
    return fixes


def _tidy(text: str) -> tuple[str, list[str]]:
    why = []
    spaced = " ".join(text.split())
    if spaced != text:
        why.append("space")
    commas = re.sub(r"\s*,(?:\s*,)*", ",", spaced).strip(", ")
    commas = re.sub(r",(?=[^\s\d])", ", ", commas)
    if commas != spaced:
        why.append("commas")
    return commas, why


def _with_trigger(text: str, trigger: str) -> tuple[str, list[str]]:
    use = find_trigger(text, trigger)
    if use.kind == "missing":
        return f"{trigger}, {text}", ["trigger put first"]
    why = []
    if use.kind != "exact":
        text = text[: use.start] + trigger + text[use.end :]
        use = find_trigger(text, trigger)
        why.append("trigger written like the others")
    # "…, horizon style" can be moved; "… in horizon style" is grammar.
    rest = text[: use.start].rstrip()
    if trigger_place(text, use) == "last" and rest.endswith(","):
        ending = text[use.end :].strip(" ,")
        return f"{trigger}, {rest.rstrip(' ,')}{ending}", [*why, "trigger put first"]
    return text, why


@dataclass(frozen=True, slots=True)
class Applied:
    """``written``: files, sorted; ``left``: images whose caption is in no file that we write."""

    written: tuple[Path, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a caption is: ``line`` counts from 0; None for a file that is one caption."""

    file: Path
    line: int | None
    text: str


def fixes_diff(folder: Path, fixes: Sequence[CaptionFix]) -> str:
    """A unified diff of the captions, under the names of the files that hold them ("" for none).

    Line numbers are those of the file; in metadata a line shows the image and its caption.

    Captions in no such file (in tables, archives, names of folders, the recipe) are named in
    comments at the end.

    Raises:
        Conflict: a caption is not what it was when the fix was proposed.
    """
    by_file: dict[Path, list[tuple[_Place, CaptionFix]]] = {}
    places = _find(folder, fixes)
    for fix in fixes:
        if place := places.get(fix.file_name):
            by_file.setdefault(place.file, []).append((place, fix))
    parts = []
    for file, changes in sorted(by_file.items()):
        name = file.relative_to(folder).as_posix()
        parts += [f"--- a/{name}", f"+++ b/{name}"]
        for place, fix in sorted(changes, key=lambda pair: pair[0].line or 0):
            label = "" if place.line is None else f"{PurePosixPath(fix.file_name).name}: "
            old, new = [_one_line(label + fix.before)], [_one_line(label + fix.after)]
            diff = list(difflib.unified_diff(old, new, lineterm=""))[3:]
            parts += [f"@@ -{(place.line or 0) + 1} +{(place.line or 0) + 1} @@ {fix.why}", *diff]
    elsewhere = "its caption is not in a .txt, .json, metadata.jsonl or metadata.csv"
    parts += [f"# {f.file_name}: {elsewhere}" for f in fixes if f.file_name not in places]
    return "\n".join(parts) + "\n" if parts else ""


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def apply_fixes(folder: Path, fixes: Sequence[CaptionFix]) -> Applied:
    """Write the captions; every file is replaced whole or not at all.

    Other columns, rows, their order and line ends stay as they are; a CSV is quoted anew where it
    must be.

    Args:
        folder: the images, whose names in ``fixes`` are relative to it.
        fixes: of ``caption_fixes``.

    Raises:
        Conflict: a caption is not what it was when the fix was proposed; nothing is written.
        OutputError: a file cannot be written.
    """
    places = _find(folder, fixes)
    by_file: dict[Path, dict[int, str]] = {}
    for fix in fixes:
        if place := places.get(fix.file_name):
            by_file.setdefault(place.file, {})[place.line or 0] = fix.after
    for file, changes in by_file.items():
        content = file.read_bytes()
        bom = b"\xef\xbb\xbf" if content.startswith(b"\xef\xbb\xbf") else b""
        text = _rewritten(file.suffix, content.decode("utf-8-sig"), changes)
        write_bytes(file, bom + text.encode())
    left = tuple(fix.file_name for fix in fixes if fix.file_name not in places)
    return Applied(tuple(sorted(by_file)), left)


def _rewritten(suffix: str, text: str, changes: Mapping[int, str]) -> str:
    if suffix == ".jsonl":
        return _new_jsonl(text, changes)
    if suffix == ".csv":
        return _new_csv(text, changes)
    if suffix == ".json":
        row = json.loads(text)
        changed = row | {"text" if "text" in row else "caption": changes[0]}
        written = json.dumps(changed, ensure_ascii=False, indent=2) + "\n"
        return written.replace("\n", _line_end(text))
    return changes[0] + (_line_end(text) if text.endswith(("\n", "\r")) else "")


def _line_end(text: str) -> str:
    """The first end of a line in a text."""
    found = re.search(r"\r\n?|\n", text)
    return found.group() if found else "\n"


def _read(file: Path) -> str:
    """As captions are read elsewhere: ``read_text`` would make CRLF another text."""
    return file.read_bytes().decode("utf-8-sig")


def _find(folder: Path, fixes: Sequence[CaptionFix]) -> dict[str, _Place]:
    """Where captions are, by image. Raises one Conflict that names all that changed."""
    tables: dict[Path, dict[str, _Place]] = {}
    found = {fix.file_name: _place_of(folder, fix.file_name, tables) for fix in fixes}
    places = {name: place for name, place in found.items() if place is not None}
    changed = [
        fix.file_name
        for fix in fixes
        if (place := places.get(fix.file_name)) and place.text.strip() != fix.before.strip()
    ]
    if changed:
        raise Conflict(
            f"captions changed since the fixes were proposed: {', '.join(changed[:5])}"
            + (f" and {len(changed) - 5} more" if len(changed) > 5 else ""),
            where=str(folder),
            fix="propose the fixes again",
        )
    return places


def _place_of(folder: Path, file_name: str, tables: dict[Path, dict[str, _Place]]) -> _Place | None:
    """The file and line that hold an image's caption; None when it is in none that we write."""
    # Metadata first: it is what counts when rights beside an image say nothing of a caption.
    for parent in PurePosixPath(file_name).parents:
        for name in METADATA_TEXTS:
            file = folder / parent / name
            if file not in tables:
                tables[file] = _captions_of(file, parent.as_posix()) if file.is_file() else {}
            if file_name in tables[file]:
                return tables[file][file_name]
    text = (folder / file_name).with_suffix(".txt")
    if text.is_file():
        return _Place(text, None, _read(text))
    record = (folder / file_name).with_suffix(".json")
    if record.is_file():
        row = json.loads(_read(record))
        caption = row.get("text", row.get("caption")) if isinstance(row, dict) else None
        return _Place(record, None, caption) if isinstance(caption, str) else None
    return None


def _captions_of(file: Path, parent: str) -> dict[str, _Place]:
    """The captions of a metadata file, by image name relative to the data folder."""
    text = _read(file)
    rows = _jsonl(text) if file.suffix == ".jsonl" else _csv(text)
    return {
        posixpath.normpath(posixpath.join(parent, row["file_name"])): _Place(
            file, line, row["text"]
        )
        for line, row in rows
        if isinstance(row.get("file_name"), str) and isinstance(row.get("text"), str)
    }


def _jsonl(text: str) -> list[tuple[int, dict[str, Any]]]:
    lines = enumerate(text.split("\n"))
    return [(number, json.loads(line)) for number, line in lines if line.strip()]


def _csv(text: str) -> list[tuple[int, dict[str, Any]]]:
    """Rows by their number, the header being 0; quoted ones may take more than one line."""
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    header = next(row for row in rows if row)
    return [(n, dict(zip(header, row, strict=False))) for n, row in enumerate(rows) if row][1:]


def _new_jsonl(text: str, changes: Mapping[int, str]) -> str:
    lines = text.split("\n")
    for number, after in changes.items():
        end = "\r" if lines[number].endswith("\r") else ""
        row = json.loads(lines[number]) | {"text": after}
        lines[number] = json.dumps(row, ensure_ascii=False) + end
    return "\n".join(lines)


def _new_csv(text: str, changes: Mapping[int, str]) -> str:
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    column = next(row for row in rows if row).index("text")
    for number, after in changes.items():
        rows[number][column] = after
    out = io.StringIO(newline="")
    end = _line_end(text)
    csv.writer(out, lineterminator=end).writerows(rows)
    return out.getvalue() if text.endswith(("\n", "\r")) else out.getvalue().removesuffix(end)

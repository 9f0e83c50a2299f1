"""Captions fixed by rules: proposed first, shown as a diff, written only on request."""

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

from styletune.data.captions.lint import find_trigger, trigger_of, trigger_position
from styletune.data.findings import Finding, shorten
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item
from styletune.data.sources.records import csv_records, jsonl_records
from styletune.errors import Conflict
from styletune.files import write_bytes

METADATA_TEXTS = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True, slots=True)
class CaptionFix:
    """A caption ``before`` and ``after``; ``why`` lists what was done, comma-separated."""

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
    """Propose what a rule can fix: spaces, commas, and the triggers that ``findings`` name.

    A missing trigger is put first; one in another spelling, case or position is made like the
    rest. Nothing else is touched: what a picture shows is for people to write.

    Args:
        items: the images; those without a caption are skipped.
        findings: of ``caption_findings``; triggers are fixed only in the files that these name.
        trigger: overrides those of the cards.
        cards: the card of each source, by ``Item.origin``.
    """
    wrong_trigger = {
        file
        for finding in findings
        if finding.code in ("missing-trigger", "inconsistent-trigger")
        for file in finding.files
    }
    fixes = []
    for item in items:
        if item.text is None or not item.text.strip():
            continue
        text, why = _tidy(item.text)
        declared = trigger_of(item, cards or {}, trigger)
        if declared and item.file_name in wrong_trigger:
            text, more = _with_trigger(text, declared)
            why += more
        if text != item.text:
            fixes.append(CaptionFix(item.file_name, item.text, text, ", ".join(why)))
    return fixes


def _tidy(text: str) -> tuple[str, list[str]]:
    why = []
    spaced = " ".join(text.split())
    if spaced != text:
        why.append("spaces")
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
        why.append("trigger spelled like the others")
    # "…, horizon style" can be moved; "… in horizon style" is grammar.
    rest = text[: use.start].rstrip()
    if trigger_position(text, use) == "last" and rest.endswith(","):
        ending = text[use.end :].strip(" ,")
        return f"{trigger}, {rest.rstrip(' ,')}{ending}", [*why, "trigger put first"]
    return text, why


@dataclass(frozen=True, slots=True)
class AppliedFixes:
    """``written``: files, sorted; ``left``: images whose caption is in no file we can write."""

    written: tuple[Path, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A caption on disk: ``line`` counts from 1; None for a file that is one caption."""

    file: Path
    line: int | None
    text: str


def fixes_diff(folder: Path, fixes: Sequence[CaptionFix]) -> str:
    """A unified diff of the captions, under the names of the files that contain them ("" for none).

    Line numbers are those of the file; in metadata a line shows the image and its caption.
    Captions in no such file (in tables, archives, names of folders, the recipe) are named in
    comments at the end.

    Raises:
        Conflict: a caption is not what it was when the fix was proposed.
    """
    by_file: dict[Path, list[tuple[_Stored, CaptionFix]]] = {}
    captions = _stored_captions(folder, fixes)
    for fix in fixes:
        if stored := captions.get(fix.file_name):
            by_file.setdefault(stored.file, []).append((stored, fix))
    parts = []
    for file, changes in sorted(by_file.items()):
        name = file.relative_to(folder).as_posix()
        parts += [f"--- a/{name}", f"+++ b/{name}"]
        for stored, fix in sorted(changes, key=lambda pair: pair[0].line or 1):
            label = "" if stored.line is None else f"{PurePosixPath(fix.file_name).name}: "
            old, new = [_one_line(label + fix.before)], [_one_line(label + fix.after)]
            diff = list(difflib.unified_diff(old, new, lineterm=""))[3:]
            parts += [f"@@ -{stored.line or 1} +{stored.line or 1} @@ {fix.why}", *diff]
    elsewhere = "its caption is not in a .txt, .json, metadata.jsonl or metadata.csv"
    parts += [f"# {f.file_name}: {elsewhere}" for f in fixes if f.file_name not in captions]
    return "\n".join(parts) + "\n" if parts else ""


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def apply_fixes(folder: Path, fixes: Sequence[CaptionFix]) -> AppliedFixes:
    """Write the captions; every file is replaced completely or not at all.

    Other columns, rows, their order and line endings stay as they are; a CSV is quoted anew where
    needed.

    Args:
        folder: the images; their names in ``fixes`` are relative to it.
        fixes: of ``caption_fixes``.

    Raises:
        Conflict: a caption is not what it was when the fix was proposed; nothing is written.
        OutputError: a file cannot be written.
    """
    captions = _stored_captions(folder, fixes)
    by_file: dict[Path, dict[int, str]] = {}
    for fix in fixes:
        if stored := captions.get(fix.file_name):
            by_file.setdefault(stored.file, {})[stored.line or 1] = fix.after
    for file, changes in by_file.items():
        content = file.read_bytes()
        bom = b"\xef\xbb\xbf" if content.startswith(b"\xef\xbb\xbf") else b""
        text = _rewritten(file.suffix, content.decode("utf-8-sig"), changes)
        write_bytes(file, bom + text.encode())
    left = tuple(fix.file_name for fix in fixes if fix.file_name not in captions)
    return AppliedFixes(tuple(sorted(by_file)), left)


def _rewritten(suffix: str, text: str, changes: Mapping[int, str]) -> str:
    """The text of a caption file with some captions changed, by line."""
    if suffix == ".jsonl":
        return _new_jsonl(text, changes)
    if suffix == ".csv":
        return _new_csv(text, changes)
    if suffix == ".json":
        row = json.loads(text)
        changed = row | {"text" if "text" in row else "caption": changes[1]}
        written = json.dumps(changed, ensure_ascii=False, indent=2) + "\n"
        return written.replace("\n", _line_ending(text))
    return changes[1] + (_line_ending(text) if text.endswith(("\n", "\r")) else "")


def _line_ending(text: str) -> str:
    """The first line ending in a text."""
    match = re.search(r"\r\n?|\n", text)
    return match.group() if match else "\n"


def _read(file: Path) -> str:
    """As captions are read elsewhere: ``read_text`` would change CRLF."""
    return file.read_bytes().decode("utf-8-sig")


def _stored_captions(folder: Path, fixes: Sequence[CaptionFix]) -> dict[str, _Stored]:
    """The captions on disk, by image. Raises one Conflict that names all that changed."""
    tables: dict[Path, dict[str, _Stored]] = {}
    located = {fix.file_name: _stored_caption(folder, fix.file_name, tables) for fix in fixes}
    captions = {name: stored for name, stored in located.items() if stored is not None}
    changed = [
        fix.file_name
        for fix in fixes
        if (stored := captions.get(fix.file_name)) and stored.text.strip() != fix.before.strip()
    ]
    if changed:
        raise Conflict(
            f"captions changed since the fixes were proposed: {shorten(changed)}",
            where=str(folder),
            fix="propose the fixes again",
        )
    return captions


def _stored_caption(
    folder: Path, file_name: str, tables: dict[Path, dict[str, _Stored]]
) -> _Stored | None:
    """An image's caption on disk; None if it is in no file that we can write."""
    # Metadata first: it wins over rights next to an image that come without a caption.
    for parent in PurePosixPath(file_name).parents:
        for name in METADATA_TEXTS:
            file = folder / parent / name
            if file not in tables:
                tables[file] = _metadata_captions(file, parent) if file.is_file() else {}
            if file_name in tables[file]:
                return tables[file][file_name]
    text = (folder / file_name).with_suffix(".txt")
    if text.is_file():
        return _Stored(text, None, _read(text))
    record = (folder / file_name).with_suffix(".json")
    if record.is_file():
        row = json.loads(_read(record))
        caption = row.get("text", row.get("caption")) if isinstance(row, dict) else None
        return _Stored(record, None, caption) if isinstance(caption, str) else None
    return None


def _metadata_captions(file: Path, parent: PurePosixPath) -> dict[str, _Stored]:
    """The captions of a metadata file, by image name relative to the data folder."""
    text = _read(file)
    captions = {}
    for line, row in jsonl_records(text) if file.suffix == ".jsonl" else csv_records(text):
        if isinstance(row, dict):
            name, caption = row.get("file_name"), row.get("text")
            if isinstance(name, str) and isinstance(caption, str):
                image = posixpath.normpath(posixpath.join(parent, name))
                captions[image] = _Stored(file, line, caption)
    return captions


def _new_jsonl(text: str, changes: Mapping[int, str]) -> str:
    lines = text.split("\n")
    for number, after in changes.items():
        end = "\r" if lines[number - 1].endswith("\r") else ""
        row = json.loads(lines[number - 1]) | {"text": after}
        lines[number - 1] = json.dumps(row, ensure_ascii=False) + end
    return "\n".join(lines)


def _new_csv(text: str, changes: Mapping[int, str]) -> str:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, column = [], None
    for cells in reader:
        if column is None and cells:
            column = cells.index("text")
        elif column is not None and reader.line_num in changes:
            cells[column] = changes[reader.line_num]
        rows.append(cells)
    out = io.StringIO(newline="")
    end = _line_ending(text)
    csv.writer(out, lineterminator=end).writerows(rows)
    return out.getvalue() if text.endswith(("\n", "\r")) else out.getvalue().removesuffix(end)

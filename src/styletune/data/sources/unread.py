"""What lies among the images and would be ignored: captions without an image, images unnamed."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence

from styletune.data.findings import Finding, Severity, agree, finding, shorten
from styletune.data.sources.files import FilesByKind

_CAPTION_SUFFIXES = (".txt", ".json", ".caption", ".cap")
# Files that people write words into, and what editors leave of captions.
_WRITTEN = re.compile(
    r"\.(text|md|markdown|rtf|docx?|odt|pages|captions|tags|prompt|tsv|ya?ml)"
    r"|\.(txt|json|caption|cap)(~|\.(bak|old|orig|save|swp|tmp))",
    re.IGNORECASE,
)
# Files of a project that nobody means as a caption.
_NOT_CAPTIONS = re.compile(
    r"(read ?me|licen[cs]e|notice|copying|credits|authors|changelog|attribution|requirements"
    r"|dataset[_-]?infos?|config|package|index|state|tags|labels|classes|prompts?)([._ -].*)?",
    re.IGNORECASE,
)


def unread_findings(
    files: FilesByKind, key_of: Mapping[str, str], bare: Sequence[str], *, is_tar: bool
) -> list[Finding]:
    """Files that look like captions but belong to no image, and images without an extension.

    An error where an image has no caption of its own, which would then be lost in silence:
    a default caption would take its place. Otherwise a warning.

    Args:
        files: of a folder or archive.
        key_of: what an image and the files next to it share, by name.
        bare: images without a caption of their own.
        is_tar: samples of a WebDataset, where every text belongs to an image.
    """
    keys = {key_of[name] for name in files.images}
    if not keys:
        return []
    missing = {key_of[name] for name in bare}
    folded = {name.casefold() for name in (*files.images, *keys)}
    strays: list[str] = []
    near: list[str] = []
    nameless: list[str] = []
    without_words: list[str] = []
    written_beside: list[str] = []
    captioned: list[str] = []
    texts = {key_of[name] for name in (*files.texts, *files.others) if _is_caption(name)}
    for name in (*files.texts, *files.others):
        stem, suffix = posixpath.splitext(name)
        if match := _WRITTEN.search(name):
            written = match.end() == len(name) and name[: match.start()] in missing
            written_beside += [name] * written
        if not suffix and name in texts:
            nameless.append(name)
        if not _is_caption(name):
            continue
        if key_of[name] in keys and suffix in (".txt", ".json"):
            if suffix == ".json" and key_of[name] in missing:
                without_words.append(name)
        elif stem.casefold() in folded:
            (near if key_of[name] in missing or key_of[name] not in keys else captioned).append(
                name
            )
        elif is_tar or not _NOT_CAPTIONS.fullmatch(posixpath.basename(stem)):
            strays.append(name)
    findings: list[Finding] = []

    def report(names: list[str], what: str, fix: str, severity: Severity) -> None:
        if names:
            findings.append(finding("unread-caption-file", sorted(names), what, fix, severity))

    lost = bool(bare) or is_tar
    report(
        [*near, *written_beside, *strays] if lost else near,
        "caption files that belong to no image",
        "name each like its image, with .txt in place of the extension, or remove it",
        "error",
    )
    report(
        without_words,
        'JSON files next to images, without "text" or "caption"',
        'call the caption "text", or remove the files',
        "error",
    )
    report(
        [] if lost else strays,
        "text files that belong to no image",
        "remove them, or name them like their images",
        "warning",
    )
    report(
        captioned,
        "caption files beside images that have a caption elsewhere",
        "remove them, or move their words there",
        "warning",
    )
    if nameless:
        message = f"{shorten(nameless)} {agree(len(nameless), 'have a caption')}, but no extension"
        fix = "if it is an image, add its extension, such as .png"
        findings.append(finding("foreign-file", nameless, message, fix))
    return findings


def _is_caption(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in _CAPTION_SUFFIXES

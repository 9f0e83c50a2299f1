"""Findings: what a check says about a set of images, and how serious each kind is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from styletune.errors import DataError
from styletune.text import visible

Severity = Literal["error", "warning", "fact"]

# Every code with its usual severity and its line in the manual.
CODES: dict[str, tuple[Severity, str]] = {
    "unreadable-image": ("error", "cannot be decoded: damaged, too large, animated, not an image"),
    "undeclared-background": ("error", "transparent pixels, but no background is declared"),
    "foreign-file": ("error", "an image format that is not supported"),
    "broken-file": ("error", "not a file, a broken link, or no permission to read it"),
    "no-images": ("error", "a source without images"),
    "bad-archive": ("error", "an archive or table that is damaged or unsafe to open"),
    "bad-metadata": ("error", "a metadata file that cannot be used"),
    "missing-caption": ("error", "no caption, and no default caption"),
    "empty-caption": ("error", "a caption without text"),
    "ambiguous-caption": ("error", "two captions for one image"),
    "unread-caption-file": ("error", "a caption file whose name is not recognized"),
    "placeholder": ("error", "a template's placeholder is still in the caption"),
    "odd-characters": ("warning", "invisible characters, or letters in a wrong encoding"),
    "too-long-caption": ("error", "longer than CLIP's 77 tokens; the end would be cut off"),
    "too-small": ("error", "would be enlarged more than 1.25 times"),
    "bad-mask": ("error", "a mask that is missing or does not fit its image"),
    "opt-out": ("error", "its XMP metadata prohibits training on it"),
    "missing-rights": ("error", "license, holder, consent or source is not declared"),
    "bad-license": ("error", "not an SPDX license id or LicenseRef-…"),
    "cannot-split": ("error", "too few different pictures to hold some out"),
    "exact-duplicates": ("warning", "the same pixels more than once"),
    "near-duplicates": ("warning", "variants of one picture"),
    "same-motif": ("warning", "different pictures of nearly the same thing"),
    "duplicate-captions": ("warning", "one caption for several different images"),
    "missing-trigger": ("warning", "the trigger is not in the caption"),
    "inconsistent-trigger": ("warning", "the trigger is spelled or placed inconsistently"),
    "cropped": ("warning", "the crop cuts a lot away"),
    "upscaled": ("warning", "enlarged slightly"),
    "extreme-aspect": ("warning", "very wide or very tall"),
    "blurred": ("warning", "probably out of focus or enlarged before"),
    "flat": ("warning", "almost no detail"),
    "dark": ("warning", "almost black"),
    "bright": ("warning", "almost white"),
    "letterboxed": ("warning", "bars of one color at the edges"),
    "outlier": ("warning", "looks very different from the others"),
    "off-palette": ("warning", "colors very different from the others"),
    "restricted-license": ("warning", "NoDerivatives or NonCommercial: limits use of the adapter"),
    "machine-captions": ("fact", "captions written by a model"),
    "converted-color": ("fact", "converted to sRGB using its color profile"),
    "turned": ("fact", "rotated upright"),
    "composited": ("fact", "transparent pixels placed on the background"),
    "repeats": ("fact", "shown more than once per epoch"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about the set, and what to do about it.

    ``code`` is one of ``CODES``; ``files`` the file names concerned; ``fix`` the smallest change
    that resolves it. An error stops training, unless the recipe lowers it to a warning.
    """

    code: str
    files: tuple[str, ...]
    message: str
    fix: str
    severity: Severity = "warning"


def finding(
    code: str, files: Sequence[str], message: str, fix: str, severity: Severity | None = None
) -> Finding:
    """A finding of one of ``CODES``, with the usual severity of its code unless given."""
    return Finding(code, tuple(files), message, fix, severity or CODES[code][0])


def count_images(count: int) -> str:
    """``"1 image"`` or ``"3 images"``."""
    return "1 image" if count == 1 else f"{count} images"


def agree(count: int, verb: str) -> str:
    """``agree(1, "have no caption")`` is "has no caption"; other counts leave it as it is."""
    if count != 1:
        return verb
    first, _, rest = verb.partition(" ")
    singular = {"are": "is", "have": "has", "do": "does"}.get(first, f"{first}s")
    return f"{singular} {rest}"


def first_few(details: Mapping[str, str], most: int = 5) -> str:
    """``"a.png (0.21) and 3 more"``: the first names, each with its detail."""
    listed = ", ".join(f"{name} ({detail})" for name, detail in list(details.items())[:most])
    rest = len(details) - most
    return listed + (f" and {rest} more" if rest > 0 else "")


def finding_line(finding: Finding, most: int = 5) -> str:
    """A finding as one line: its message, and its files if the message names none of them."""
    if not finding.files or any(name in finding.message for name in finding.files):
        return finding.message
    rest = len(finding.files) - most
    listed = ", ".join(finding.files[:most]) + (f" and {rest} more" if rest > 0 else "")
    return f"{finding.message}: {listed}"


def data_error(where: str, errors: Sequence[Finding]) -> DataError:
    """All errors of a set in one exception, each printed with its own fix behind it."""
    *others, last = errors
    lines = [*(f"{finding_line(e)}\n  fix: {e.fix}" for e in others), finding_line(last)]
    return DataError("\n".join(lines), where=where, fix=last.fix)


def printable(name: str) -> str:
    """A name as plain text: bytes that are not UTF-8, and control characters, are escaped."""
    return visible(name).encode("utf-8", "backslashreplace").decode()


def shorten(names: Sequence[str], most: int = 5) -> str:
    """``"a.png, b.png and 3 more"``: the first few names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def bad_archive(path: Path, what: str, members: list[str], fix: str) -> Finding:
    """The finding about an archive or table that is not opened."""
    listed = f": {shorten([printable(m) for m in members])}" if members else ""
    return finding("bad-archive", (path.name,), f"{what}{listed}", fix)

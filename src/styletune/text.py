"""Text files that people write: recipes, cards, captions, metadata, prompts; all read one way.

UTF-8, with or without a byte order mark, from a regular file of a bounded size. A fault is a
``ValueError`` whose message says what is wrong and what to do; callers add the place.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from pathlib import Path

# Far above what a person writes, far below what hurts.
MAX_TEXT_BYTES = 1 << 20
# CLIP ends at <|endoftext|>, also in the middle of a text.
CONTROL_WORDS = re.compile(r"<\|[^|\n]{1,40}\|>")
# C0 but for tab and line ends, DEL and C1: none of them is a word to a text encoder.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

# The same, and what Python makes of a byte that is not UTF-8 (PEP 383).
_ESCAPED = re.compile(f"{_CONTROLS.pattern[:-1]}\udc80-\udcff]")
# What no reader sees and every tokenizer does: zero-width spaces, marks of direction, soft
# hyphens. Not the joiners, which some scripts and emoji need.
_INVISIBLE = re.compile("[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
# A letter beyond ASCII in UTF-8 that was read as Windows-1252.
_MISREAD = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013\u2014\u2018-\u201a\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]+"
)


def read_bounded(file: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a regular file.

    A pipe or device is refused before it is read, because reading it may never end.

    Raises:
        ValueError: not a regular file, or larger than ``max_bytes``.
        OSError: as ``open``.
    """
    # Without O_NONBLOCK opening a pipe would wait for its writer.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is not a regular file")
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"is larger than {_size_words(max_bytes)}")
    return content


def _size_words(num_bytes: int) -> str:
    """A size in MiB or kiB, for messages."""
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} kiB"


def decode_text(content: bytes) -> str:
    """UTF-8 text without its byte order mark. Raises ValueError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8 text: save it as UTF-8") from None
    if problem := control_problem(text):
        raise ValueError(problem)
    return text


def read_text(file: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a file. Raises as ``read_bounded`` and ``decode_text``."""
    return decode_text(read_bounded(file, max_bytes))


def control_problem(text: str) -> str:
    """What is wrong with a text that holds control characters or has lost letters; "" for
    ordinary text.

    Text in UTF-16 that was read as UTF-8 is mostly NUL characters, and no tokenizer refuses them.
    """
    found = _CONTROLS.search(text)
    if found is None:
        return _damaged(text)
    line = text.count("\n", 0, found.start()) + 1
    if found[0] == "\0":
        return f"line {line} holds NUL characters: probably UTF-16; save it as UTF-8"
    return f"line {line} holds the control character U+{ord(found[0]):04X}: remove it"


def _damaged(text: str) -> str:
    """What is wrong with a text that has lost letters; "" for ordinary text."""
    if "\ufffd" not in text:
        return ""
    line = text.count("\n", 0, text.index("\ufffd")) + 1
    return f"line {line} holds U+FFFD, left where a letter was lost: write the letter again"


def control_word_problem(text: str) -> str:
    """What is wrong with a prompt that holds a control word of CLIP's; "" for an ordinary one."""
    found = CONTROL_WORDS.search(text)
    if found is None:
        return ""
    return f"holds {found[0]}, a control word of CLIP's: what comes after is not read"


def odd_characters(text: str) -> str:
    """Characters that nobody meant to write: invisible ones, or letters read in a wrong encoding;
    "" for ordinary text.
    """
    if found := _INVISIBLE.search(text):
        return f"the invisible U+{ord(found[0]):04X}"
    for found in _MISREAD.finditer(text):
        try:
            meant = found[0].encode("cp1252").decode()
        except UnicodeError:
            continue
        return f'"{found[0]}", probably "{meant}"'
    return ""


def has_words(text: str) -> bool:
    """Whether a text says anything: a letter, a digit or a symbol such as an emoji."""
    return any(c.isalnum() or unicodedata.category(c) == "So" for c in text)


def visible(text: str) -> str:
    """The text for a terminal: control characters, which could steer it, and bytes of names that
    are not UTF-8 are escaped.
    """
    return _ESCAPED.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", text)

"""How many tokens a caption has: as a base model counts them, or without one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from styletune.models.families import DEFAULT_FAMILY

# A token is at least one byte (one Japanese letter may be three tokens).
_MOST_BYTES = DEFAULT_FAMILY.max_tokens - 2


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """``count`` of a text's tokens, start and end included; ``limit`` is the most that are read."""

    count: Callable[[str], int]
    limit: int


def clip_tokens(text: str) -> int:
    """CLIP tokens of a text, including start and end; an upper bound where that is at most 77.

    The vocabulary is CLIP's own, which SDXL's first text encoder uses.
    """
    size = len(text.lower().encode())  # as CLIP reads it
    if size <= _MOST_BYTES:
        return 2 + size
    return 2 + len(_clip_tokenizer().encode(text))


@functools.cache
def _clip_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


# For checks without a base model.
CLIP_TOKENS = TokenCounter(clip_tokens, DEFAULT_FAMILY.max_tokens)

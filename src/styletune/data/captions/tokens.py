"""How many CLIP tokens a caption has, for checks without a base model."""

from __future__ import annotations

import functools
from typing import Any

# What CLIP reads, including the tokens of start and end (arXiv 2103.00020, §2.4).
MAX_TOKENS = 77
# A token is at least one byte (one Japanese letter may be three tokens).
_MOST_BYTES = MAX_TOKENS - 2


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

"""How many tokens a caption has: as a base model counts them, or without one."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
    # The module alone: importing the package imports every vision model, which takes seconds.
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("styletune_open_clip_tokenizer", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


# For checks without a base model.
CLIP_TOKENS = TokenCounter(clip_tokens, DEFAULT_FAMILY.max_tokens)

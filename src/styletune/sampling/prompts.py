"""The words that images are generated from."""

from __future__ import annotations

from styletune.data.captions.lint import find_trigger


def prompt_with_trigger(prompt: str, trigger: str) -> str:
    """The prompt, after the trigger unless it has it already as words, in any case: CLIP reads
    lowercase. Every column gets the same.
    """
    has_it = not trigger or find_trigger(prompt, trigger).kind in ("exact", "case")
    return prompt if has_it else f"{trigger}, {prompt}"

"""The words that images are generated from."""

from __future__ import annotations

from collections.abc import Mapping

from styletune.data.captions.lint import find_trigger
from styletune.errors import DataError
from styletune.text import control_word_problem


def check_prompts(prompts: Mapping[str, str], *, where: str = "") -> None:
    """Refuse prompts of which the text encoders would not see the end.

    Args:
        prompts: by a name for the error.
        where: the file that they are from.

    Raises:
        DataError: one holds a control word of CLIP's.
    """
    for name, prompt in prompts.items():
        if problem := control_word_problem(prompt):
            raise DataError(f"{name} {problem}", where=where, fix="remove it")


def prompt_with_trigger(prompt: str, trigger: str) -> str:
    """The prompt, after the trigger unless it has it already as words, in any case: CLIP reads
    lowercase. Every column gets the same.
    """
    has_it = not trigger or find_trigger(prompt, trigger).kind in ("exact", "case")
    return prompt if has_it else f"{trigger}, {prompt}"

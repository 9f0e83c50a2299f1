"""The words that images are generated from."""

from __future__ import annotations


def prompt_with_trigger(prompt: str, trigger: str) -> str:
    """The prompt, after the trigger unless it has it already; every column gets the same."""
    return f"{trigger}, {prompt}" if trigger and trigger not in prompt else prompt

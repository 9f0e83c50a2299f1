"""The words that images are generated from."""

from __future__ import annotations

import pytest

from styletune.errors import DataError
from styletune.sampling.prompts import check_prompts, prompt_with_trigger


@pytest.mark.parametrize(
    ("prompt", "trigger", "expected"),
    [
        ("a party at noon", "art", "art, a party at noon"),
        ("art deco at noon", "art", "art deco at noon"),
        ("horizon style, the sea", "Horizon style", "horizon style, the sea"),
        ("the sea, horizon style", "horizon style", "the sea, horizon style"),
        ("horizon stylede sea", "horizon style", "horizon style, horizon stylede sea"),
        ("the sea", "", "the sea"),
        ("a <acme>", "<acme>", "a <acme>"),
        ("c++ on a wall", "c++", "c++ on a wall"),
    ],
)
def test_the_trigger_is_a_word_of_its_own(prompt: str, trigger: str, expected: str) -> None:
    """It comes in front unless it is there, as words and in any case; never twice."""
    assert prompt_with_trigger(prompt, trigger) == expected
    assert prompt_with_trigger(expected, trigger) == expected


def test_a_prompt_that_ends_in_the_middle_is_refused() -> None:
    """Language models leave such words; the text encoder reads nothing behind them."""
    check_prompts({"prompt 1": "a <b> | house |> or <| tent"})
    with pytest.raises(DataError, match=r"^prompt 2 holds <\|endoftext\|>"):
        check_prompts({"prompt 1": "a house", "prompt 2": "sea <|endoftext|> a house"})

"""Variants of captions."""

from __future__ import annotations

from collections import Counter

import pytest

from styletune.data.captions.variants import caption_variants

TEXT = "horizon style, mountains, sunset, birds, mist"
PARTS = ["horizon style", "mountains", "sunset", "birds", "mist"]


def parts(text: str) -> list[str]:
    return text.split(", ")


def test_the_first_variant_is_the_caption() -> None:
    """It is kept as it was written, whatever else is asked for."""
    odd = "a,b ,  c,"
    made = caption_variants(odd, 3, shuffle=True, keep_first=0, tag_dropout=0.9, seed=0)
    assert made[0] == odd
    assert len(made) == 3


def test_shuffling_keeps_every_part() -> None:
    """Orders differ, parts do not, and those to be kept first stay in front."""
    made = caption_variants(TEXT, 16, shuffle=True, keep_first=2, tag_dropout=0, seed=1)
    assert all(sorted(parts(text)) == sorted(PARTS) for text in made)
    assert all(parts(text)[:2] == PARTS[:2] for text in made)
    assert len(set(made)) == 6  # all orders of the other three


def test_every_order_is_as_likely() -> None:
    """Over many variants each part comes first in a third of them."""
    made = caption_variants("a, b, c", 6001, shuffle=True, keep_first=0, tag_dropout=0, seed=3)
    counts = Counter(made[1:])
    assert len(counts) == 6
    assert all(abs(count - 1000) < 120 for count in counts.values())


def test_parts_are_dropped_at_the_asked_rate() -> None:
    """Dropout hits only the parts after the kept ones, each on its own, in the old order."""
    made = caption_variants(TEXT, 4001, shuffle=False, keep_first=1, tag_dropout=0.25, seed=2)[1:]
    for part in PARTS[1:]:
        share = sum(part not in parts(text) for text in made) / len(made)
        assert share == pytest.approx(0.25, abs=0.03)
    assert all(parts(text)[0] == PARTS[0] for text in made)
    assert all(parts(text) == [p for p in PARTS if p in parts(text)] for text in made)


def test_a_variant_is_never_empty() -> None:
    """Where everything would be dropped, one part stays; not always the same one."""
    made = caption_variants("a, b", 400, shuffle=False, keep_first=0, tag_dropout=0.99, seed=0)
    assert set(made[1:]) >= {"a", "b"}
    assert "" not in made
    assert set(caption_variants("one", 9, shuffle=True, keep_first=0, tag_dropout=0.9, seed=0)) == {
        "one"
    }


def test_variants_follow_seed_and_text_alone() -> None:
    """The same call gives the same, more variants begin with fewer, seed and text change them."""

    def make(text: str, k: int, seed: int) -> list[str]:
        return caption_variants(text, k, shuffle=True, keep_first=0, tag_dropout=0.3, seed=seed)

    assert make(TEXT, 8, 5) == make(TEXT, 8, 5)
    assert make(TEXT, 8, 5)[:4] == make(TEXT, 4, 5)
    assert make(TEXT, 8, 5) != make(TEXT, 8, 6)
    assert make("a, b, c, d", 2, 5)[1] != make("a, b, c, e", 2, 5)[1].replace("e", "d")
    # Written down: another stream of numbers would make a resumed run differ from a whole one.
    assert make("a, b, c, d", 4, 0) == ["a, b, c, d", "d, b, a", "b, a, d", "b, c"]

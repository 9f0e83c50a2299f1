"""The data set card."""

from __future__ import annotations

from pathlib import Path

import pytest

from styletune.data.sources.card import load_card
from styletune.errors import RecipeError


def write(folder: Path, text: str) -> Path:
    (folder / "dataset.toml").write_text(text)
    return folder


def test_a_folder_without_card_has_none(tmp_path: Path) -> None:
    """No file is no card, and no error."""
    assert load_card(tmp_path) is None


def test_a_full_card_is_read(tmp_path: Path) -> None:
    """Every key arrives, the palette as a tuple in its order."""
    text = 'name = "n"\nholder = "h"\nlicense = "MIT"\nsource = "s"\nconsent = "c"\n'
    text += 'trigger = "brandlook"\npalette = ["#282a36", "#FF79C6"]\nbackground = "#ffffff"\n'
    card = load_card(write(tmp_path, text + 'description = "d"\n'))
    assert card is not None
    assert card.palette == ("#282a36", "#FF79C6")
    assert (card.license, card.trigger, card.background) == ("MIT", "brandlook", "#ffffff")


def test_an_empty_card_is_a_card(tmp_path: Path) -> None:
    """Every key may be left out."""
    card = load_card(write(tmp_path, ""))
    assert card is not None
    assert card.palette == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('palette = ["#282a3"]', "palette"),
        ('palette = "#282a36"', "palette"),
        ('background = "white"', "background"),
        ("trigger = 3", "trigger"),
        ('trigger = " "', "trigger"),
        ('licence = "MIT"', 'did you mean "license"'),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A misspelled key, a wrong type and a color that is none are errors that name the key."""
    with pytest.raises(RecipeError) as caught:
        load_card(write(tmp_path, text))
    assert said in str(caught.value)
    assert "dataset.toml" in caught.value.where

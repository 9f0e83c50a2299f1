"""Texts that people write: one reader for recipes, suites, cards, captions, metadata, prompts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_parts import check_folder
from job_parts import CARD, SUITE, Answer
from styletune.errors import RecipeError
from styletune.recipe.toml import parse_toml, read_toml
from styletune.scoring.suite import load_suite
from styletune.text import (
    decode_text,
    has_words,
    odd_characters,
    read_bounded,
    read_text,
    visible,
)

Command = Callable[..., Answer]
BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_word(tmp_path: Path) -> None:
    """Notepad writes one; it is dropped everywhere."""
    (tmp_path / "a.txt").write_bytes(BOM + "été\n".encode())
    assert read_text(tmp_path / "a.txt") == "été\n"
    (tmp_path / "suite.toml").write_bytes(BOM + SUITE.encode())
    assert load_suite(tmp_path / "suite.toml").name == "small"
    assert parse_toml(BOM + CARD.encode(), "card")["name"] == "Small"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a city".encode("utf-16-le"), "line 1 holds NUL characters: probably UTF-16"),
        (b"a\ncity\x1b[31m", "line 2 holds the control character U+001B"),
        ("a city".encode("utf-16"), "line 1 is not UTF-8 text: save it as UTF-8"),
        ("first\n\xe9t\xe9".encode("latin-1"), "line 2 is not UTF-8 text"),
        (b"a\x85b\xc2\x85", "not UTF-8"),
        (b"a\xc2\x85b", "U+0085"),
        ("a city\nby the s\ufffda".encode(), "line 2 holds U+FFFD"),
    ],
)
def test_what_is_not_plain_text_is_refused(content: bytes, part: str) -> None:
    """With the line, and what to save it as."""
    with pytest.raises(ValueError, match="line") as caught:
        decode_text(content)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cafÃ© by the sea", '"Ã©", probably "é"'),
        ("dawn â€“ the sea", '"â€“", probably "–"'),
        ("a\u200b city", "U+200B"),
        ("\u202ea city", "U+202E"),
        ("“Größe” – naïve café, 10 °C, Ærø, Żółć", ""),
        ("👨\u200d👩\u200d👧 on a beach", ""),
        ("می\u200cخواهم", ""),
    ],
)
def test_characters_that_nobody_meant_are_found(text: str, part: str) -> None:
    """Misread and invisible ones; not the joiners that scripts and emoji need."""
    found = odd_characters(text)
    assert part in found
    assert bool(found) == bool(part)


def test_endless_files_are_not_read(tmp_path: Path) -> None:
    """A pipe, a device and a file above the limit are refused at once."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(bytes(3000))
    started = time.monotonic()
    for name, limit, part in (
        ("pipe", 1000, "not a regular file"),
        ("zero", 1000, "not a regular file"),
        ("large", 2048, "larger than 2 kiB"),
    ):
        with pytest.raises(ValueError, match=part):
            read_bounded(tmp_path / name, limit)
    assert time.monotonic() - started < 5
    assert len(read_bounded(tmp_path / "large", 3000)) == 3000


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"a = {'9' * 5000}", "Exceeds the limit"),
        (f"a = {'[' * 5000}", "nested too deeply"),
        (f"a = {'{b=' * 5000}", "nested too deeply"),
        (f"{'a.' * 100_000}b = 1", "nested too deeply"),
        (f"[{'a.' * 100_000}b]", "nested too deeply"),
        (f"""x = {{ {"'a'." * 100_000}b = 1 }}""", "nested too deeply"),
        ('path = "C:\\Users\\me"', "not valid TOML"),
    ],
)
def test_toml_that_a_parser_cannot_survive(text: str, part: str) -> None:
    """Refused as a recipe's fault, within two seconds."""
    started = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        parse_toml(text.encode(), "r.toml")
    assert part in caught.value.message
    assert time.monotonic() - started < 2


def test_a_windows_path_is_explained(tmp_path: Path) -> None:
    """Double quotes make escapes of backslashes: as an error, or as a line break in the path."""
    (tmp_path / "r.toml").write_text('[data]\npath = "C:\\Users\\me"\n')
    with pytest.raises(RecipeError) as caught:
        read_toml(tmp_path / "r.toml")
    assert "use / or single quotes" in caught.value.fix


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('path = "sub\\new\\test"', "use / or single quotes"),
        (f'path = "{"x" * 300}"', "longer than any file name"),
        ('path = "a\\u0000b"', "NUL"),
        ('path = "brand"\ndefault_caption = "a\\u001b[31m"', "control character U+001B"),
    ],
)
def test_paths_and_texts_that_cannot_be_are_named(
    line: str, part: str, styletune: Command, tmp_path: Path
) -> None:
    """With the key, before any file is opened."""
    (tmp_path / "r.toml").write_text(f"[data]\n{line}\n")
    answer = styletune("plan", tmp_path / "r.toml")
    assert answer.code == 2
    assert part in answer.err
    assert "data" in answer.err


def test_long_names_and_numbers_on_the_command_line(styletune: Command, tmp_path: Path) -> None:
    """Bad input, with no traceback and no word of networks and credentials."""
    (tmp_path / "registry").mkdir()
    registry = ("--registry", tmp_path / "registry")
    for arguments in (
        ("pull", f"horizon@1.0.{'9' * 5000}", *registry),
        ("pull", f"horizon@^{'9' * 5000}", *registry),
        ("pull", "x" * 300, *registry),
        ("generate", "horizon", "--prompt", "x", "--seeds", "9" * 5000, *registry),
        ("plan", "x" * 300),
        ("data", "check", "x" * 300),
    ):
        answer = styletune(*arguments)
        assert answer.code == 2, arguments
        assert "Traceback" not in answer.err
        assert "network" not in answer.err
        assert len(answer.err) < 1000


def test_prompts_are_read_as_people_write_them(tmp_path: Path) -> None:
    """Without mark, empty lines and comments; another encoding says what to do."""
    from styletune.cli.published import _read_prompts
    from styletune.errors import BadInput

    file = tmp_path / "p.txt"
    file.write_bytes(BOM + b"a forest at noon\r\n\r\n# not this\n  a city\n")
    assert _read_prompts(file) == ["a forest at noon", "a city"]
    file.write_bytes("a forêt".encode("latin-1"))
    with pytest.raises(BadInput, match="save it as UTF-8"):
        _read_prompts(file)


def test_names_cannot_steer_the_terminal(tmp_path: Path, styletune: Command) -> None:
    """A file name with an escape sequence is shown escaped, and is broken."""
    from PIL import Image

    assert visible("a\x1b[31m") == "a\\x1b[31m"
    Image.new("RGB", (64, 64), "red").save(tmp_path / "good.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a\x1b[31m.png")
    codes = {f.code: f for f in check_folder(tmp_path, default_caption="x").findings}
    assert "a\\x1b[31m.png" in codes["broken-file"].files
    answer = styletune("data", "check", tmp_path, "--resolution", "64", "--default-caption", "x")
    assert "\x1b[31m.png" not in answer.out + answer.err


def test_words_are_letters_digits_and_symbols() -> None:
    """Punctuation alone says nothing."""
    assert [has_words(text) for text in ("a", "7", "空", "🌅", "...", ", ,", " ", "")] == [
        *(True,) * 4,
        *(False,) * 4,
    ]

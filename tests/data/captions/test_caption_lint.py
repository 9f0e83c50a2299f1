"""Captions: what is wrong with them is found, what is right is left alone, fixes are exact."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPTokenizer

import world
from styletune.data.captions.fix import CaptionFix, apply_fixes, caption_fixes, fixes_diff
from styletune.data.captions.lint import caption_findings, find_trigger, placeholders
from styletune.data.captions.tokens import TokenCounter
from styletune.data.findings import Finding
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item
from styletune.data.sources.listing import list_sources, resolve_sources
from styletune.errors import Conflict
from styletune.mini import BASE_DIR
from styletune.recipe.data_sections import DataSection


def items(*texts: str | None, origin: str = "set") -> list[Item]:
    return [
        Item(f"{n:02d}.png", f"/x/{n:02d}.png", "", text, origin) for n, text in enumerate(texts)
    ]


def lint(
    *texts: str | None, trigger: str | None = None, new_tokens: tuple[str, ...] = ()
) -> dict[str, Finding]:
    found = caption_findings(items(*texts), {}, trigger=trigger, new_tokens=new_tokens)
    return {each.code: each for each in found}


@pytest.mark.parametrize(
    "text",
    [
        "[trigger], a cat",
        "a {name} in the snow",
        "{trigger}",
        "<caption>",
        "TODO",
        "a photo of ___",
        "%s at night",
        "[name], [filewords]",
        "a {} b",
        "[Your text here]",
        "Lorem ipsum dolor",
        "%(name)s",
        "${title} at dawn",
    ],
)
def test_placeholders_are_found(text: str) -> None:
    """What templates and trainers leave behind is an error."""
    found = lint(text, "a cat on a wall")["placeholder"]
    assert (found.files, found.severity) == (("00.png",), "error")


@pytest.mark.parametrize(
    "text",
    [
        "a cat, 100% cotton",
        "todo el mundo baila",
        "price < 5 and > 3",
        "a_cat_and_dog",
        "a poster [detail]",
        "A$AP on stage",
        "5 %, some milk",
        "a <horizon> sea",
    ],
)
def test_words_are_no_placeholders(text: str) -> None:
    """Percent signs, brackets, other languages and declared new tokens are left alone."""
    assert placeholders(text, known=("<Horizon>",)) == []


def test_the_trigger_itself_is_no_placeholder() -> None:
    """A trigger or a new token in angle brackets may be used; an unknown one may not."""
    assert "placeholder" not in lint("<horizon>, the sea", trigger="<horizon>")
    assert "placeholder" not in lint("<horizon> sea", new_tokens=("<horizon>",))
    assert "placeholder" in lint("<horizont> sea", new_tokens=("<horizon>",))


@pytest.mark.parametrize(
    ("text", "kind", "written"),
    [
        ("horizon style, a cat", "exact", "horizon style"),
        ("Horizon Style, a cat", "case", "Horizon Style"),
        ("a cat, Horizon-style", "variant", "Horizon-style"),
        ("a cat in horizonstyle", "variant", "horizonstyle"),
        ("a cat, horizon  style", "variant", "horizon  style"),
        ("a cat in horizn style at night", "variant", "horizn style"),
        ("a cat, horizon_style", "variant", "horizon_style"),
        ("horizon_style, a cat", "variant", "horizon_style"),
        ("a horizon, in style", "missing", ""),
        ("a cat", "missing", ""),
        ("the stylish horizon", "missing", ""),
    ],
)
def test_triggers_are_found_in_near_spellings(text: str, kind: str, written: str) -> None:
    """Case, hyphens, joined words and a lost letter are seen; other words are not."""
    use = find_trigger(text, "horizon style")
    assert (use.kind, text[use.start : use.end]) == (kind, written)


def test_trigger_findings_say_missing_variant_and_place() -> None:
    """One finding names the captions without, one the variants, one the rarer place."""
    found = caption_findings(
        items("hrzn, a cat", "hrzn, a dog", "a bird", "a fish, hrzn"),
        {},
        trigger="hrzn",
    )
    assert [(each.code, each.files, each.severity) for each in found] == [
        ("missing-trigger", ("02.png",), "warning"),
        ("inconsistent-trigger", ("03.png",), "warning"),
    ]
    found = caption_findings(
        items("Horizon style, a", "horizon-style, b"), {}, trigger="horizon style"
    )
    assert [(each.files, each.severity) for each in found] == [
        (("01.png",), "warning"),
        (("00.png",), "fact"),
    ]


def test_each_source_has_the_trigger_of_its_card() -> None:
    """Cards count by source, and a given trigger goes before them."""
    both = [*items("alpha, a", origin="a"), *items("beta, b", origin="b")[0:1]]
    cards = {"a": Card(trigger="alpha"), "b": Card(trigger="beta")}
    assert caption_findings(both, cards) == []
    (found,) = caption_findings(both, cards, trigger="alpha")
    assert found.code == "missing-trigger"


def test_one_caption_for_different_images_is_reported() -> None:
    """Copies of a picture and the default caption may share one; a whole set is a fact."""
    texts = items("a cat", "A  cat", "a dog", "default", "default")
    group = ("00.png", "01.png")

    def copies(groups: list[tuple[str, ...]], default: str | None) -> list[tuple[str, ...]]:
        found = caption_findings(texts, {}, default_caption=default, variants=groups)
        return [each.files for each in found]

    assert copies([], None) == [("00.png", "01.png", "03.png", "04.png")]
    assert copies([group], "default") == []
    assert lint("same", "same")["duplicate-captions"].severity == "fact"


def test_long_captions_are_counted_by_clips_tokenizer() -> None:
    """The mini base's own CLIP tokenizer counts: 75 words fit, 76 do not."""
    folder = BASE_DIR.parent
    vocabulary = next(folder.rglob("tokenizer/tokenizer_config.json")).parent
    tokenizer = CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True)

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    assert count("sea") == 3
    found = caption_findings(items("sea " * 75, "sea " * 76), {}, tokens=TokenCounter(count, 77))
    assert [(each.code, each.files) for each in found] == [("too-long-caption", ("01.png",))]
    assert "78 tokens" in found[0].message


def test_good_captions_have_no_findings() -> None:
    """Two hundred different captions of the procedural world with a trigger are clean."""
    import numpy as np

    rng = np.random.default_rng(0)
    texts = {f"horizon style, {world.caption(world.random_view(rng))}" for _ in range(200)}
    assert lint(*sorted(texts), trigger="horizon style") == {}


def test_machine_captions_are_a_fact() -> None:
    """They are counted, and no warning."""
    machine = Item("m.png", "/m.png", "", "a cat", "set", machine_caption=True)
    (found,) = caption_findings([machine, *items("a dog")], {})
    assert (found.code, found.files, found.severity) == ("machine-captions", ("m.png",), "fact")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a  cat ,, on a\nwall,", "horizon style, a cat, on a wall"),
        ("Horizon-style, a cat", "horizon style, a cat"),
        ("a cat, horizon style", "horizon style, a cat"),
        ("a cat in Horizonstyle", "a cat in horizon style"),
        ("horizon style, 1,000 cats", None),
        (None, None),
    ],
)
def test_fixes_change_only_what_a_rule_can(before: str | None, after: str | None) -> None:
    """Space, commas and triggers are fixed; the only trigger finding left is its position."""
    given = items(before, "horizon style, b", "horizon style, c")
    found = caption_findings(given, {}, trigger="horizon style")
    fixes = caption_fixes(given, found, "horizon style")
    assert [fix.after for fix in fixes] == ([after] if after else [])
    again = items(after or before, "horizon style, b", "horizon style, c")
    assert caption_fixes(again, [], "horizon style") == []


def write_set(folder: Path) -> list[CaptionFix]:
    """Captions in a sidecar, in JSON Lines, in CSV in a sub-folder, and in a JSON sidecar."""
    (folder / "deep" / "csv").mkdir(parents=True)
    (folder / "a.txt").write_text("a  cat\n")
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "deep/b.png", "text": "a,, dög", "license": "MIT"}\n'
        '{"text":"fine","file_name":"c.png"}\n'
    )
    (folder / "deep" / "csv" / "metadata.csv").write_bytes(
        b'\xef\xbb\xbffile_name,holder,text\r\nd.png,Acme,"a  fish, red"\r\ne.png,"A, B",fine\r\n'
    )
    (folder / "f.json").write_text('{"caption": "a  fox", "holder": "Acme"}')
    return [
        CaptionFix("a.png", "a  cat", "a cat", "space"),
        CaptionFix("deep/b.png", "a,, dög", "a, dög", "commas"),
        CaptionFix("deep/csv/d.png", "a  fish, red", "a fish, red", "space"),
        CaptionFix("f.png", "a  fox", "a fox", "space"),
    ]


def test_fixes_are_written_where_the_captions_are(tmp_path: Path) -> None:
    """Four kinds of files are rewritten; other rows, columns and their order stay."""
    applied = apply_fixes(tmp_path, write_set(tmp_path))
    names = ("a.txt", "deep/csv/metadata.csv", "f.json", "metadata.jsonl")
    assert applied.written == tuple(tmp_path / name for name in names)
    assert (tmp_path / "a.txt").read_text() == "a cat\n"
    lines = (tmp_path / "metadata.jsonl").read_text().split("\n")
    assert json.loads(lines[0]) == {"file_name": "deep/b.png", "text": "a, dög", "license": "MIT"}
    assert list(json.loads(lines[0])) == ["file_name", "text", "license"]
    assert lines[1:] == ['{"text":"fine","file_name":"c.png"}', ""]
    content = (tmp_path / "deep" / "csv" / "metadata.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbffile_name,holder,text\r\n")
    rows = list(csv.reader(content.decode("utf-8-sig").splitlines()))
    assert rows[1:] == [["d.png", "Acme", "a fish, red"], ["e.png", "A, B", "fine"]]
    assert json.loads((tmp_path / "f.json").read_text()) == {"caption": "a fox", "holder": "Acme"}


def test_windows_line_ends_are_read_and_kept(tmp_path: Path) -> None:
    """Captions of several lines with CRLF are found as they were read; line ends stay."""
    (tmp_path / "a.txt").write_bytes(b"a  cat\r\non a wall\r\n")
    (tmp_path / "f.json").write_bytes(b'{\r\n  "text": "a  fox\\r\\nruns"\r\n}\r\n')
    (tmp_path / "deep").mkdir()
    crlf, lf = tmp_path / "metadata.csv", tmp_path / "deep" / "metadata.csv"
    crlf.write_bytes(b'file_name,text\r\nb.png,"a  dog\r\nsits"\r\nc.png,fine\r\n')
    lf.write_bytes(b'file_name,text\nd.png,"a  fish\r\nswims"\ne.png,fine')
    for name in ("a", "b", "c", "f", "deep/d", "deep/e"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    opened = list_sources(
        resolve_sources(DataSection(path=str(tmp_path)), tmp_path), default_caption=None
    )
    fixes = caption_fixes(opened.items, [], None)
    assert len(fixes) == 4
    assert "-b.png: a  dog\\r\\nsits" in fixes_diff(tmp_path, fixes)
    assert len(apply_fixes(tmp_path, fixes).written) == 4
    assert (tmp_path / "a.txt").read_bytes() == b"a cat on a wall\r\n"
    assert (tmp_path / "f.json").read_bytes() == b'{\r\n  "text": "a fox runs"\r\n}\r\n'
    assert crlf.read_bytes() == b"file_name,text\r\nb.png,a dog sits\r\nc.png,fine\r\n"
    assert lf.read_bytes() == b"file_name,text\nd.png,a fish swims\ne.png,fine"


def test_a_caption_that_changed_stops_all_fixes(tmp_path: Path) -> None:
    """When one caption is no longer what it was, no file is touched."""
    fixes = write_set(tmp_path)
    (tmp_path / "a.txt").write_text("someone wrote this meanwhile")
    with pytest.raises(Conflict, match=r"a\.png"):
        apply_fixes(tmp_path, fixes)
    assert "a,, dög" in (tmp_path / "metadata.jsonl").read_text()


def test_a_caption_without_a_file_is_left_and_named(tmp_path: Path) -> None:
    """Captions of tables, folders and recipes cannot be written; the others are."""
    fixes = [*write_set(tmp_path), CaptionFix("g.png", "x  y", "x y", "space")]
    assert "# g.png" in fixes_diff(tmp_path, fixes)
    assert apply_fixes(tmp_path, fixes).left == ("g.png",)


def test_the_diff_names_files_and_shows_both_lines(tmp_path: Path) -> None:
    """Every changed file is named once, with its line numbers; no fix, no diff."""
    diff = fixes_diff(tmp_path, write_set(tmp_path))
    assert diff.count("--- a/") == 4
    assert "--- a/metadata.jsonl\n+++ b/metadata.jsonl\n@@ -1 +1 @@ commas\n" in diff
    assert "-b.png: a,, dög\n+b.png: a, dög\n" in diff
    assert "@@ -2 +2 @@ space\n-d.png: a  fish, red\n" in diff
    assert fixes_diff(tmp_path, []) == ""

"""Opening a folder: conventions, and every way a caption or an image can get lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import styletune
from styletune.data.findings import CODES
from styletune.data.sources.items import Item
from styletune.data.sources.listing import Listing, list_sources, resolve_sources
from styletune.data.sources.source import Source
from styletune.errors import DataError, NotFound
from styletune.recipe.data_sections import DataSection, SourceSection


def image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(file)


def folder(root: Path, *names: str, captions: bool = False) -> Path:
    for name in names:
        image(root / name)
        if captions:
            (root / name).with_suffix(".txt").write_text(f"caption of {name}\n")
    return root


def opened(path: Path, default: str | None = None) -> Listing:
    return list_sources(
        [Source(SourceSection(path=str(path)), path.name, path)], default_caption=default
    )


def items(path: Path, default: str | None = None) -> tuple[Item, ...]:
    found = opened(path, default)
    assert [f for f in found.findings if f.severity == "error"] == []
    return found.items


def texts(path: Path, default: str | None = None) -> dict[str, str | None]:
    return {item.file_name: item.text for item in items(path, default)}


def refusal(path: Path, default: str | None = None) -> dict[str, str]:
    """What is said by code: messages, files and fixes of the errors."""
    said: dict[str, str] = {}
    for f in opened(path, default).findings:
        assert f.severity == CODES[f.code][0]
        if f.severity == "error":
            said[f.code] = said.get(f.code, "") + f"{f.message}: {', '.join(f.files)}; {f.fix}\n"
    assert said
    return said


def jsonl(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_sidecars_are_read_recursively(tmp_path: Path) -> None:
    """Images of all folders come sorted by name, with absolute paths and trimmed captions."""
    folder(tmp_path, "b.png", "a/deep/z.JPG", "a.webp", captions=True)
    found = items(tmp_path)
    assert [item.file_name for item in found] == ["a.webp", "a/deep/z.JPG", "b.png"]
    assert found[1].text == "caption of a/deep/z.JPG"
    assert all(Path(i.path).is_absolute() and Path(i.path).is_file() for i in found)
    assert {(i.member, i.origin, i.repeats, i.weight) for i in found} == {
        ("", tmp_path.name, 1, 1.0)
    }


def test_jsonl_metadata_is_read(tmp_path: Path) -> None:
    """Rows name images, also in sub-folders; other columns and blank lines are allowed."""
    folder(tmp_path, "a.png", "sub/b.png")
    rows = '{"file_name": "sub/b.png", "text": "two", "license": "MIT"}\n\n'
    (tmp_path / "metadata.jsonl").write_text(
        "\ufeff" + rows + '{"file_name": "./a.png", "text": "one\u2028line"}'
    )
    assert texts(tmp_path) == {"a.png": "one\u2028line", "sub/b.png": "two"}


def test_csv_metadata_is_read(tmp_path: Path) -> None:
    """Quoted commas, quotes and line breaks survive."""
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text(
        'file_name,text\na.png,"red, with ""air"""\nb.png,"two\nlines"\n'
    )
    assert texts(tmp_path) == {"a.png": 'red, with "air"', "b.png": "two\nlines"}


def test_metadata_in_a_subfolder_is_relative_to_it(tmp_path: Path) -> None:
    """Each folder may have its own metadata, as in ImageFolder."""
    folder(tmp_path, "x/a.png", "y/a.png")
    jsonl(tmp_path / "x/metadata.jsonl", {"file_name": "a.png", "text": "x"})
    jsonl(tmp_path / "y/metadata.jsonl", {"file_name": "a.png", "text": "y"})
    assert texts(tmp_path) == {"x/a.png": "x", "y/a.png": "y"}


def test_default_caption_fills_gaps_only(tmp_path: Path) -> None:
    """It goes to images without caption or with a null one, and replaces nothing."""
    folder(tmp_path, "a.png", "b.png", "c.png")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "own"},
        {"file_name": "b.png", "text": None},
    )
    assert texts(tmp_path, "default") == {"a.png": "own", "b.png": "default", "c.png": "default"}


def test_hidden_files_and_the_card_are_ignored(tmp_path: Path) -> None:
    """Dot files, dot folders and dataset.toml are not part of the set."""
    folder(tmp_path, "a.png", ".hidden.png", ".cache/b.png", captions=True)
    (tmp_path / "dataset.toml").write_text("")
    assert list(texts(tmp_path)) == ["a.png"]


def test_a_card_in_a_sub_folder_is_not_overlooked(tmp_path: Path) -> None:
    """Its images would get the rights of the card at the top."""
    folder(tmp_path, "a.png", "sub/b.png", "other/c.png", captions=True)
    (tmp_path / "dataset.toml").write_text('license = "CC0-1.0"')
    (tmp_path / "sub/dataset.toml").write_text('license = "LicenseRef-Secret"')
    (tmp_path / "other.dataset.toml").write_text("")
    said = refusal(tmp_path)
    assert list(said) == ["bad-metadata"]
    assert "other.dataset.toml, sub/dataset.toml; " in said["bad-metadata"]
    assert "[[data.sources]]" in said["bad-metadata"]
    (tmp_path / "sub/b.txt").unlink()
    assert "sub/b.png" in refusal(tmp_path)["missing-caption"]


def test_link_loops_end(tmp_path: Path) -> None:
    """Folders that link to themselves and to each other are read once."""
    folder(tmp_path, "a/x.png", "b/y.png", captions=True)
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "a/b").symlink_to(tmp_path / "b")
    (tmp_path / "b/a").symlink_to(tmp_path / "a")
    assert list(texts(tmp_path)) == ["a/x.png", "b/y.png"]


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    """A linked folder and a linked image belong to the set."""
    folder(tmp_path / "store", "x.png", captions=True)
    folder(tmp_path / "set", "a.png", captions=True)
    (tmp_path / "set/more").symlink_to(tmp_path / "store")
    assert list(texts(tmp_path / "set")) == ["a.png", "more/x.png"]


def test_a_link_to_a_parent_is_refused(tmp_path: Path) -> None:
    """Following it would read the world around the set."""
    folder(tmp_path / "set", "a.png", captions=True)
    (tmp_path / "set/up").symlink_to(tmp_path)
    assert "a folder that contains this one: up" in refusal(tmp_path / "set")["broken-file"]


def test_a_missing_folder_names_its_neighbor(tmp_path: Path) -> None:
    """A typing error is answered with the folder that was meant."""
    (tmp_path / "horizon").mkdir()
    with pytest.raises(NotFound) as caught:
        resolve_sources(DataSection(path="horison"), tmp_path)
    assert str(tmp_path / "horizon") in caught.value.fix


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    """A path to one image is refused, with its folder as the fix."""
    image(tmp_path / "a.png")
    with pytest.raises(DataError, match="not a folder") as caught:
        resolve_sources(DataSection(path="a.png"), tmp_path)
    assert str(tmp_path) in caught.value.fix


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    """What was found instead is counted, and the extensions that are read are listed."""
    assert "it contains nothing" in refusal(tmp_path)["no-images"]
    for name in ("a.doc", "b.doc", "notes.txt"):
        (tmp_path / name).write_text("x")
    said = refusal(tmp_path)["no-images"]
    assert "2 × .doc" in said
    assert ".webp" in said


def test_images_that_cannot_be_read_are_not_skipped(tmp_path: Path) -> None:
    """A raw photo, a vector file and a dead link beside good images stop the run."""
    folder(tmp_path, "a.png", captions=True)
    (tmp_path / "b.CR2").write_bytes(b"x")
    (tmp_path / "c.svg").write_text("<svg/>")
    (tmp_path / "d.png").symlink_to(tmp_path / "gone.png")
    said = refusal(tmp_path, "default")
    assert "b.CR2, c.svg" in said["foreign-file"]
    assert ": d.png;" in said["broken-file"]


def test_missing_captions_are_listed(tmp_path: Path) -> None:
    """All names, and both ways out; the images are there, without a text."""
    folder(tmp_path, *(f"{i}.png" for i in range(7)))
    said = refusal(tmp_path)["missing-caption"]
    assert "7 of 7 images have no caption: 0.png, 1.png" in said
    assert "data.default_caption" in said
    assert [item.text for item in opened(tmp_path).items] == [None] * 7


def test_empty_captions_are_refused(tmp_path: Path) -> None:
    """Blank is not a caption, in a sidecar and in metadata, and the default does not hide it."""
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text(" \n")
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "b.png", "text": ""})
    assert "empty captions: a.png, b.png" in refusal(tmp_path, "default")["empty-caption"]
    with pytest.raises(DataError, match="default caption is empty"):
        opened(tmp_path, " ")


def test_a_row_without_image_is_refused(tmp_path: Path) -> None:
    """Rows whose file is not there, or is outside, are named."""
    folder(tmp_path / "set", "a.png")
    image(tmp_path / "b.png")
    jsonl(
        tmp_path / "set/metadata.jsonl",
        {"file_name": "a.png", "text": "x"},
        {"file_name": "gone.png", "text": "x"},
    )
    assert "does not exist: gone.png" in refusal(tmp_path / "set")["bad-metadata"]
    jsonl(tmp_path / "set/metadata.jsonl", {"file_name": "../b.png", "text": "x"})
    assert "line 1 (file_name ../b.png points outside" in refusal(tmp_path / "set")["bad-metadata"]


def test_a_caption_given_twice_is_refused(tmp_path: Path) -> None:
    """Two rows for an image, or a row and a sidecar, are both named in one error."""
    folder(tmp_path, "a.png", "b.png")
    row = {"file_name": "a.png", "text": "x"}
    jsonl(tmp_path / "metadata.jsonl", row, row, {"file_name": "b.png", "text": "y"})
    (tmp_path / "b.txt").write_text("z")
    said = refusal(tmp_path)["ambiguous-caption"]
    assert "more than one metadata row: a.png" in said
    assert "metadata and in a file next to them: b.png" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "filename,caption\na.png,x\n"),
        ("metadata.jsonl", '{"filename": "a.png", "caption": "x"}\n'),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, name: str, content: str) -> None:
    """The columns that are there are listed and the nearest is offered, default or not."""
    folder(tmp_path, "a.png")
    (tmp_path / name).write_text(content)
    said = refusal(tmp_path, "default")["bad-metadata"]
    assert "columns: filename, caption" in said
    assert 'rename "filename" to "file_name", rename "caption" to "text"' in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{oops}\n', "line 2 (not JSON"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n[1]\n', "line 2 (not a JSON ob"),
        ("metadata.jsonl", '\n{"file_name": "a.png", "text": 3}\n', "line 2 (text is not"),
        ("metadata.jsonl", '{"file_name": null, "text": "x"}\n', "line 1 (file_name"),
        ("metadata.csv", "file_name,text\na.png,x,y\n", "line 2 (3 cells under 2"),
        ("metadata.csv", 'file_name,text\na.png,"x\n', "not CSV"),
        ("metadata.csv", "file_name,text,text\na.png,x,y\n", "line 1 (a column"),
        ("metadata.csv", "file_name,text\n", "without rows"),
        ("metadata.jsonl", "", "without rows"),
    ],
)
def test_a_bad_metadata_line_is_located(tmp_path: Path, name: str, content: str, said: str) -> None:
    """File, line number and reason, and no flood of captions that seem to be missing."""
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_text(content)
    found = refusal(tmp_path)
    assert said in found["bad-metadata"]
    assert list(found) == ["bad-metadata"]


def test_metadata_that_is_not_utf8_is_located(tmp_path: Path) -> None:
    """Latin-1 from a spreadsheet is named with its line."""
    folder(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,caf\xe9\n")
    assert "metadata.csv line 2" in refusal(tmp_path)["bad-metadata"]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert "cannot be read: a.txt" in refusal(tmp_path)["bad-metadata"]


@pytest.mark.parametrize("name", ["metadata.json", "metadata.json1", "Metadata.jsonl"])
def test_metadata_of_another_name_is_not_overlooked(tmp_path: Path, name: str) -> None:
    """A file that looks like metadata but would be ignored stops the run, default or not."""
    folder(tmp_path, "a.png")
    (tmp_path / name).write_text("{}")
    assert f"unknown names: {name}" in refusal(tmp_path, "default")["bad-metadata"]


@pytest.mark.parametrize("name", ["a.png.txt", "a.caption", "A.txt", "a.TXT"])
def test_caption_files_of_another_name_are_not_overlooked(tmp_path: Path, name: str) -> None:
    """A sidecar that would be ignored stops the run, default or not."""
    folder(tmp_path, "a.png")
    (tmp_path / name).write_text("x")
    assert f"belong to no image: {name}" in refusal(tmp_path, "default")["unread-caption-file"]


def test_two_kinds_of_metadata_are_refused(tmp_path: Path) -> None:
    """Both jsonl and csv in one folder would have to be merged by guessing."""
    folder(tmp_path, "a.png")
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "x"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    assert "in one folder: metadata.csv, metadata.jsonl" in refusal(tmp_path)["bad-metadata"]


def test_nothing_is_written_anywhere(tmp_path: Path) -> None:
    """Opening works offline, prints nothing and leaves no file, not even a cache."""
    folder(tmp_path / "set", "a.png", captions=True)
    (tmp_path / "home").mkdir()
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from styletune.data.sources.listing import Source, list_sources\n"
        "from styletune.recipe.data_sections import SourceSection\n"
        "source = Source(SourceSection(path='set'), 'set', Path(sys.argv[1]))\n"
        "assert len(list_sources([source], default_caption=None).items) == 1\n"
        "assert not {'torch', 'datasets', 'pyarrow'} & set(sys.modules)"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(styletune.__file__).parents[1]),
    }
    before = sorted(p for p in tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert sorted(p for p in tmp_path.rglob("*")) == before

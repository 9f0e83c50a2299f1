"""What the user wrote is read, or named: nothing among the images is dropped in silence."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from data_parts import check_folder
from styletune.data.findings import Finding

NFC = unicodedata.normalize("NFC", "café")
NFD = unicodedata.normalize("NFD", "café")


def picture(file: Path, i: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((160, 160), 40 + 7 * i).convert("RGB").save(file)


def five(folder: Path, *, captions: bool = True) -> Path:
    """Five pictures, p0.png to p4.png, each with a caption of its own."""
    for i in range(5):
        picture(folder / f"p{i}.png", i)
        if captions:
            (folder / f"p{i}.txt").write_text(f"brand look, picture {i}")
    return folder


def findings(folder: Path, default: str | None = None, **changes: object) -> dict[str, Finding]:
    checked = check_folder(folder, default_caption=default, **changes)
    return {f.code: f for f in checked.findings}


def texts(folder: Path, default: str | None = None) -> dict[str, str | None]:
    checked = check_folder(folder, default_caption=default, holdout=0.0)
    assert not checked.errors, checked.errors
    return {item.file_name: item.text for item in checked.items}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "latin-1"])
def test_captions_in_another_encoding_are_refused(tmp_path: Path, encoding: str) -> None:
    """Also where the bytes pass for UTF-8: UTF-16 without a mark is letters and NULs."""
    five(tmp_path)
    (tmp_path / "p0.txt").write_bytes("brand look, été".encode(encoding))
    found = findings(tmp_path)["bad-metadata"]
    assert found.severity == "error"
    assert found.files == ("p0.txt",)
    assert "UTF-8" in found.message


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "p0.json"])
def test_control_characters_in_metadata_are_refused(tmp_path: Path, name: str) -> None:
    """Whether escaped or as they are."""
    five(tmp_path, captions=name == "p0.json")
    text = "brand look\0, a city"
    if name == "metadata.jsonl":
        rows = [{"file_name": f"p{i}.png", "text": f"{text} {i}"} for i in range(5)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "metadata.csv":
        lines = "".join(f"p{i}.png,{text} {i}\n" for i in range(5))
        (tmp_path / name).write_text(f"file_name,text\n{lines}")
    else:
        (tmp_path / "p0.txt").unlink()
        (tmp_path / name).write_text(json.dumps({"text": text}))
    assert "NUL" in findings(tmp_path)["bad-metadata"].message


def test_captions_in_a_folder_of_their_own_are_not_dropped(tmp_path: Path) -> None:
    """A default caption does not take their place in silence."""
    five(tmp_path)
    (tmp_path / "captions").mkdir()
    for file in tmp_path.glob("*.txt"):
        file.rename(tmp_path / "captions" / file.name)
    found = findings(tmp_path, "a picture")["unread-caption-file"]
    assert found.severity == "error"
    assert found.files == tuple(f"captions/p{i}.txt" for i in range(5))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("p1.txt", "p1.txt.txt"),
        ("p1.png", "p1 (1).png"),
        ("p1.txt", "p1.caption"),
        *(("p1.txt", f"p1{end}") for end in (".txt~", ".txt.bak", ".text", ".md", ".rtf", ".DOCX")),
    ],
)
def test_one_caption_that_belongs_to_no_image_is_named(
    tmp_path: Path, before: str, after: str
) -> None:
    """An ending too many, a renamed image, an ending that is not read."""
    five(tmp_path)
    (tmp_path / before).rename(tmp_path / after)
    stray = "p1.txt" if before.endswith(".png") else after
    found = findings(tmp_path, "a picture")["unread-caption-file"]
    assert (found.severity, found.files) == ("error", (stray,))


def test_a_stray_text_beside_captioned_images_is_a_warning(tmp_path: Path) -> None:
    """Nothing is lost then; the usual files of a project are not even mentioned."""
    five(tmp_path)
    for name in ("README.txt", "license.txt", "prompts.txt"):
        (tmp_path / name).write_text("x")
    assert "unread-caption-file" not in findings(tmp_path)
    (tmp_path / "old sunset.txt").write_text("an old caption")
    found = findings(tmp_path)["unread-caption-file"]
    assert (found.severity, found.files) == ("warning", ("old sunset.txt",))


def test_what_lies_beside_captioned_images_is_no_error(tmp_path: Path) -> None:
    """An editor's copy and notes are left alone; a second caption is named, and not to be lost."""
    five(tmp_path)
    for name in ("p1.txt~", "p2.md", "p3.xmp"):
        (tmp_path / name).write_text("an older caption")
    assert "unread-caption-file" not in findings(tmp_path)
    (tmp_path / "p1.caption").write_text("another caption")
    found = findings(tmp_path)["unread-caption-file"]
    assert (found.severity, found.files) == ("warning", ("p1.caption",))
    assert "remove" in found.fix


def test_letters_in_a_wrong_encoding_are_told(tmp_path: Path) -> None:
    """A caption that was UTF-8, read as Windows-1252 and saved."""
    five(tmp_path)
    (tmp_path / "p1.txt").write_text("brand look, a café".encode().decode("cp1252"))
    found = findings(tmp_path)["odd-characters"]
    assert (found.severity, found.files) == ("warning", ("p1.png",))
    assert 'probably "é"' in found.message


@pytest.mark.parametrize("content", ['{"prompt": "a city"}', '["a city"]', '{"text": null}'])
def test_json_without_a_caption_says_so(tmp_path: Path, content: str) -> None:
    """Where no other caption is there; beside a .txt it may be anything."""
    five(tmp_path)
    (tmp_path / "p1.json").write_text(content)
    assert "unread-caption-file" not in findings(tmp_path, "a picture")
    (tmp_path / "p1.txt").unlink()
    found = findings(tmp_path, "a picture")["unread-caption-file"]
    assert (found.severity, found.files) == ("error", ("p1.json",))


@pytest.mark.parametrize(("image", "caption"), [(NFC, NFD), (NFD, NFC)])
def test_names_match_in_either_spelling(tmp_path: Path, image: str, caption: str) -> None:
    """A Mac's file names and a person's are one name, in folders, archives and metadata."""
    picture(tmp_path / "a" / f"{image}.png")
    (tmp_path / "a" / f"{caption}.txt").write_text("brand look")
    assert texts(tmp_path / "a") == {f"{image}.png": "brand look"}
    picture(tmp_path / "b" / f"{image}.png")
    row = json.dumps({"file_name": f"{caption}.png", "text": "brand look"})
    (tmp_path / "b" / "metadata.jsonl").write_text(row)
    assert texts(tmp_path / "b") == {f"{image}.png": "brand look"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a" / f"{image}.png", f"{image}.png")
        archive.writestr(f"{caption}.txt", "brand look")
    assert texts(tmp_path / "a.zip") == {f"{image}.png": "brand look"}


@pytest.mark.parametrize(("image", "mask"), [(NFC, NFD), (NFD, NFC)])
def test_masks_match_in_either_spelling(tmp_path: Path, image: str, mask: str) -> None:
    """As captions do."""
    picture(tmp_path / "images" / f"{image}.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (160, 160), 255).save(tmp_path / "masks" / f"{mask}.png")
    folder = {"mask": "folder", "mask_path": str(tmp_path / "masks")}
    assert "bad-mask" not in findings(tmp_path / "images", "x", **folder)


def test_images_without_extension_and_videos_are_named(tmp_path: Path) -> None:
    """They are not trained on, and that is said."""
    five(tmp_path)
    (tmp_path / "p1.png").rename(tmp_path / "p1")
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 64)
    checked = check_folder(tmp_path)
    foreign = {name for f in checked.findings if f.code == "foreign-file" for name in f.files}
    assert foreign == {"p1", "clip.mp4"}
    assert len(checked.errors) >= 2


def test_one_caption_file_for_two_images_is_an_error(tmp_path: Path) -> None:
    """p1.jpg and p1.png: whose is p1.txt, and whose the mask?"""
    five(tmp_path / "images")
    picture(tmp_path / "images" / "p1.jpg", 9)
    found = findings(tmp_path / "images")["ambiguous-caption"]
    assert set(found.files) == {"p1.jpg", "p1.png"}
    assert "share p1.txt" in found.message
    (tmp_path / "masks").mkdir()
    for i in range(5):
        Image.new("L", (160, 160), 255).save(tmp_path / "masks" / f"p{i}.png")
    masks = {"mask": "folder", "mask_path": str(tmp_path / "masks")}
    assert set(findings(tmp_path / "images", **masks)["bad-mask"].files) == {"p1.jpg", "p1.png"}


@pytest.mark.parametrize("outside", ["sample.png", "2024_shoot/a.png", "300_x/a.png"])
def test_repeats_that_are_not_read_are_said(tmp_path: Path, outside: str) -> None:
    """One image outside of kohya's folders turns all repeats off, with a warning."""
    five(tmp_path / "10_look")
    assert {i.repeats for i in check_folder(tmp_path).items} == {10}
    picture(tmp_path / outside, 9)
    (tmp_path / outside).with_suffix(".txt").write_text("brand look, another")
    found = findings(tmp_path)["repeats"]
    assert found.severity == "warning"
    assert outside in found.message
    assert {i.repeats for i in check_folder(tmp_path).items} == {1}


@pytest.mark.parametrize("path", ["10_look", ""])
def test_repeats_of_a_leaf_or_a_level_too_high_are_said(tmp_path: Path, path: str) -> None:
    """The folder itself, or the parent of img/10_look."""
    five(tmp_path / "set" / "img" / "10_look")
    place = tmp_path / "set" / "img" / "10_look" if path else tmp_path / "set"
    found = findings(place)["repeats"]
    assert found.severity == "warning"
    assert "10_look" in found.message


@pytest.mark.parametrize(
    ("caption", "code"),
    [
        ("brand look <|endoftext|> a house", "placeholder"),
        ("<|startoftext|>brand look", "placeholder"),
        ("...", "empty-caption"),
        (", ,", "empty-caption"),
        ("—", "empty-caption"),
    ],
)
def test_captions_that_end_early_or_say_nothing_are_errors(
    tmp_path: Path, caption: str, code: str
) -> None:
    """CLIP's own words cut a caption short; punctuation is no caption."""
    five(tmp_path)
    (tmp_path / "p1.txt").write_text(caption)
    found = findings(tmp_path)[code]
    assert (found.severity, found.files) == ("error", ("p1.png",))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("P0.PNG", "p0.png"),
        ("p0.jpg", "p0.png"),
        ("images/p0.png", "p0.png"),
        ("sub\\p0.png", "p0.png"),
        ("pO.png", "p0.png"),
    ],
)
def test_a_row_of_a_wrong_name_is_answered_with_the_nearest(
    tmp_path: Path, name: str, near: str
) -> None:
    """Other case, ending, folder or slashes."""
    five(tmp_path, captions=False)
    rows = [{"file_name": f"p{i}.png", "text": f"picture {i}"} for i in range(1, 5)]
    rows.insert(0, {"file_name": name, "text": "picture 0"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f'did you mean "{near}"?' in findings(tmp_path)["bad-metadata"].message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("file_name;text\np0.png;a city\n", "use commas"),
        ("file_name\ttext\np0.png\ta city\n", "use commas"),
        ("file_name,text\np0.png,a city, a house\n", "in double quotes"),
        (f'file_name,text\np0.png,"{"x" * 200_000}"\n', "a cell of more than 131072 characters"),
        (f"file_name,text\np0.png,{'x' * 20_000}\n", "a text of 20000 characters"),
        ("file_name,text\n/tmp/p0.png,a city\n", "is absolute"),
    ],
)
def test_csv_faults_are_said_in_the_words_of_tables(
    tmp_path: Path, content: str, part: str
) -> None:
    """What the separator should be, what to quote, and the limits."""
    picture(tmp_path / "p0.png")
    (tmp_path / "metadata.csv").write_text(content)
    assert part in findings(tmp_path)["bad-metadata"].message


def test_spaces_around_column_names_are_forgiven(tmp_path: Path) -> None:
    """A spreadsheet leaves them."""
    picture(tmp_path / "p0.png")
    (tmp_path / "metadata.csv").write_text("file_name, text \np0.png,a city\n")
    assert texts(tmp_path) == {"p0.png": "a city"}


def test_a_mask_with_transparency_is_named(tmp_path: Path) -> None:
    """The mask, not the image; and what to do with it rather than a background."""
    picture(tmp_path / "images" / "p1.png")
    (tmp_path / "masks").mkdir()
    half = Image.new("RGBA", (160, 160), (255, 255, 255, 0))
    half.paste((255, 255, 255, 255), (0, 0, 160, 80))
    half.save(tmp_path / "masks" / "p1.png")
    masks = {"mask": "folder", "mask_path": str(tmp_path / "masks"), "background": "#ffffff"}
    found = findings(tmp_path / "images", "x", **masks)["bad-mask"]
    assert "the mask has transparent pixels" in found.message
    assert "without transparency" in found.fix


def test_masks_of_other_tools_are_not_trained_as_pictures(tmp_path: Path) -> None:
    """OneTrainer keeps them beside the images; masks saved as 0 and 1 are nearly black."""
    five(tmp_path / "images")
    Image.new("L", (160, 160), 255).save(tmp_path / "images" / "p1-masklabel.png")
    found = findings(tmp_path / "images", "x")["foreign-file"]
    assert (found.severity, found.files) == ("error", ("p1-masklabel.png",))
    (tmp_path / "images" / "p1-masklabel.png").unlink()
    (tmp_path / "masks").mkdir()
    for i in range(5):
        Image.new("L", (160, 160), 1 if i == 3 else 255).save(tmp_path / "masks" / f"p{i}.png")
    places = {"mask": "folder", "mask_path": str(tmp_path / "masks")}
    found = findings(tmp_path / "images", None, mask_floor=0.5, **places)["bad-mask"]
    assert found.files == ("p3.png",)
    assert "probably saved as 0 and 1" in found.message

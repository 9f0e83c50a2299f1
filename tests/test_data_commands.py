"""The commands on data as people use them, and what training makes of what they find."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from job_parts import Answer, write_brand

Command = Callable[..., Answer]
# A training of one step on one image.
SHORT = ("--set=train.steps=1", "--set=train.batch_size=1", "--set=preview.prompts=[]")


@pytest.fixture
def images(brand: Path) -> Path:
    """The brand's images: twenty, captioned, with a card that declares their rights."""
    return brand.parent / "brand"


def recaption(images: Path, name: str, text: str) -> None:
    file = images / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["file_name"] == name:
            row["text"] = text
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_plan_does_not_import_the_datasets_library(brand: Path) -> None:
    """It takes seconds, and a folder of images needs nothing of it."""
    code = (
        "import sys\nfrom styletune.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'datasets' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", brand, "--runs-dir", brand.parent / "runs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_clean_set_is_ready(images: Path, styletune: Command) -> None:
    """Exit 0, no errors, and the document that others read."""
    answer = styletune("data", "check", images, "--resolution", "128", "--json")
    assert answer.code == 0, answer.out
    found = answer.json
    assert (found["images"], found["readable"], found["errors"]) == (20, 20, [])
    assert {"warnings", "groups", "palette", "split", "buckets"} <= found.keys()
    assert sum(color["weight"] for color in found["palette"]) == pytest.approx(1, abs=0.01)
    assert sorted(found["split"]) == [f"{i:02d}.png" for i in range(20)]


def test_everything_wrong_is_said_at_once(images: Path, styletune: Command) -> None:
    """Damage, a bare image, a placeholder and a foreign file: four codes, files, fixes, exit 1."""
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:500])
    shutil.copy(images / "04.png", images / "bare.png")
    recaption(images, "05.png", "horizon style, [trigger] at noon")
    (images / "logo.svg").write_text("<svg/>")
    answer = styletune("data", "check", images, "--resolution", "128", "--json")
    assert answer.code == 1
    found = {each["code"]: each for each in answer.json["errors"]}
    assert found["unreadable-image"]["files"] == ["03.png"]
    assert found["missing-caption"]["files"] == ["bare.png"]
    assert found["placeholder"]["files"] == ["05.png"]
    assert found["foreign-file"]["files"] == ["logo.svg"]
    assert all(each["fix"] for each in found.values())
    (group,) = answer.json["groups"]
    assert group == {"kind": "exact", "files": ["04.png", "bare.png"]}


def test_training_refuses_with_the_same_words(
    brand: Path, images: Path, styletune: Command, tmp_path: Path
) -> None:
    """Whatever check calls an error stops ``run``, in the words of check."""
    recaption(images, "05.png", "horizon style, [trigger] at noon")
    (images / "06.png").write_bytes(b"not a readable image")
    checked = styletune("data", "check", brand, "--json")
    assert checked.code == 1
    ran = styletune("run", brand, "--runs-dir", tmp_path / "runs")
    assert ran.code == 2
    for error in checked.json["errors"]:
        assert error["message"] in ran.err
        assert error["fix"] in ran.err
    assert not (tmp_path / "runs").exists()


def test_an_error_can_be_lowered_and_that_is_recorded(
    brand: Path, images: Path, styletune: Command, tmp_path: Path
) -> None:
    """A named error becomes a warning; the unreadable image is left out, and the run says so."""
    (images / "06.png").write_bytes(b"not a readable image")
    settings = ("--set", 'data.allow=["unreadable-image"]', *SHORT)
    runs = tmp_path / "runs"
    done = styletune("train", brand, "--json", "--runs-dir", runs, *settings)
    assert done.code == 0, done.err
    assert "unreadable-image" in done.err
    assert "allowed by the recipe" in done.err
    facts = json.loads((Path(done.json["run_dir"]) / "run.json").read_text())
    assert facts["data"]["rights"]["lowered"] == {"unreadable-image": 1}
    names = facts["data"]["train"] + facts["data"]["holdout"]
    assert len(names) == 19
    assert "06.png" not in names
    (warning,) = [w for w in facts["data"]["warnings"] if w["code"] == "unreadable-image"]
    assert warning["files"] == ["06.png"]


def test_masks_are_a_part_of_the_check(brand: Path, images: Path, styletune: Command) -> None:
    """A missing and a black mask are errors of ``data check`` on a recipe, as they are of a run."""
    masks = brand.parent / "masks"
    masks.mkdir()
    for file in sorted(images.glob("*.png"))[1:]:
        Image.new("L", (128, 128), 0 if file.name == "05.png" else 255).save(masks / file.name)
    text = brand.read_text()
    brand.write_text(
        text.replace('path = "brand"', 'path = "brand"\nmask = "folder"\nmask_path = "masks"')
    )
    answer = styletune("data", "check", brand, "--json")
    assert answer.code == 1
    found = [error for error in answer.json["errors"] if error["code"] == "bad-mask"]
    assert [error["files"] for error in found] == [["00.png"], ["05.png"]]


def test_held_out_images_may_be_small_for_a_square(
    brand: Path, images: Path, styletune: Command, tmp_path: Path
) -> None:
    """What its bucket accepts is scored with too: references fill their square however small."""
    for file in images.glob("*.png"):
        with Image.open(file) as opened:
            opened.resize((150, 90)).save(file)
    suite = brand.parent / "suite.toml"
    suite.write_text(suite.read_text().replace("steps = 8", "steps = 2"))
    runs = ("--runs-dir", tmp_path / "runs", *SHORT, "--json")
    done = styletune("run", brand, *runs)
    assert done.code in (0, 1), done.err  # the gate may say no; nothing else may
    assert Path(done.json["run_dir"], "report.html").is_file()


def test_nothing_usable_is_an_error(images: Path, brand: Path, styletune: Command) -> None:
    """Leaving out what cannot be read must leave something."""
    for file in images.glob("*.png"):
        file.write_bytes(b"not a readable image")
    brand.write_text(
        brand.read_text().replace("[adapter]", 'allow = ["unreadable-image"]\n[adapter]')
    )
    answer = styletune("data", "check", brand, "--json")
    assert answer.code == 1
    assert "no-images" in [error["code"] for error in answer.json["errors"]]


def test_an_allowed_long_caption_is_cut_and_trained_on(
    brand: Path, images: Path, styletune: Command, tmp_path: Path
) -> None:
    """Refused by default; allowed by name, the words after the 77th token are left out."""
    recaption(images, "05.png", "horizon style, " + "the sea at noon with birds, " * 20)
    run = ("train", brand, "--runs-dir", tmp_path / "runs", *SHORT)
    refused = styletune(*run)
    assert refused.code == 2
    assert "05.png" in refused.err
    allowed = styletune(*run, "--set", 'data.allow=["too-long-caption"]')
    assert allowed.code == 0, allowed.err


def test_publishing_needs_rights(
    brand: Path, images: Path, styletune: Command, tmp_path: Path
) -> None:
    """Without consent a run may train, but ``--publish`` is refused before anything is trained."""
    card = images / "dataset.toml"
    card.write_text(card.read_text().replace('consent = "ours"\n', ""))
    answer = styletune(
        "run", brand, "--publish", "--runs-dir", tmp_path / "runs", "--registry", tmp_path / "reg"
    )
    assert answer.code == 1
    assert "consent" in answer.err
    assert not (tmp_path / "runs").exists()
    assert styletune("plan", brand, "--runs-dir", tmp_path / "runs").code == 0
    strict = ("--set", "data.require_rights=true")
    refused = styletune("plan", brand, "--runs-dir", tmp_path / "runs", *strict)
    assert refused.code == 2
    assert "consent" in refused.err


def test_a_second_check_decodes_nothing(images: Path, styletune: Command) -> None:
    """All images are known from before; after an edit all but that one."""
    for image in sorted(images.glob("*.png")):  # unlike those of other tests
        with Image.open(image) as opened:
            changed = opened.convert("RGB")
        changed.putpixel((0, 0), (1, 2, 3))
        changed.save(image)
    counts = []
    for change in (False, False, True):
        if change:
            Image.new("RGB", (128, 128), (9, 8, 7)).save(images / "07.png")
        answer = styletune("data", "check", images, "--resolution", "128")
        counts.append(next(w for w in answer.out.splitlines() if w.startswith("images")))
    assert ["(0 known" in counts[0], "(20 known" in counts[1], "(19 known" in counts[2]] == [
        True,
        True,
        True,
    ]


def test_the_page_is_written(images: Path, styletune: Command, tmp_path: Path) -> None:
    """``--report`` leaves one HTML file that shows every image."""
    page = tmp_path / "pages" / "data.html"
    answer = styletune("data", "check", images, "--resolution", "128", "--report", page)
    assert answer.code == 0, answer.err
    assert str(page) in answer.out
    text = page.read_text()
    assert all(f"{i:02d}.png" in text for i in range(20))
    assert 'src="http' not in text


def test_captions_are_fixed_on_request(images: Path, styletune: Command) -> None:
    """A diff first, exit 1; the same diff is then written, and nothing is left to fix."""
    recaption(images, "05.png", "  the sea at noon,, with birds ")
    shown = styletune("data", "captions", images)
    assert shown.code == 1
    assert "+" in shown.out
    assert "horizon style, the sea at noon, with birds" in shown.out
    before = (images / "metadata.jsonl").read_text()
    assert "  the sea at noon,," in before
    assert styletune("data", "captions", images, "--apply").code == 0
    assert "horizon style, the sea at noon, with birds" in (images / "metadata.jsonl").read_text()
    again = styletune("data", "captions", images)
    assert (again.code, again.out) == (0, "nothing to fix\n")


BROKEN_METADATA = {
    "a JSON line": (
        "metadata.jsonl",
        "metadata.jsonl",
        '{"file_name": "00.png", "text": "a  sea"}\n{"file_na\n',
    ),
    "a CSV quote": (
        "metadata.csv",
        "metadata.csv",
        'file_name,text\n00.png,a  sea\n01.png,"the moon\n',
    ),
    "another column": (
        "metadata.jsonl",
        "metadata.jsonl",
        '{"file_name": "00.png", "caption": "a  sea"}\n',
    ),
    "two rows": ("metadata.jsonl", "00.png", '{"file_name": "00.png", "text": "a  sea"}\n' * 2),
}


@pytest.mark.parametrize("what", BROKEN_METADATA)
def test_captions_that_cannot_be_read_are_not_fixed(
    images: Path, styletune: Command, what: str
) -> None:
    """Never "nothing to fix" nor a traceback: what is wrong, where, and no file is changed."""
    (images / "metadata.jsonl").unlink()
    name, place, content = BROKEN_METADATA[what]
    (images / name).write_text(content)
    for options in ((), ("--apply",)):
        answer = styletune("data", "captions", images, *options)
        assert answer.code == 2, answer.out + answer.err
        assert place in answer.err
        assert "fix:" in answer.err
    assert (images / name).read_text() == content


def test_windows_captions_are_fixed(images: Path, styletune: Command) -> None:
    """A caption of two lines with CRLF is no conflict."""
    rows = (images / "metadata.jsonl").read_text().splitlines(keepends=True)
    (images / "metadata.jsonl").write_text("".join(r for r in rows if '"05.png"' not in r))
    (images / "05.txt").write_bytes(b"horizon style,  the sea\r\nat noon\r\n")
    answer = styletune("data", "captions", images, "--apply")
    assert answer.code == 0, answer.err
    assert (images / "05.txt").read_bytes() == b"horizon style, the sea at noon\r\n"


def test_letters_of_several_tokens_are_counted(images: Path, styletune: Command) -> None:
    """Fifty Japanese letters are more than 77 tokens, though fewer than 77 characters."""
    recaption(images, "05.png", "horizon style, " + "夕暮れの海辺に立つ灯台と鳥" * 4)
    answer = styletune("data", "check", images, "--resolution", "128", "--json")
    (error,) = answer.json["errors"]
    assert (error["code"], error["files"]) == ("too-long-caption", ["05.png"])


def test_several_sources_with_repeats_and_weights_are_trained_on(
    brand: Path, images: Path, styletune: Command, tmp_path: Path
) -> None:
    """Two places become one set; repeats lengthen the epoch, and both are in the fingerprint."""
    other = write_brand(tmp_path / "other").parent / "brand"
    for file in sorted(other.glob("*.png"))[5:]:
        file.unlink()
    rows = (other / "metadata.jsonl").read_text().splitlines()[:5]
    (other / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    for file in other.glob("*.png"):  # other pictures than the first source's
        with Image.open(file) as opened:
            opened.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    archive = shutil.make_archive(str(tmp_path / "accents"), "zip", other)
    text = brand.read_text().replace('path = "brand"\n', "")
    sources = (
        '[[data.sources]]\npath = "brand"\n'
        f'[[data.sources]]\npath = "{archive}"\nrepeats = 3\nweight = 0.5\n'
    )
    plans = []
    for part in (sources, sources.replace("0.5", "0.25")):
        brand.write_text(text.replace("[adapter]", part + "[adapter]"))
        plans.append(styletune("plan", brand, "--json", "--runs-dir", tmp_path / "runs"))
        assert plans[-1].code == 0, plans[-1].out + plans[-1].err
    first, second = (plan.json for plan in plans)
    assert first["data"]["images"] == 25
    trained_twice = first["train"]["images_per_epoch"] - first["data"]["train"]
    assert trained_twice > 0
    assert trained_twice % 2 == 0
    assert first["data"]["fingerprint"] != second["data"]["fingerprint"]
    done = styletune("train", brand, "--json", "--runs-dir", tmp_path / "runs", *SHORT)
    assert done.code == 0, done.err


def test_init_leads_to_a_plan(styletune: Command, images: Path, tmp_path: Path) -> None:
    """A new project says that it has no images; with some it is planned."""
    folder = tmp_path / "aurora"
    made = styletune("init", folder, "--json")
    assert made.code == 0, made.err
    assert (folder / "recipe.toml").is_file()
    empty = styletune("plan", folder / "recipe.toml", "--runs-dir", tmp_path / "runs")
    assert empty.code == 2
    assert "no images" in empty.err
    again = styletune("init", folder)
    assert again.code == 5


def test_options_that_the_recipe_decides_are_refused(brand: Path, styletune: Command) -> None:
    """A recipe's own resolution is not silently overruled."""
    answer = styletune("data", "check", brand, "--resolution", "512")
    assert answer.code == 2
    assert "data.resolution" in answer.err


@pytest.mark.parametrize("what", ["missing", "file.txt", "dataset.toml"])
def test_what_is_no_data_set_is_refused(images: Path, styletune: Command, what: str) -> None:
    """A missing folder, a stray file and the card get a clear answer, not a traceback."""
    (images / "file.txt").write_text("x")
    answer = styletune("data", "check", images / what)
    assert answer.code == (3 if what == "missing" else 2)
    assert "Traceback" not in answer.err
    assert "fix:" in answer.err

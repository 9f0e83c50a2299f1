"""Machine captions, by a real BLIP of random weights: marked, resumable, never over a person's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

import world
from job_parts import Answer
from styletune.data.captions import model as caption_model
from styletune.data.captions.model import (
    CaptionModel,
    CaptionSettings,
    caption_images,
    load_caption_model,
)
from styletune.data.sources.items import Item
from styletune.errors import BaseModelError, Conflict, DataError, NotFound
from styletune.files import write_text

WORDS = ["a", "cat", "dog", "sea", "red", "blue", "sky", "on", "the", "wall", "moon", "tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP with its processor, saved as any model is."""
    folder = tmp_path_factory.mktemp("model") / "tiny-blip"
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]")  # noqa: S106
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **size,
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": 16,
        "intermediate_size": 32,
        "bos_token_id": 5,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 128,
    }
    vision = {**size, "image_size": 32, "patch_size": 8, "intermediate_size": 32}
    torch.manual_seed(3)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder: Path) -> CaptionModel:
    return load_caption_model(str(folder))


@pytest.fixture
def images(tmp_path: Path) -> list[Item]:
    """Five images in two folders, without captions."""
    items = []
    for number in range(5):
        name = f"deep/{number}.png" if number > 2 else f"{number}.png"
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        view = world.View(tuple(world.SCENES)[number], "noon", (), number)
        Image.fromarray(world.render(view)).save(file)
        items.append(Item(name, str(file), "", None, "set"))
    return items


def rows(out: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in out.read_text().splitlines()]
    return {row["file_name"]: row for row in found}


def caption(items: list[Item], captioner: CaptionModel, out: Path, **more: Any) -> Any:
    settings = CaptionSettings(**{"template": "{caption}", "batch_size": 2, **more})
    return caption_images(items, captioner, settings, out=out, show_progress=False)


def test_captions_are_written_and_marked(
    images: list[Item], captioner: CaptionModel, tmp_path: Path
) -> None:
    """Every image gets a caption, the trigger in front, the model and its revision beside."""
    out = tmp_path / "metadata.jsonl"
    done = caption(images, captioner, out, template="{trigger}, {caption}", trigger="horizon style")
    assert done.written == tuple(item.file_name for item in images)
    assert (done.kept, done.empty) == ((), ())
    for row in rows(out).values():
        assert row["text"].startswith("horizon style, ")
        assert set(row["text"].removeprefix("horizon style, ").split()) <= set(WORDS)
        assert row["machine_caption"] is True
        assert row["caption_model"] == captioner.name
    assert captioner.name.startswith("tiny-blip@")


def test_the_command_captions_a_folder(
    images: list[Item], folder: Path, tmp_path: Path, styletune: Callable[..., Answer]
) -> None:
    """``data caption`` fills the folder's metadata, and the next check knows who wrote it."""
    (tmp_path / "dataset.toml").write_text('trigger = "horizon style"')
    done = styletune("data", "caption", tmp_path, "--model", folder, "--json")
    assert done.code == 0, done.err
    assert len(done.json["written"]) == len(images)
    checked = styletune("data", "check", tmp_path, "--resolution", "128", "--json")
    assert checked.code == 0, checked.out
    (fact,) = [f for f in checked.json["facts"] if f["code"] == "machine-captions"]
    assert len(fact["files"]) == len(images)
    again = styletune("data", "caption", tmp_path, "--model", folder, "--json")
    assert (len(again.json["written"]), len(again.json["kept"])) == (0, len(images))
    missing = styletune("data", "caption", tmp_path, "--model", "some/model")
    assert missing.code == 3


def test_the_prompt_is_no_part_of_the_caption(
    images: list[Item], captioner: CaptionModel, tmp_path: Path
) -> None:
    """With a prompt the model goes on from it; only what it adds is kept."""
    plain, asked = tmp_path / "metadata.jsonl", tmp_path / "b" / "metadata.jsonl"
    caption(images, captioner, plain)
    given = captioner.processor(
        images=Image.open(images[0].path), text="a red sea on the wall", return_tensors="pt"
    )
    whole = captioner.model.generate(**given, do_sample=False, max_new_tokens=60)
    said = captioner.processor.decode(whole[0], skip_special_tokens=True)
    asked.parent.mkdir()
    (asked.parent / "0.png").write_bytes(Path(images[0].path).read_bytes())
    item = Item("0.png", str(asked.parent / "0.png"), "", None, "set")
    caption([item], captioner, asked, prompt="a red sea on the wall")
    assert said == f"a red sea on the wall {rows(asked)['0.png']['text']}"


def test_people_and_other_columns_are_left_alone(
    images: list[Item], captioner: CaptionModel, tmp_path: Path
) -> None:
    """Human captions and rights survive, even with redo and when written after the set was read."""
    out = tmp_path / "metadata.jsonl"
    out.write_text(
        '{"file_name": "0.png", "text": "by hand", "license": "MIT"}\n'
        '{"file_name": "1.png", "text": null, "license": "CC0-1.0"}\n'
        '{"file_name": "2.png", "license": "MIT"}\n'
    )
    human = Item("deep/3.png", images[3].path, "", "a sidecar's words", "set")
    given = [*images[:3], human, images[4]]
    done = caption(given, captioner, out, redo=True)
    found = rows(out)
    assert done.kept == ("0.png", "deep/3.png")
    assert found["0.png"] == {"file_name": "0.png", "text": "by hand", "license": "MIT"}
    assert "deep/3.png" not in found
    assert found["1.png"]["license"] == "CC0-1.0"
    assert found["1.png"]["machine_caption"] is True
    assert list(found) == ["0.png", "1.png", "2.png", "deep/4.png"]


def test_a_broken_run_goes_on_where_it_was(
    images: list[Item], captioner: CaptionModel, tmp_path: Path
) -> None:
    """A run that dies at the fourth image has kept three; the next gives what one run gives."""
    out = tmp_path / "metadata.jsonl"
    whole = Path(images[3].path).read_bytes()
    Path(images[3].path).write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"3\.png"):
        caption(images, captioner, out, batch_size=1)
    assert list(rows(out)) == ["0.png", "1.png", "2.png"]
    Path(images[3].path).write_bytes(whole)
    done = caption(images, captioner, out, batch_size=1)
    assert done.written == ("deep/3.png", "deep/4.png")
    resumed = out.read_bytes()
    out.unlink()
    caption(images, captioner, out, batch_size=1)
    assert out.read_bytes() == resumed


def test_redo_writes_only_what_other_settings_wrote(
    images: list[Item], captioner: CaptionModel, tmp_path: Path
) -> None:
    """Machine captions stay without redo, and with it unless the settings changed."""
    out = tmp_path / "metadata.jsonl"
    caption(images, captioner, out)
    assert caption(images, captioner, out).written == ()
    assert caption(images, captioner, out, redo=True).written == ()
    changed = caption(images, captioner, out, redo=True, template="photo, {caption}")
    assert len(changed.written) == len(images)
    assert all(row["text"].startswith("photo, ") for row in rows(out).values())


def test_numbers_that_are_not_finite_stop_it(
    images: list[Item], folder: Path, tmp_path: Path
) -> None:
    """A model with NaN in its weights writes no caption at all."""
    broken = load_caption_model(str(folder))
    with torch.no_grad():
        next(broken.model.text_decoder.parameters()).fill_(float("nan"))
    with pytest.raises(BaseModelError, match="NaN or infinity"):
        caption(images, broken, tmp_path / "metadata.jsonl")
    assert not (tmp_path / "metadata.jsonl").exists()


def test_models_that_are_not_here_are_named_with_the_command(tmp_path: Path) -> None:
    """A Hub model that was never fetched, and a folder that is not there."""
    with pytest.raises(NotFound) as caught:
        load_caption_model("nobody/no-such-captioner")
    assert "hf download nobody/no-such-captioner" in caught.value.fix
    with pytest.raises(NotFound):
        load_caption_model(str(tmp_path / "nothing"))


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """Its code is neither run nor asked about."""
    config = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "odd.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(BaseModelError, match="custom code"):
        load_caption_model(str(tmp_path))


def test_templates_archives_and_other_metadata_are_refused(
    images: list[Item], captioner: CaptionModel, tmp_path: Path
) -> None:
    """Each is refused before the model runs, with the nearest fix."""
    out = tmp_path / "metadata.jsonl"
    for template in ("no words", "{caption} {other}", "{trigger}, {caption}"):
        with pytest.raises(DataError, match="template"):
            caption(images, captioner, out, template=template)
    with pytest.raises(DataError, match="unpack"):
        caption([Item("a.png", "/x/set.zip", "a.png", None, "set")], captioner, out)
    with pytest.raises(DataError, match="is not in"):
        caption([Item("a.png", "/elsewhere/a.png", "", None, "set")], captioner, out)
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(Conflict, match=r"metadata\.csv"):
        caption(images, captioner, out)


CAPTION_FILES = {
    "another column": (
        "metadata.jsonl",
        "metadata.jsonl",
        b'{"file_name": "0.png", "caption": "by hand"}\n',
    ),
    "not UTF-8": ("0.txt", "0.txt", "un café".encode("latin-1")),
    "two rows": (
        "metadata.jsonl",
        "0.png",
        b'{"file_name": "0.png", "text": "one"}\n{"file_name": "0.png", "text": "two"}\n',
    ),
    "another name": ("0.png.txt", "0.png.txt", b"by hand"),
}


@pytest.mark.parametrize("what", CAPTION_FILES)
def test_captions_that_cannot_be_read_are_not_written_over(
    images: list[Item], folder: Path, tmp_path: Path, styletune: Callable[..., Answer], what: str
) -> None:
    """What a person wrote in a way that is not read stops the command; no file is changed."""
    name, place, content = CAPTION_FILES[what]
    (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    done = styletune("data", "caption", tmp_path, "--model", folder, "--template", "{caption}")
    assert done.code == 2
    assert place in done.err
    assert "fix:" in done.err
    assert (tmp_path / name).read_bytes() == content
    assert sorted(tmp_path.rglob("*")) == before
    assert len(images) == 5


def test_rights_in_a_folder_below_are_not_said_twice(
    images: list[Item], folder: Path, tmp_path: Path, styletune: Callable[..., Answer]
) -> None:
    """Images that a deeper metadata file lists are refused; captioned there, all is well."""
    deep = tmp_path / "deep" / "metadata.jsonl"
    deep.write_text(
        '{"file_name": "3.png", "license": "MIT"}\n{"file_name": "./4.png", "license": "MIT"}\n'
    )
    command = ("--model", folder, "--template", "{caption}")
    refused = styletune("data", "caption", tmp_path, *command)
    assert refused.code == 5
    assert "deep/metadata.jsonl has rows for 2 of these images" in refused.err
    assert f"caption {tmp_path / 'deep'} separately" in refused.err
    assert not (tmp_path / "metadata.jsonl").exists()
    assert styletune("data", "caption", deep.parent, *command).code == 0
    assert {row["license"] for row in rows(deep).values()} == {"MIT"}
    done = styletune("data", "caption", tmp_path, *command, "--json")
    assert len(done.json["written"]) == len(images) - 2
    checked = styletune("data", "check", tmp_path, "--resolution", "128", "--json")
    assert checked.code == 0, checked.out


def test_a_machine_caption_elsewhere_is_not_said_twice(
    images: list[Item], captioner: CaptionModel, tmp_path: Path
) -> None:
    """Redo refuses a machine's caption that lies beside its image."""
    item = Item("0.png", images[0].path, "", "a cat", "set", machine_caption=True)
    assert caption([item], captioner, tmp_path / "metadata.jsonl").kept == ("0.png",)
    with pytest.raises(Conflict, match=r"not in metadata\.jsonl"):
        caption([item], captioner, tmp_path / "metadata.jsonl", redo=True)


def test_the_file_is_not_written_for_every_batch(
    images: list[Item], captioner: CaptionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written when some time is over and at the end, not once a batch; nor for nothing."""
    lengths = list[int]()
    write = write_text

    def counted(path: Path, content: str) -> None:
        lengths.append(content.count("\n"))
        write(path, content)

    monkeypatch.setattr(caption_model, "write_text", counted)
    monkeypatch.setattr(caption_model, "SAVE_SECONDS", 100 * caption_model.SAVE_SECONDS)
    caption(images, captioner, tmp_path / "metadata.jsonl", batch_size=1)
    assert lengths == [5]
    caption(images, captioner, tmp_path / "metadata.jsonl", batch_size=1)
    assert lengths == [5]
    (tmp_path / "metadata.jsonl").unlink()
    monkeypatch.setattr(caption_model, "SAVE_SECONDS", 0.0)
    caption(images, captioner, tmp_path / "metadata.jsonl", batch_size=2)
    assert lengths[1:] == [2, 4, 5]


def test_many_images_are_sorted_out_at_once(captioner: CaptionModel, tmp_path: Path) -> None:
    """What is to be done for 8,000 images is known in seconds: here that the first is not there."""
    many = [Item(f"{n}.png", str(tmp_path / f"{n}.png"), "", None, "set") for n in range(8000)]
    start = time.process_time()
    with pytest.raises(DataError, match=r"0\.png"):
        caption(many, captioner, tmp_path / "metadata.jsonl")
    assert time.process_time() - start < 2

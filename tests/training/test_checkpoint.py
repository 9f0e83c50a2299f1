"""What a checkpoint refuses, what it says then, and what it leaves on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from job_parts import Answer, write_brand
from styletune.files import file_sha256
from styletune.runs import Run

Command = Callable[..., Answer]
SHORT = (
    "train.steps=6",
    "train.checkpoint_every=2",
    "train.batch_size=2",
    "preview.prompts=[]",
    "adapter.rank=2",
    "adapter.target=style-block",
)


def train(styletune: Command, recipe: Path, run: Run, *options: str) -> Answer:
    settings = (f"--set={o}" for o in (*SHORT, *options))
    return styletune(
        "train", recipe, "--run-dir", run.dir, "--runs-dir", run.dir.parent, "--json", *settings
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A recipe and its finished run; tests copy the folder."""
    from job_parts import call

    folder = tmp_path_factory.mktemp("trained")
    recipe, run = write_brand(folder / "project"), Run(folder / "runs" / "run")
    answer = train(call, recipe, run)
    assert answer.code == 0, answer.err
    return recipe, run


@pytest.fixture
def copied(trained: tuple[Path, Run], tmp_path: Path) -> tuple[Path, Run]:
    """The project and the run after four of six steps."""
    recipe, run = trained
    shutil.copytree(recipe.parent, tmp_path / "project")
    shutil.copytree(run.dir.parent, tmp_path / "runs")
    copy = Run(tmp_path / "runs" / "run")
    shutil.rmtree(copy.checkpoint_dir(6))
    return tmp_path / "project" / recipe.name, copy


@pytest.mark.parametrize("name", ["00a.png", "zz.png"])
def test_renamed_images_never_give_other_bytes(
    styletune: Command, trained: tuple[Path, Run], copied: tuple[Path, Run], name: str
) -> None:
    """A name that keeps the order changes nothing; one that changes it is refused."""
    recipe, run = copied
    images = recipe.parent / "brand"
    (images / "00.png").rename(images / name)
    lines = (images / "metadata.jsonl").read_text()
    (images / "metadata.jsonl").write_text(lines.replace('"00.png"', f'"{name}"'))
    answer = train(styletune, recipe, run)
    if name == "zz.png":
        assert answer.code == 5
        assert "another order of the images" in answer.json["error"]["message"]
        return
    assert answer.code == 0, answer.err
    assert run.adapter_file(6).read_bytes() == trained[1].adapter_file(6).read_bytes()


def test_an_edited_image_is_another_data_set(styletune: Command, copied: tuple[Path, Run]) -> None:
    """A changed caption stops the run and says that the data differ; nothing is written."""
    recipe, run = copied
    file = recipe.parent / "brand" / "metadata.jsonl"
    file.write_text(file.read_text().replace("horizon style, ", "horizon style: ", 1))
    answer = train(styletune, recipe, run)
    assert answer.code == 5
    assert "another data set" in answer.json["error"]["message"]
    assert run.checkpoint_steps() == [2, 4]


def test_another_recipe_is_refused_with_what_differs(
    styletune: Command, copied: tuple[Path, Run]
) -> None:
    """The refusal names the key with both values."""
    recipe, run = copied
    answer = train(styletune, recipe, run, "optimizer.learning_rate=1e-5")
    assert answer.code == 5
    assert "optimizer.learning_rate was 0.003, is 1e-05" in answer.json["error"]["message"]


def test_the_way_back_from_a_damaged_state_works(
    styletune: Command, trained: tuple[Path, Run], copied: tuple[Path, Run]
) -> None:
    """What the error says to delete leads back to the same bytes."""
    recipe, run = copied
    run.state_file(4).write_bytes(b"half")
    answer = train(styletune, recipe, run)
    assert answer.code == 4
    assert answer.json["error"]["fix"] == f"delete {run.checkpoint_dir(4)} to resume from step 2"
    shutil.rmtree(run.checkpoint_dir(4))
    assert train(styletune, recipe, run).code == 0
    assert run.adapter_file(6).read_bytes() == trained[1].adapter_file(6).read_bytes()


def test_without_an_earlier_state_nothing_is_to_be_deleted(
    styletune: Command, copied: tuple[Path, Run]
) -> None:
    """With keep_last = 1 there is no way back, and no advice that would lose the adapters."""
    recipe, run = copied
    run.state_file(2).unlink()
    run.state_file(4).write_bytes(b"half")
    fix = train(styletune, recipe, run, "train.keep_last=1").json["error"]["fix"]
    assert "delete" not in fix
    assert "--run-dir" in fix


def test_keep_last_keeps_all_adapters_and_the_last_states(
    styletune: Command, copied: tuple[Path, Run]
) -> None:
    """States beyond the number go, also those of before it was set; receipts and adapters stay."""
    recipe, run = copied
    answer = train(styletune, recipe, run, "train.keep_last=1")
    assert answer.code == 0, answer.err
    assert run.checkpoint_steps() == [2, 4, 6]
    assert [run.state_file(s).is_file() for s in (2, 4, 6)] == [False, False, True]
    for step in (2, 4, 6):
        receipt = json.loads(run.state_facts_file(step).read_text())
        assert receipt["adapter_sha256"] == file_sha256(run.adapter_file(step))


def test_temporary_files_of_a_kill_are_removed(
    styletune: Command, copied: tuple[Path, Run]
) -> None:
    """What an interrupted write left behind is gone after the next run."""
    recipe, run = copied
    left = run.checkpoint_dir(4) / ".state.safetensors.abc123"
    left.write_bytes(b"half")
    assert train(styletune, recipe, run).code == 0
    assert not left.exists()


def test_validation_without_held_out_images_is_refused(
    styletune: Command, brand: Path, tmp_path: Path
) -> None:
    """It would silently measure nothing."""
    brand.write_text(brand.read_text().split("[score]")[0])
    answer = train(
        styletune,
        brand,
        Run(tmp_path / "runs" / "run"),
        "train.validation_every=2",
        "data.holdout=0.0",
    )
    assert answer.code == 2
    assert answer.json["error"]["where"] == "[train] validation_every"

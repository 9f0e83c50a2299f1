"""Bad input: a clear error, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from job_parts import Answer
from styletune.mini import BASE_DIR

Command = Callable[..., Answer]


# A base that is not here; all tests plan it alike, because SDXL's size takes seconds to measure.
HUB_BASE = (
    "--set=base.model=acme/sdxl",
    "--set=data.resolution=128",
    "--set=score.batch_size=1",
)


def refuse(styletune: Command, recipe: Path, tmp_path: Path, *more: str | Path) -> Answer:
    """Plan and run must refuse alike and write nothing; returns run's answer."""
    runs = tmp_path / "runs"
    planned = styletune("plan", recipe, "--runs-dir", runs, *more)
    ran = styletune("run", recipe, "--runs-dir", runs, *more)
    assert planned.code == ran.code
    assert ran.code != 0
    assert "Traceback" not in ran.err
    assert ran.err.startswith("error: ") or "\nerror: " in ran.err
    assert not runs.exists()
    return ran


def edit(recipe: Path, old: str, new: str) -> None:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def test_unknown_key(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A misspelled key is bad input and answered with the right one."""
    edit(brand, "rank = 8", "rnak = 8")
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert 'did you mean "rank"' in answer.err


def test_key_in_the_wrong_section(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """The section where it belongs is named."""
    edit(brand, "rank = 8", "steps = 8")
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert "it belongs in [train]" in answer.err


def test_wrong_type(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A string where a number belongs is refused, not converted."""
    edit(brand, "batch_size = 8", 'batch_size = "8"')
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert "fix: a value such as 1" in answer.err


def test_missing_recipe(styletune: Command, tmp_path: Path) -> None:
    """A recipe that is not there: not found."""
    assert refuse(styletune, tmp_path / "nothing.toml", tmp_path).code == 3


def test_missing_folder(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A data folder that is not there is answered with the nearest name."""
    edit(brand, 'path = "brand"', 'path = "barnd"')
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 3
    assert "brand" in answer.err


def test_empty_folder(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A folder without images is bad input."""
    shutil.rmtree(brand.parent / "brand")
    (brand.parent / "brand").mkdir()
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert "image" in answer.err


def test_no_captions(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """Images without captions stop the run, and the fix names default_caption."""
    (brand.parent / "brand" / "metadata.jsonl").unlink()
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert "default_caption" in answer.err


def test_corrupt_image(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A truncated file is refused by name."""
    file = brand.parent / "brand" / "07.png"
    file.write_bytes(file.read_bytes()[:900])
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert "07.png" in answer.err


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda base: (base / "model_index.json").unlink(), "model_index.json"),
        (lambda base: shutil.rmtree(base / "vae"), "vae"),
        (lambda base: (base / "unet" / "config.json").write_text("{"), "config.json"),
        (lambda base: next((base / "unet").glob("*.safetensors")).unlink(), "unet"),
    ],
)
def test_unreadable_base(
    brand: Path, styletune: Command, tmp_path: Path, damage: Callable[[Path], None], part: str
) -> None:
    """A base folder that lacks a part is refused, and the part is named."""
    shutil.copytree(BASE_DIR, tmp_path / "base")
    damage(tmp_path / "base")
    edit(brand, "[data]", f'[base]\nmodel = "{tmp_path / "base"}"\n[data]')
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert part in answer.err


def test_truncated_base_weights(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """Half a weights file is a base-model error when it is loaded, and no run folder is begun."""
    shutil.copytree(BASE_DIR, tmp_path / "base")
    weights = next((tmp_path / "base" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:10_000])
    edit(brand, "[data]", f'[base]\nmodel = "{tmp_path / "base"}"\n[data]')
    answer = styletune("train", brand, "--runs-dir", tmp_path / "runs", "--json")
    assert answer.code == 2
    assert answer.json["error"]["kind"] == "base_model"
    assert not (tmp_path / "runs").exists()


def test_missing_base(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A missing folder and a Hub model that is not here: not found, with what to do."""
    answer = refuse(styletune, brand, tmp_path, "--set", "base.model=./nowhere")
    assert answer.code == 3
    hub = refuse(styletune, brand, tmp_path, *HUB_BASE)
    assert hub.code == 3
    assert "hf download acme/sdxl" in hub.err


@pytest.mark.parametrize("command", ["plan", "train"])
def test_a_rate_for_no_block_is_refused_before_anything_is_encoded(
    brand: Path, styletune: Command, tmp_path: Path, command: str
) -> None:
    """A pattern that matches nothing stops the plan and the run, with names as they look."""
    answer = styletune(
        command,
        brand,
        "--json",
        "--runs-dir",
        tmp_path / "runs",
        "--set",
        'adapter.block_learning_rates={"nowhere"=0.5}',
    )
    assert answer.code == 2
    assert "nowhere" in answer.json["error"]["message"]
    assert "down_blocks." in answer.json["error"]["fix"]
    assert not (tmp_path / "runs").exists()


def test_plan_before_the_weights_are_here(brand: Path, styletune: Command) -> None:
    """A plan for a model that is yet to be fetched has SDXL's figures and the command."""
    answer = styletune(
        "plan",
        brand,
        "--json",
        "--gpu",
        "RTX 4060",
        *HUB_BASE,
    )
    assert answer.code == 3
    plan = answer.json
    missing, memory = (p for p in plan["problems"] if p["severity"] == "error")
    assert "hf download acme/sdxl" in missing["fix"]
    assert memory["fix"].startswith('[train] mixed_precision = "bf16"')
    assert 10.2e9 < plan["memory"]["parts"]["unet"] < 10.4e9
    assert plan["compute"]["gpu"] == "RTX 4060"
    assert plan["compute"]["floor_s"] > 0


def test_output_in_place_of_a_file(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A run folder that cannot be made is an output error."""
    (tmp_path / "file").write_text("x")
    answer = styletune("train", brand, "--run-dir", tmp_path / "file" / "run", "--json")
    assert answer.code == 2
    assert answer.json["error"]["kind"] == "output"
    taken = styletune("train", brand, "--run-dir", tmp_path / "file", "--json")
    assert taken.code == 5


def test_full_disk(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """On a file system that is full, training stops with an output error and no traceback."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        answer = styletune(
            "train",
            brand,
            "--run-dir",
            small / "run",
            "--set",
            "train.steps=1",
            "--set",
            "preview.prompts=[]",
            "--json",
        )
        assert answer.code == 2
        assert answer.json["error"]["kind"] == "output"
        assert "no space" in answer.json["error"]["message"]
        assert list((small / "run").rglob("*.safetensors")) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_run_folder_of_another_recipe(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A run folder belongs to one recipe and one data set; others are refused with exit 5."""
    from styletune.job.facts import begin_run
    from styletune.job.prepare import prepare
    from styletune.recipe import load_recipe
    from styletune.runs.documents import BaseFacts

    run_dir = tmp_path / "run"
    job = prepare(load_recipe(brand), runs_dir=tmp_path, run_dir=run_dir)
    base = BaseFacts(model=job.base.model, hash=job.base.hash, resolution=job.resolution)
    begin_run(job.run, job.loaded, job.identity.training_hash, base, job.data)
    other = styletune("train", brand, "--run-dir", run_dir, "--set", "train.seed=9")
    assert other.code == 5
    assert "another recipe" in other.err
    image = brand.parent / "brand" / "03.png"
    Image.new("RGB", (128, 128), "red").save(image)
    changed = styletune("train", brand, "--run-dir", run_dir)
    assert changed.code == 5
    assert "another data set" in changed.err


def test_foreign_folder_is_not_touched(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A folder with somebody's files in it is not taken for a run."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    answer = styletune("train", brand, "--run-dir", tmp_path / "mine")
    assert answer.code == 5
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_nothing_held_out(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """Scoring needs held-out images, and says so before training."""
    answer = refuse(styletune, brand, tmp_path, "--set", "data.holdout=0")
    assert answer.code == 2
    assert "held out" in answer.err


def test_overlong_caption(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A caption that CLIP would cut off is refused before training, by file name."""
    metadata = brand.parent / "brand" / "metadata.jsonl"
    lines = metadata.read_text().splitlines()
    lines[4] = json.dumps({"file_name": "04.png", "text": "sea " * 90})
    metadata.write_text("\n".join(lines) + "\n")
    # 04.png may be held out, so hold nothing out and score nothing.
    edit(brand, "holdout = 0.25", "holdout = 0.0")
    text = brand.read_text()
    a, b = text.index("[score]"), text.index("[publish]")
    brand.write_text(text[:a] + text[b:])
    answer = refuse(styletune, brand, tmp_path)
    assert answer.code == 2
    assert "04.png" in answer.err


def test_publishing_needs_its_sections(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """Run --publish without [publish] stops before training."""
    text = brand.read_text()
    brand.write_text(text[: text.index("[publish]")])
    answer = styletune("run", brand, "--publish", "--runs-dir", tmp_path / "runs")
    assert answer.code == 2
    assert "[publish]" in answer.err
    assert not (tmp_path / "runs").exists()


def test_infinite_and_empty_values(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """Inf is not a number to train with, and an empty target adapts nothing."""
    for override in ("adapter.alpha=inf", "adapter.target=[]", "train.seed=nan"):
        assert refuse(styletune, brand, tmp_path, "--set", override).code == 2


def test_registry_and_generate_errors(styletune: Command, tmp_path: Path) -> None:
    """Missing registry, nonsense specs and seeds have their codes."""
    missing = tmp_path / "no-registry"
    assert styletune("pull", "x", "--registry", missing).code == 3
    assert styletune("generate", "x", "--registry", missing, "--prompt", "a").code == 3
    assert styletune("generate", "x", "--prompt", "a", "--seeds", "b").code == 2
    assert styletune("generate", "x", "--prompt", "a", "--seeds", "9-1").code == 2
    assert styletune("generate", "x").code == 2
    assert styletune("pull", "x@banana", "--registry", missing).code in (2, 3)
    assert styletune("publish").code == 2
    assert styletune("nonsense").code == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("pull", "@1"), "cannot name an adapter"),
        (("pull", "x", "--registry", "s3:/bucket"), "s3://bucket"),
        (("generate", "x", "--prompt", ""), "no words"),
        (("generate", "x", "--prompt", "..."), "no words"),
        (("generate", "x", "--prompts", "/"), "one prompt per line"),
        (("generate", "x", "--prompt", "a", "--out", __file__), "part of the path is a file"),
        (("generate", "x", "--prompt", "a", "--strength", "nan"), "not in the range"),
        (("generate", "x", "--prompt", "a", "--guidance-scale", "nan"), "not in the range"),
    ],
)
def test_requests_are_read_before_the_registry(
    words: tuple[str, ...], part: str, styletune: Command
) -> None:
    """What is wrong with the words is said, not that there is no registry here."""
    answer = styletune(*words)
    assert answer.code == 2
    assert part in answer.err


def test_errors_are_json_when_asked(styletune: Command, tmp_path: Path) -> None:
    """With --json an error is one document with kind, message, where and fix."""
    answer = styletune("plan", tmp_path / "no.toml", "--json")
    assert answer.code == 3
    assert set(answer.json["error"]) == {"kind", "message", "where", "fix"}
    usage = styletune("plan", "--json")
    assert usage.code == 2
    assert usage.json["error"]["kind"] == "bad_input"


def test_plan_answers_with_its_contract(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """``plan --json`` has the promised keys and writes nothing."""
    answer = styletune("plan", brand, "--runs-dir", tmp_path / "runs", "--json")
    assert answer.code == 0, answer.err
    document = answer.json
    assert {"recipe_hash", "problems", "data", "outputs"} <= set(document)
    assert document["data"]["train"] == 15
    assert document["data"]["holdout"] == 5
    assert document["train"]["checkpoints"] == [20, 40]
    assert not (tmp_path / "runs").exists()
    text = styletune("plan", brand, "--runs-dir", tmp_path / "runs")
    assert "15 to train on" in text.out
    assert "next:" in text.out


def test_help_is_quick() -> None:
    """``styletune --help`` takes at most half a processor second more than bare Python."""

    def best_of_five_s(*arguments: str) -> float:
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    bare = best_of_five_s("-c", "pass")
    assert best_of_five_s("-m", "styletune", "--help") - bare < 0.5


def test_schema_is_json(styletune: Command) -> None:
    """``recipe schema`` prints JSON Schema with every section."""
    document = json.loads(styletune("recipe", "schema").out)
    assert {"data", "train", "publish"} <= set(document["properties"])

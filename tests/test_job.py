"""The main job on the mini base, end to end, with real files."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

import golden_run
from job_parts import Answer, Finished, one_thread
from styletune.runs import Run
from styletune.runs.documents import read_facts
from styletune.sampling.png import read_settings
from styletune.scoring.report import write_report

Command = Callable[..., Answer]
SCORED = ("base", "step-000020", "step-000040")


def test_run_writes_every_promised_file(finished: Finished) -> None:
    """Recipe, facts, log, checkpoints, previews, samples, scores and report are there."""
    run = Run(finished.run_dir)
    assert run.checkpoint_steps() == [20, 40]
    for file in (run.recipe_file, run.facts_file, run.scores_file, run.report_file):
        assert file.stat().st_size > 0
    log = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert [line["step"] for line in log] == [10, 20, 30, 40]
    assert all(math.isfinite(line["loss"]) for line in log)
    assert len(list(run.previews_dir.glob("*.png"))) == 2
    leftovers = [p for p in finished.run_dir.rglob(".*") if p.is_file()]
    assert leftovers == [run.lock_file]


def test_run_answers_with_its_contract(finished: Finished) -> None:
    """``run --json`` holds run_dir, chosen, gate, published and seconds."""
    document = finished.document
    assert document["gate"] == "pass"
    assert document["chosen"]["checkpoint"] in SCORED[1:]
    assert document["published"]["version"] == "1.0.0"
    assert re.fullmatch(r"[0-9a-f]{64}", document["published"]["digest"])
    assert set(document["seconds"]) == {"train", "score", "publish"}


def test_training_learned_the_look(finished: Finished) -> None:
    """Forty steps bring the colors nearer to the held-out references than the base's."""
    summary = json.loads(Run(finished.run_dir).summary_file.read_text())
    metrics = {c["checkpoint"]: c["metrics"] for c in summary["checkpoints"]}
    base = summary["anchors"]["base"]
    assert metrics["step-000040"]["palette"]["value"] < 0.8 * base["palette"]["value"]


def test_scores_are_long_form(finished: Finished) -> None:
    """One row for each checkpoint, prompt, seed and per-image metric."""
    table = pq.read_table(Run(finished.run_dir).scores_file).to_pydict()
    columns = {"checkpoint", "strength", "prompt_id", "seed", "metric", "value", "encoder"}
    assert set(table) == columns
    assert set(table["checkpoint"]) == set(SCORED)
    assert len(table["value"]) == 3 * 8 * len(set(table["metric"]))


def test_images_carry_their_settings(finished: Finished) -> None:
    """Prompt, seed, step, adapter and strength are read back from every sample."""
    files = sorted((finished.run_dir / "samples").rglob("step-000040/*.png"))
    assert len(files) == 8
    for file in files:
        settings = read_settings(file)
        assert settings is not None
        assert str(settings["prompt"]).startswith("horizon style, ")
        assert f"-{settings['seed']}.png" in file.name
        assert (settings["step"], settings["adapter"], settings["strength"]) == (40, "small", 1.0)
        with Image.open(file) as image:
            assert f"Seed: {settings['seed']}" in image.info["parameters"]


def test_finished_run_does_nothing(finished: Finished, styletune: Command) -> None:
    """The same command again trains and scores nothing and changes no byte."""
    before = {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("*") if p.is_file()}
    answer = styletune(
        "run", finished.recipe, "--json", "--runs-dir", finished.run_dir.parent.parent
    )
    assert answer.code == 0, answer.err
    assert answer.json["run_dir"] == str(finished.run_dir)
    after = {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("*") if p.is_file()}
    assert before == after


def test_report_is_made_again_from_the_run_folder(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """Deleted pages come back with the bytes that scoring wrote, and nothing is measured again."""
    run, first = Run(tmp_path / "run"), Run(finished.run_dir)
    shutil.copytree(finished.run_dir, run.dir)
    kept = {
        p: p.stat().st_mtime_ns
        for p in run.dir.rglob("*")
        if p.is_file() and p not in (run.report_file, run.picture_file)
    }
    run.report_file.unlink()
    run.picture_file.unlink()
    answer = styletune("score", finished.recipe, "--run-dir", run.dir, "--json")
    assert answer.code == 0, answer.err
    assert run.report_file.read_bytes() == first.report_file.read_bytes()
    assert run.picture_file.read_bytes() == first.picture_file.read_bytes()
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_rights_declared_anew_are_in_the_report(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """Scored again with another card, facts and report follow it, and agree with each other."""
    project, run = tmp_path / "project", Run(tmp_path / "run")
    shutil.copytree(finished.recipe.parent, project)
    shutil.copytree(finished.run_dir, run.dir)
    card = project / "brand" / "dataset.toml"
    changed = re.sub(r"(?m)^holder = .*$", 'holder = "Somebody Else"', card.read_text())
    changed = re.sub(r"(?m)^palette = .*$", 'palette = ["#102030"]', changed)
    card.write_text(changed)
    answer = styletune("score", project / finished.recipe.name, "--run-dir", run.dir, "--json")
    assert answer.code in (0, 1), answer.err
    facts = read_facts(run).data
    assert (facts.palette, facts.rights.holder_names()) == (("#102030",), "Somebody Else")
    assert read_facts(Run(finished.run_dir)).data.order == facts.order
    html = run.report_file.read_bytes()
    assert b"Somebody Else" in html
    assert b"#102030" in html
    write_report(run)
    assert run.report_file.read_bytes() == html


def test_damaged_checkpoint_is_not_scored(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """One flipped bit in an adapter: integrity, exit code 4, for score and publish alike."""
    runs = tmp_path / "runs" / finished.run_dir.parent.name / finished.run_dir.name
    shutil.copytree(finished.run_dir, runs)
    file = Run(runs).adapter_file(20)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    answer = styletune("score", finished.recipe, "--runs-dir", tmp_path / "runs", "--json")
    assert answer.code == 4
    assert answer.json["error"]["kind"] == "integrity"


def test_new_version_needs_no_new_training(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """Another version number finds the same run and publishes at once."""
    registry = tmp_path / "registry"
    shutil.copytree(finished.registry, registry)
    answer = styletune(
        "publish",
        finished.recipe,
        "--json",
        "--registry",
        registry,
        "--runs-dir",
        finished.run_dir.parent.parent,
        "--set",
        "publish.version=1.1.0",
    )
    assert answer.code == 0, answer.err
    assert answer.json["version"] == "1.1.0"


def test_stale_scores_are_not_published(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """A suite changed after scoring must be scored again first."""
    shutil.copytree(finished.recipe.parent, tmp_path / "project")
    suite = tmp_path / "project" / "suite.toml"
    suite.write_text(suite.read_text().replace("palette_ratio = 0.99", "palette_ratio = 0.5"))
    answer = styletune(
        "publish",
        tmp_path / "project" / finished.recipe.name,
        "--json",
        "--registry",
        tmp_path / "registry",
        "--runs-dir",
        finished.run_dir.parent.parent,
    )
    assert answer.code == 1
    assert "score first" in answer.json["error"]["fix"]
    assert not (tmp_path / "registry").exists()


def test_second_publish_is_refused(finished: Finished, styletune: Command) -> None:
    """A version is published once; the answer is a conflict, exit code 5."""
    answer = styletune(
        "publish",
        finished.recipe,
        "--json",
        "--registry",
        finished.registry,
        "--runs-dir",
        finished.run_dir.parent.parent,
    )
    assert answer.code == 5
    assert answer.json["error"]["kind"] == "conflict"
    assert "1.0.1" in answer.json["error"]["fix"]


def test_published_version_generates(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """A pulled version draws images that name adapter, version and digest."""
    (tmp_path / "prompts.txt").write_text("a city at noon\n\nthe sea at night\n")
    answer = styletune(
        "generate",
        "small@^1",
        "--prompts",
        tmp_path / "prompts.txt",
        "--seeds",
        "101-102",
        "--steps",
        "4",
        "--registry",
        finished.registry,
        "--pulled",
        tmp_path / "pulled",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert answer.code == 0, answer.err
    images = [Path(p) for p in answer.json["images"]]
    assert len(images) == 4
    for image in images:
        settings = read_settings(image)
        assert settings is not None
        assert settings["adapter"] == "small"
        assert settings["version"] == "1.0.0"
        assert settings["digest"] == finished.document["published"]["digest"]
        assert str(settings["prompt"]).startswith("horizon style, ")


def test_published_file_shows_itself(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """The WebUI file's header holds a picture of 256 px at most, the counts, and no captions."""
    answer = styletune(
        "pull", "small@1.0.0", "--registry", finished.registry, "--to", tmp_path, "--json"
    )
    assert answer.code == 0, answer.err
    (file,) = tmp_path.rglob("webui/*.safetensors")
    with safe_open(file, framework="pt") as reader:
        header = reader.metadata()
    (cover,) = json.loads(header["ssmd_cover_images"])
    assert header["modelspec.thumbnail"] == f"data:image/jpeg;base64,{cover}"
    with Image.open(io.BytesIO(base64.b64decode(cover))) as picture:
        assert picture.size == (128, 128)
        assert not picture.info.get("comment")
    assert header["ss_num_train_images"] == "15"
    assert header["modelspec.implementation_version"].startswith("styletune ")
    assert "the sea at noon" not in json.dumps(header)


def test_tampered_blob_is_not_pulled(
    finished: Finished, styletune: Command, tmp_path: Path
) -> None:
    """One changed byte in the registry: exit code 4 and nothing on disk."""
    registry = tmp_path / "registry"
    shutil.copytree(finished.registry, registry)
    blob = max((registry / "blobs").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    answer = styletune("pull", "small", "--registry", registry, "--to", tmp_path / "p", "--json")
    assert answer.code == 4
    assert answer.json["error"]["kind"] == "integrity"
    assert not (tmp_path / "p" / "small" / "1.0.0").exists()


def test_untrained_adapter_is_refused(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """An adapter that learned nothing scores like the base: the gate says no, exit code 1."""
    options = (
        "--runs-dir",
        tmp_path / "runs",
        "--registry",
        tmp_path / "registry",
        "--set",
        "train.steps=1",
        "--set",
        "optimizer.learning_rate=1e-9",
        "--set",
        "preview.prompts=[]",
        "--json",
    )
    answer = styletune("run", brand, "--publish", *options)
    assert answer.code == 1, answer.err
    assert answer.json["gate"] == "fail"
    assert answer.json["published"] is None
    assert "the gate refuses" in answer.err
    assert not (tmp_path / "registry").exists()
    published = styletune("publish", brand, *options)
    assert published.code == 1
    assert published.json["error"]["kind"] == "check_failed"
    assert not (tmp_path / "registry").exists()


@pytest.mark.slow
def test_wandb_offline_logs_losses(brand: Path, tmp_path: Path) -> None:
    """With tracker = "wandb" the real library writes an offline run, without an account."""
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [
        sys.executable,
        "-m",
        "styletune",
        "train",
        str(brand),
        "--run-dir",
        str(tmp_path / "run"),
        "--set",
        "train.steps=2",
        "--set",
        "train.log_every=1",
        "--set",
        "train.tracker=wandb",
        "--set",
        "preview.prompts=[]",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logs = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 1
    assert b"grad_norm" in logs[0].read_bytes()


def demo_run(folder: Path) -> subprocess.CompletedProcess[str]:
    recipe = Path(__file__).parent.parent / "recipes" / "mini-horizon.toml"
    command = [
        sys.executable,
        "-m",
        "styletune",
        "run",
        str(recipe),
        "--runs-dir",
        str(folder),
        "--json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_demo_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """The demo's promises hold, and a second run chooses the same checkpoint, byte for byte."""
    first, second = demo_run(tmp_path / "a"), demo_run(tmp_path / "b")
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    a, b = json.loads(first.stdout), json.loads(second.stdout)
    assert a["chosen"]["checkpoint"] == b["chosen"]["checkpoint"]
    step = int(a["chosen"]["checkpoint"].removeprefix("step-"))
    files = [Run(Path(d["run_dir"])).adapter_file(step) for d in (a, b)]
    assert files[0].read_bytes() == files[1].read_bytes()
    golden = json.loads(golden_run.DEMO_FILE.read_text())
    with one_thread():
        assert golden_run.differences(golden, golden_run.demo_facts(Path(a["run_dir"]))) == []
    summary = json.loads(Run(Path(a["run_dir"])).summary_file.read_text())
    base, chosen = summary["confirmed"]["base"], summary["confirmed"]["metrics"]
    assert chosen["clip_image_gain"]["low"] > 0.05
    assert chosen["palette"]["value"] <= 0.4 * base["palette"]["value"]
    assert chosen["clip_text_loss"]["high"] <= 2 / 3 * 0.15
    assert summary["base"]["passed"] is False

"""Documents of a run folder: read as they were written, refused when they are damaged."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job_parts import without_nothings
from styletune.errors import BadInput, IntegrityError, NotFound, StyletuneError
from styletune.runs import Run
from styletune.runs.documents import read_facts, write_facts
from styletune.runs.find import find_runs
from styletune.runs.folder import checkpoint_name, column_label
from styletune.runs.log import LogLine, open_log, read_log
from styletune.runs.metrics import COLUMN_METRICS, METRIC_OF
from styletune.runs.scores import read_scores, write_scores
from styletune.runs.summary import missed_gates, read_summary, write_summary
from styletune.scoring.report import write_report
from styletune.scoring.suite import scored_suite

STORED = Path(__file__).parent / "stored" / "0.1.0.zip"
Read = Callable[[Run], object]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What version 0.1.0 left: a brand, its run and its registry."""
    folder = tmp_path_factory.mktemp("stored")
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def stored(unpacked: Path, tmp_path: Path) -> Run:
    """A copy of the stored run."""
    (folder,) = (unpacked / "runs" / "small").iterdir()
    shutil.copytree(folder, tmp_path / "runs" / "small" / folder.name)
    return Run(tmp_path / "runs" / "small" / folder.name)


def changed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def test_stored_documents_round_trip(stored: Run) -> None:
    """Each keeps every key and value; only what came later is added: a version, and nothings."""
    rewrites: tuple[tuple[Path, Callable[[], None]], ...] = (
        (stored.facts_file, lambda: write_facts(stored, read_facts(stored))),
        (stored.summary_file, lambda: write_summary(stored, read_summary(stored))),
    )
    for file, rewrite in rewrites:
        before = json.loads(file.read_text())
        rewrite()
        after = without_nothings(json.loads(file.read_text()))
        assert after == {"schema_version": 1, **without_nothings(before)}
        once = file.read_bytes()
        rewrite()
        assert file.read_bytes() == once


def test_stored_scores_round_trip(stored: Run) -> None:
    """The rows are the same ones, in the same order."""
    rows = read_scores(stored)
    assert {row.metric for row in rows} == {"clip_image", "clip_text", "palette"}
    assert len(rows) == 3 * 8 * 3
    write_scores(stored, rows)
    assert read_scores(stored) == rows


def test_stored_log_round_trips(stored: Run) -> None:
    """Every line gives back its own keys."""
    lines = read_log(stored)
    assert [line.step for line in lines] == [10, 20, 30, 40]
    texts = stored.log_file.read_text().splitlines()
    assert [line.as_json() for line in lines] == [json.loads(text) for text in texts]


def test_a_log_line_holds_validation_by_timestep() -> None:
    """The keys of the file become one mapping, and come back."""
    tree = {
        "step": 6,
        "loss": 0.5,
        "prior_loss": 0.25,
        "learning_rate": 1e-4,
        "grad_norm": None,
        "images_per_s": 3.5,
        "validation_loss": 0.75,
        "validation_loss/100": 0.5,
        "validation_loss/500": 1.0,
    }
    line = LogLine.model_validate(tree)
    assert line.validation_losses == {100: 0.5, 500: 1.0}
    assert line.as_json() == tree


def test_a_cut_last_line_does_not_count(stored: Run) -> None:
    """A kill cuts the last line; a line cut elsewhere is damage, named by its number."""
    text = stored.log_file.read_text()
    stored.log_file.write_text(text + '{"step": 50, "lo')
    assert [line.step for line in read_log(stored)] == [10, 20, 30, 40]
    stored.log_file.write_text(text.replace('{"step": 20', '{"step" 20'))
    with pytest.raises(IntegrityError, match="line 2"):
        read_log(stored)
    stored.log_file.unlink()
    assert read_log(stored) == ()


def test_a_resumed_log_keeps_the_lines_before_it(stored: Run) -> None:
    """Lines after the resumed step and a line cut in half go; new ones are appended."""
    before = stored.log_file.read_text().splitlines()
    with stored.log_file.open("a") as stream:
        stream.write('{"step": 50, "lo')
    append = open_log(stored, 20)
    append(read_log(stored)[0].model_copy(update={"step": 30}))
    lines = stored.log_file.read_text().splitlines()
    assert lines[:2] == before[:2]
    assert [line.step for line in read_log(stored)] == [10, 20, 30]


@pytest.mark.parametrize(
    "path", ["recipe_hash", "seed", "base.hash", "data.rights.lowered", "data.fingerprint"]
)
def test_a_missing_fact_is_named(stored: Run, path: str) -> None:
    """Nothing is filled in: a missing fact stops the reading by its name."""

    def remove(tree: dict[str, Any]) -> None:
        *parents, key = path.split(".")
        for parent in parents:
            tree = tree[parent]
        del tree[key]

    changed(stored.facts_file, remove)
    with pytest.raises(IntegrityError, match=rf"{path}: Field required") as error:
        read_facts(stored)
    assert error.value.where == str(stored.facts_file)
    assert error.value.fix


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree: tree["chosen"].update(step="40"), r"chosen\.step"),
        (lambda tree: tree.update(surprise=1), "surprise"),
        (lambda tree: tree["gates"][0].update(verdict="maybe"), r"gates\.0\.verdict"),
        (lambda tree: tree.update(suite=None), "suite"),
    ],
)
def test_a_damaged_summary_is_explained(
    stored: Run, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A wrong type, an unknown key and an impossible value are named, with what to do."""
    changed(stored.summary_file, damage)
    with pytest.raises(IntegrityError, match=message) as error:
        read_summary(stored)
    assert "score again" in error.value.fix


@pytest.mark.parametrize(
    ("name", "read"),
    [("facts_file", read_facts), ("summary_file", read_summary), ("scores_file", read_scores)],
)
def test_half_a_file_is_damage_and_no_file_is_not_found(stored: Run, name: str, read: Read) -> None:
    """A cut file is an IntegrityError with its path; a missing one is NotFound."""
    file: Path = getattr(stored, name)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(IntegrityError) as damaged:
        read(stored)
    assert (damaged.value.where, bool(damaged.value.fix)) == (str(file), True)
    file.unlink()
    with pytest.raises(NotFound):
        read(stored)


def test_scores_of_other_columns_are_damage(stored: Run) -> None:
    """A table without one of the columns is refused, and both lists are named."""
    import pyarrow.parquet as pq

    table = pq.read_table(stored.scores_file).drop_columns(["seed"])
    pq.write_table(table, stored.scores_file)
    with pytest.raises(IntegrityError, match="expected checkpoint, strength, prompt_id, seed"):
        read_scores(stored)


@pytest.mark.parametrize(
    ("name", "read"), [("facts_file", read_facts), ("summary_file", read_summary)]
)
def test_a_newer_form_is_refused(stored: Run, name: str, read: Read) -> None:
    """What a newer styletune wrote is not guessed at."""
    changed(getattr(stored, name), lambda tree: tree.update(schema_version=2))
    with pytest.raises(BadInput, match="written in form 2") as error:
        read(stored)
    assert "newer styletune" in error.value.fix


def test_a_published_summary_has_no_inputs(stored: Run) -> None:
    """It cannot make a report again, and says so."""
    summary = read_summary(stored)
    assert scored_suite(summary).texts[0] == "the sea at noon"
    assert "inputs" not in summary.public_json()
    with pytest.raises(IntegrityError, match="no inputs"):
        scored_suite(summary.model_copy(update={"inputs": None}))


def test_a_report_is_made_again_from_the_folder(stored: Run) -> None:
    """Also of a run that an earlier version scored: all numbers of its table are there."""
    stored.report_file.unlink()
    write_report(stored)
    html = stored.report_file.read_text()
    once = stored.report_file.read_bytes()
    write_report(stored)
    assert stored.report_file.read_bytes() == once
    for scores in read_summary(stored).checkpoints:
        there = [metric for metric in COLUMN_METRICS if metric.name in scores.metrics]
        assert len(there) == 5  # as version 0.1.0 measured
        for metric in there:
            value = scores.metrics[metric.name].value
            number = f"{value:.{metric.digits}f}".replace("-", "−")
            assert f"<td>{number}<small>" in html


def test_runs_are_found(stored: Run, tmp_path: Path) -> None:
    """Scored, unscored and separately placed runs are listed; the cache is not; damage is told."""
    runs_dir = tmp_path / "runs"
    for name in ("small/unscored", "apart", ".cache/hidden", "small/broken"):
        (runs_dir / name).mkdir(parents=True)
        shutil.copy(stored.facts_file, runs_dir / name)
    (runs_dir / "small" / "empty").mkdir()
    (runs_dir / "small" / "broken" / "run.json").write_text("{")
    entries, broken = find_runs(runs_dir)
    assert [(e.name, e.id, e.summary is not None) for e in entries] == [
        ("small", "apart", False),
        ("small", stored.dir.name, True),
        ("small", "unscored", False),
    ]
    assert entries[1].run == stored
    assert entries[1].facts == read_facts(stored)
    ((run, error),) = [(b.run, b.error) for b in broken]
    assert run.dir == runs_dir / "small" / "broken"
    assert isinstance(error, StyletuneError)
    assert find_runs(tmp_path / "nowhere") == ([], [])


def test_the_chosen_scores_lie_in_the_summary(stored: Run) -> None:
    """By name and strength; a choice that was not scored is damage."""
    summary = read_summary(stored)
    assert summary.chosen_scores.step == 40
    assert missed_gates(summary.chosen_scores.gates) == []
    other = summary.chosen.model_copy(update={"strength": 0.5})
    with pytest.raises(IntegrityError, match="step-000040"):
        _ = summary.model_copy(update={"chosen": other}).chosen_scores


def test_columns_have_one_name_and_one_label() -> None:
    """The folder's name sorts by step; people read the step, and a strength that is not 1."""
    assert checkpoint_name(200) == "step-000200"
    assert column_label("base", None, 0.0) == "base"
    assert column_label("step-000200", 200, 1.0) == "step 200"
    assert column_label("step-000200", 200, 0.8) == "step 200 at strength 0.8"


def test_feature_distances_name_their_features() -> None:
    """Nobody takes them for the usual FID and KID, in a table, on a page or in a card."""
    for name in ("fid", "kid"):
        metric = METRIC_OF[name]
        assert "CLIP" in metric.label
        assert "CLIP" in metric.short_label
        assert "not Inception" in metric.description


@pytest.mark.parametrize(
    "line", ["null", "[]", "7", '{"step": "x"}', '{"step": ' + "9" * 5000 + "}", "[" * 5000, "\0"]
)
def test_an_odd_line_of_the_log_does_not_stop_a_resume(line: str, tmp_path: Path) -> None:
    """The log is for people: what is not ours in it is dropped, the checkpoints decide."""
    run = Run(tmp_path)
    good = LogLine(step=1, loss=0.5, learning_rate=0.1, grad_norm=1.0, images_per_s=2.0)
    open_log(run, 0)(good)
    with run.log_file.open("a") as stream:
        stream.write(line + "\n")
    append = open_log(run, 1)
    append(good.model_copy(update={"step": 2}))
    assert [entry.step for entry in read_log(run)] == [1, 2]

"""The suite against planted adapters whose worth is known, drawn by the procedural world."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from styletune.errors import BadInput, RecipeError
from styletune.job.features import structures
from styletune.runs import Run
from styletune.runs.metrics import GATES, METRIC_OF, SET_METRICS
from styletune.runs.scores import read_scores, write_scores
from styletune.runs.summary import (
    GateVerdict,
    Metrics,
    Verdict,
    missed_gates,
    read_summary,
    write_summary,
)
from styletune.scoring.choose import Candidate, choose
from styletune.scoring.copies import Views
from styletune.scoring.gates import apply_gates
from styletune.scoring.score import Column, Scores, score_columns
from styletune.scoring.statistics import Estimate, prompts_needed
from styletune.scoring.suite import (
    Suite,
    SuiteGates,
    SuitePrompt,
    load_suite,
    prompt_id,
    suite_hash,
)
from world import EXTRAS, HORIZON, NATURAL, SCENES, TIMES, Look, View, caption, is_held_out, render

SUITE_FILE = Path(__file__).parents[2] / "eval" / "mini-backgrounds.toml"
VIEWS = [
    View("mountains", "sunset", ("clouds",), 0),
    View("sea", "noon", ("arch",), 0),
    View("city", "night", ("flag",), 0),
    View("forest", "dawn", ("balloon",), 0),
    View("desert", "sunset", (), 0),
    View("meadow", "night", ("sphere",), 0),
    View("room", "noon", ("plant",), 0),
    View("stage", "dawn", ("cube",), 0),
]
SEEDS = (11, 12)
SICKLY = Look(
    "sickly",
    ramp=((0, 40, 0), (40, 160, 20), (190, 255, 60)),
    texture="stripes",
    texture_strength=0.3,
)


def pixels_of(view: View, look: Look, seed: int) -> np.ndarray:
    return render(View(view.scene, view.time, view.extras, seed), look)


def colors(pixels: np.ndarray) -> np.ndarray:
    """A 4x4x4 color histogram (64,)."""
    bins = (pixels // 64).reshape(-1, 3).astype(int) @ (16, 4, 1)
    return np.bincount(bins, minlength=64) / bins.size


def layout(pixels: np.ndarray) -> np.ndarray:
    """A centered 12x12 map of edges (144,): what is drawn, whatever the colors."""
    gray = pixels.astype(float) @ (0.3, 0.59, 0.11)
    edges = np.abs(np.diff(gray, axis=1))[:-1] + np.abs(np.diff(gray, axis=0))[:, :-1]
    small = Image.fromarray(edges.astype(np.float32)).resize((12, 12), Image.Resampling.BOX)
    flat = np.sqrt(np.asarray(small, float)).ravel()
    flat -= flat.mean()
    unit: np.ndarray = flat / np.linalg.norm(flat)
    return unit


def oracle_features(pixels: np.ndarray, shown: View) -> np.ndarray:
    """Colors (64) beside what the image shows, from the world's truth, blurred by layout.

    The world knows what it drew, so the content half is exact: one axis a view.
    """
    content = np.zeros(len(VIEWS))
    content[[v.scene for v in VIEWS].index(shown.scene)] = 1
    h = np.sqrt(colors(pixels))
    return np.concatenate([h / np.linalg.norm(h), content * 0.7, 0.1 * layout(pixels)])


def text_features() -> np.ndarray:
    rows = np.zeros((len(VIEWS), 64 + len(VIEWS) + 144))
    rows[:, 64 : 64 + len(VIEWS)] = np.eye(len(VIEWS))
    return rows


def make_column(
    folder: Path,
    name: str,
    step: int | None,
    look: Look,
    shown: list[View],
    same_seed: bool = False,
) -> Column:
    folder.mkdir(parents=True, exist_ok=True)
    files, features, drawn = [], [], []
    for i, view in enumerate(shown):
        for seed in SEEDS:
            pixels = pixels_of(view, look, 11 if same_seed else seed + 100 * i)
            file = folder / f"{name}-{i}-{seed}.png"
            Image.fromarray(pixels).save(file)
            files.append(file)
            features.append(oracle_features(pixels, view))
            drawn.append(Image.fromarray(pixels))
    return Column(name, step, 1.0, files, Views(np.stack(features), structures(drawn)))


def make_suite() -> Suite:
    prompts = tuple(SuitePrompt(text=caption(v, 0)) for v in VIEWS)
    return Suite(name="planted", prompts=prompts, seeds=SEEDS, gates=SuiteGates(copies=0.7))


def brand_views(first_seed: int) -> tuple[Views, list[np.ndarray]]:
    """24 images of the brand, with their pixels."""
    pixels = [pixels_of(VIEWS[i % len(VIEWS)], HORIZON, first_seed + i) for i in range(24)]
    features = [oracle_features(p, VIEWS[i % len(VIEWS)]) for i, p in enumerate(pixels)]
    return Views(np.stack(features), structures([Image.fromarray(p) for p in pixels])), pixels


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scores, list[Column]]:
    """Base, then adapters: untrained, good, collapsed, off-palette, deaf."""
    folder = tmp_path_factory.mktemp("planted")
    deaf = VIEWS[3:] + VIEWS[:3]
    columns = [
        make_column(folder, "base", None, NATURAL, VIEWS),
        make_column(folder, "untrained", 0, NATURAL, VIEWS),
        make_column(folder, "good", 200, HORIZON, VIEWS),
        make_column(folder, "collapsed", 800, HORIZON, [VIEWS[0]] * len(VIEWS), same_seed=True),
        make_column(folder, "off-palette", 300, SICKLY, VIEWS),
        make_column(folder, "deaf", 400, HORIZON, deaf),
    ]
    rng = np.random.default_rng(5)
    references, features, drawn = [], [], []
    for i in range(24):
        view = VIEWS[i % len(VIEWS)]
        pixels = pixels_of(view, HORIZON, int(rng.integers(2**31)))
        drawn.append(Image.fromarray(pixels))
        references.append(folder / f"ref-{i}.png")
        Image.fromarray(pixels).save(references[-1])
        features.append(oracle_features(pixels, view))
    scores = score_columns(
        suite=make_suite(),
        columns=columns,
        text_features=text_features(),
        references=references,
        reference_views=Views(np.stack(features), structures(drawn)),
        training_views=brand_views(1000)[0],
        encoder_id="planted",
    )
    return scores, columns


def first_of(column: Column, count: int) -> Views:
    return Views(column.views.features[:count], column.views.structure[:count])


def verdicts(scores: Scores, name: str) -> dict[str, Verdict]:
    line = next(c for c in scores.summary.checkpoints if c.checkpoint == name)
    return {gate.name: gate.verdict for gate in line.gates}


def test_good_adapter_is_chosen(planted: tuple[Scores, list[Column]]) -> None:
    """The adapter with the right look and the right content passes all gates and is chosen."""
    summary = planted[0].summary
    assert set(verdicts(planted[0], "good").values()) == {"pass"}
    assert summary.chosen.checkpoint == "good"
    assert summary.chosen.passed is True
    assert [c.checkpoint for c in summary.checkpoints if c.passed] == ["good"]
    assert "step 200 passes all gates" in summary.chosen.reason.lower()


def test_untrained_adapter_fails(planted: tuple[Scores, list[Column]]) -> None:
    """The base's own images gain exactly nothing and fail on style and on palette."""
    found = verdicts(planted[0], "untrained")
    assert found["clip_image_gain"] == "fail"
    assert found["palette_ratio"] == "fail"


def test_collapse_fails_on_variety(planted: tuple[Scores, list[Column]]) -> None:
    """One image for all prompts; nobody else is blamed for it."""
    assert verdicts(planted[0], "collapsed")["variety"] == "fail"
    for name in ("untrained", "good", "off-palette", "deaf"):
        assert verdicts(planted[0], name)["variety"] == "pass"


@pytest.mark.parametrize(("name", "palette"), [("collapsed", "inconclusive"), ("deaf", "pass")])
def test_color_copiers_fail_on_text(
    planted: tuple[Scores, list[Column]], name: str, palette: str
) -> None:
    """Right colors do not help an adapter that ignores its prompts; one scene lacks some."""
    verdict = verdicts(planted[0], name)
    assert verdict["clip_text_loss"] == "fail"
    assert verdict["palette_ratio"] == palette


def test_off_palette_adapter_fails_on_palette(planted: tuple[Scores, list[Column]]) -> None:
    """Green is not the brand: the palette gate says so although the prompts are followed."""
    found = verdicts(planted[0], "off-palette")
    assert found["palette_ratio"] == "fail"
    assert found["clip_text_loss"] == "pass"


def test_anchors_bracket_the_good_adapter(planted: tuple[Scores, list[Column]]) -> None:
    """Its palette lies between the real-against-real floor and the base."""
    summary = planted[0].summary
    good = next(c for c in summary.checkpoints if c.checkpoint == "good").metrics
    real, base = summary.anchors.real, summary.anchors.base
    assert value_of(good, "palette") < 0.5 * value_of(base, "palette")
    assert value_of(real, "palette") < value_of(base, "palette")
    assert value_of(real, "clip_image") > value_of(base, "clip_image")
    assert "of 20 splits" in summary.anchors_how
    # Every measure that compares two sets has such a floor; Vendi is of one set.
    assert set(real) >= {metric.name for metric in SET_METRICS} - {"vendi"}


def value_of(metrics: Metrics, name: str) -> float:
    value = metrics[name].value
    assert value is not None
    return value


def test_fid_is_no_gate(planted: tuple[Scores, list[Column]]) -> None:
    """FID is measured for every column and gates none."""
    summary = planted[0].summary
    assert all("fid" in c.metrics for c in summary.checkpoints)
    assert {gate.name for c in summary.checkpoints for gate in c.gates} == {
        "copies",
        "variety",
        "clip_image_gain",
        "palette_ratio",
        "clip_text_loss",
    }


def test_rows_name_every_score_once(planted: tuple[Scores, list[Column]]) -> None:
    """The rows name every (checkpoint, prompt, seed, metric) once."""
    rows = planted[0].rows
    keys = {(r.checkpoint, r.strength, r.prompt_id, r.seed, r.metric) for r in rows}
    assert len(keys) == len(rows) == 6 * len(VIEWS) * len(SEEDS) * 3


def test_scores_are_written_as_agreed(planted: tuple[Scores, list[Column]], tmp_path: Path) -> None:
    """Parquet has the agreed columns, summary.json the agreed keys."""
    scores, _ = planted
    run = Run(tmp_path)
    write_scores(run, scores.rows)
    write_summary(run, scores.summary)
    table = pq.read_table(tmp_path / "scores" / "scores.parquet")
    assert table.column_names == [
        "checkpoint",
        "strength",
        "prompt_id",
        "seed",
        "metric",
        "value",
        "encoder",
    ]
    assert table.num_rows == len(scores.rows)
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary == scores.summary.as_json()
    assert read_summary(run) == scores.summary
    assert read_scores(run) == tuple(scores.rows)
    assert {"suite_hash", "chosen", "checkpoints", "anchors", "gates"} <= set(summary)
    assert {"checkpoint", "strength", "reason"} <= set(summary["chosen"])
    assert {"value", "low", "high", "n"} == set(summary["anchors"]["base"]["fid"])
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == [
        "scores.parquet",
        "summary.json",
    ]


def test_same_input_same_scores(planted: tuple[Scores, list[Column]]) -> None:
    """No score depends on the global generators of random numbers."""
    _, columns = planted

    def scores(seed: int) -> Scores:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return score_columns(
            suite=make_suite(),
            columns=columns[:2],
            text_features=text_features(),
            references=columns[2].images,
            reference_views=columns[2].views,
            training_views=brand_views(1000)[0],
            encoder_id="planted",
        )

    first, again = scores(1), scores(2)
    assert first.summary == again.summary
    assert first.rows == again.rows


def test_columns_that_do_not_fit_are_refused(planted: tuple[Scores, list[Column]]) -> None:
    """A missing image, a column given twice, and too few references stop the scoring."""
    _, columns = planted
    short = Column("short", 1, 1.0, columns[1].images[:-1], first_of(columns[1], 15))

    def score(cols: list[Column], count: int = 16) -> Scores:
        return score_columns(
            suite=make_suite(),
            columns=cols,
            text_features=text_features(),
            references=columns[2].images[:count],
            reference_views=first_of(columns[2], count),
            training_views=first_of(columns[3], 16),
            encoder_id="x",
        )

    with pytest.raises(BadInput, match="short"):
        score([columns[0], short])
    with pytest.raises(BadInput, match="twice"):
        score([columns[0], columns[1], columns[1]])
    with pytest.raises(BadInput, match="held-out"):
        score(columns[:2], count=3)
    with pytest.raises(BadInput, match="base"):
        score(columns[:1])


# -- gates and choice --------------------------------------------------------------------------


def judge(gain: Estimate, ratio: Estimate, loss: Estimate) -> list[GateVerdict]:
    """Of style, palette and prompt, in this order; nothing is copied."""
    metrics = {"clip_image_gain": gain, "palette_ratio": ratio, "clip_text_loss": loss}
    metrics["copies"] = Estimate(0.0, -0.05, 0.05, 9)
    metrics["variety_score"] = Estimate(90.0, 80.0, 100.0, 9)
    verdicts = {gate.name: gate for gate in apply_gates(SuiteGates(), metrics)}
    assert (verdicts.pop("copies").verdict, verdicts.pop("variety").verdict) == ("pass", "pass")
    return [verdicts[name] for name in ("clip_image_gain", "palette_ratio", "clip_text_loss")]


def test_gate_verdicts_follow_the_interval() -> None:
    """Wholly good passes, wholly bad fails, a straddling interval is inconclusive."""
    good = judge(Estimate(0.1, 0.05, 0.2, 9), Estimate(0.4, 0.3, 0.6, 9), Estimate(0, -0.1, 0.1, 9))
    assert missed_gates(good) == []
    wide = judge(Estimate(0.1, -0.1, 0.3, 9), Estimate(0.4, 0.3, 0.9, 9), Estimate(0, -0.1, 0.2, 9))
    assert [g.verdict for g in wide] == ["inconclusive"] * 3
    assert "more prompts" in wide[0].explanation
    bad = judge(Estimate(0, 0, 0, 9), Estimate(1, 1, 1, 9), Estimate(0.5, 0.4, 0.6, 9))
    assert [g.verdict for g in bad] == ["fail"] * 3


def test_every_gate_of_the_table_has_a_threshold_and_a_metric() -> None:
    """A suite sets exactly the gates of the table, and each judges a metric that is measured."""
    assert set(SuiteGates.model_fields) == {gate.name for gate in GATES}
    metrics = [METRIC_OF[gate.metric] for gate in GATES]
    assert all(metric.against_base or metric.on_scale for metric in metrics)


def test_every_measured_metric_is_in_the_table(planted: tuple[Scores, list[Column]]) -> None:
    """Table, CLI, report and card show what is measured, under the same names."""
    summary = planted[0].summary
    assert set(summary.anchors.base) == set(METRIC_OF)
    assert {row.metric for row in planted[0].rows} == {
        name for name, metric in METRIC_OF.items() if metric.per_image
    }


def test_undefined_loss_is_inconclusive() -> None:
    """An encoder that gives the base a negative text similarity cannot pass a checkpoint."""
    nan = float("nan")
    gates = judge(
        Estimate(0.1, 0.05, 0.2, 9), Estimate(0.4, 0.3, 0.6, 9), Estimate(nan, nan, nan, 9)
    )
    assert gates[2].verdict == "inconclusive"
    assert gates[2].value is None


def candidate(
    step: int, style: np.ndarray, verdict: Verdict = "pass", strength: float = 1.0
) -> Candidate:
    gate = GateVerdict(
        name="clip_text_loss",
        value=0,
        low=0,
        high=0,
        threshold=0.1,
        verdict=verdict,
        explanation="",
    )
    return Candidate(f"step-{step:06d}", step, strength, style, [gate])


BASE = np.linspace(0.3, 0.5, 16)
NOISE = np.random.default_rng(0).normal(0, 0.01, (3, 16))
NOISE -= NOISE.mean(1, keepdims=True)


def test_ties_go_to_the_earlier_step() -> None:
    """Step 400 is higher by less than the noise, so step 200 is kept; step 100 is clearly less."""
    chosen = choose(
        [
            candidate(100, BASE + 0.05 + NOISE[0]),
            candidate(200, BASE + 0.20 + NOISE[1]),
            candidate(400, BASE + 0.2005 + NOISE[1] + 0.3 * NOISE[2]),
        ],
        points=1000.0,
    )
    assert chosen.column == 1
    assert "step 400, ahead by 1 of 100 (" in chosen.why_not_others
    assert "within noise" in chosen.why_not_others


def test_a_distinguishable_gain_wins() -> None:
    """A later step that is clearly better is chosen although it is later."""
    steps = [candidate(s, BASE + 0.001 * s + NOISE[i]) for i, s in enumerate((100, 200, 300))]
    best = choose(steps)
    assert best.column == 2
    assert best.why_not_others == ""


def test_failing_checkpoints_are_not_chosen_over_passing_ones() -> None:
    """The highest style loses to a lower one that passes; if none passes, the reason says so."""
    high, low = candidate(300, BASE + 0.4 + NOISE[0], "fail"), candidate(100, BASE + 0.1 + NOISE[1])
    assert choose([high, low]).column == 1
    nearly = candidate(100, BASE + 0.1 + NOISE[1], "inconclusive")
    alone = choose([high, nearly])
    assert alone.column == 1


def test_strengths_that_do_as_well_are_told() -> None:
    """Around the chosen one, of its own checkpoint, without a gap; ties go to the weaker one."""
    rows = [
        candidate(100, BASE + 0.1 + NOISE[0], "fail", strength=0.4),
        candidate(100, BASE + 0.2 + NOISE[0], "pass", strength=0.6),
        candidate(100, BASE + 0.3 + NOISE[1], "pass", strength=0.8),
        candidate(100, BASE + 0.3 + NOISE[2], "pass", strength=1.0),
        candidate(200, BASE + 0.9 + NOISE[0], "fail", strength=0.6),
    ]
    chosen = choose(rows)
    assert (chosen.column, chosen.strengths) == (2, (0.6, 1.0))
    assert choose([*rows[:1], rows[4]]).strengths == (0.6, 0.6)


def test_more_prompts_are_named_where_they_would_tell() -> None:
    """Two steps within noise, and differences too wide to show 5 points with 16 prompts."""
    wide = np.random.default_rng(1).normal(0, 0.2, 16)
    chosen = choose([candidate(100, BASE), candidate(200, BASE + wide)], points=100.0)
    count = prompts_needed(wide, 0.05)
    assert count > 40
    assert f"about {count} prompts" in chosen.why_not_others


def test_nothing_to_choose_is_an_error() -> None:
    """An empty list of checkpoints is refused."""
    with pytest.raises(BadInput):
        choose([])


# -- suite ---------------------------------------------------------------------------------------


def test_shipped_suite_asks_for_untrained_compositions() -> None:
    """Scenes and hours in equal shares, each once, and none was in the base's training data."""
    suite = load_suite(SUITE_FILE)
    plain: dict[str, list[View]] = {}
    for scene in SCENES:
        for time in TIMES:
            for count in (0, 1, 2):
                for extras in permutations(EXTRAS, count):
                    view = View(scene, time, extras, 0)
                    plain.setdefault(caption(view, 0), []).append(view)
    assert suite.confirm is not None
    parts = [[plain[p][0] for p in part.texts] for part in (suite, suite.confirm)]
    views = parts[0] + parts[1]
    assert all(is_held_out(view) for view in views)
    assert len({(v.scene, v.time, frozenset(v.extras)) for v in views}) == len(views) == 47
    for part in (*parts, views):
        for shares in (Counter(v.scene for v in part), Counter(v.time for v in part)):
            assert max(shares.values()) - min(shares.values()) <= 1
        assert {v.scene for v in part} == set(SCENES)
        assert {v.time for v in part} == set(TIMES)
    for prompt in (*suite.prompts, *suite.confirm.prompts):
        assert prompt.tags == (plain[prompt.text][0].scene, plain[prompt.text][0].time)


def test_suites_for_photographs_are_neutral_and_whole() -> None:
    """100 prompts, most of them to confirm; 24 of them for a first look; tags in every group."""
    suite, quick = (load_suite(SUITE_FILE.with_name(f"{n}.toml")) for n in ("backgrounds", "quick"))
    assert suite.confirm is not None
    texts = {*suite.texts, *suite.confirm.texts}
    assert (len(suite.texts), len(suite.confirm.texts), len(texts)) == (40, 60, 100)
    assert suite.strengths == (0.6, 0.8, 1.0)
    assert len(set(quick.texts) & texts) == 24
    kinds = {"environment", "street", "interior", "staging", "game"}
    for prompts in (suite.prompts, suite.confirm.prompts, quick.prompts):
        assert {prompt.tags[0] for prompt in prompts} == kinds
    assert not any("style" in text for text in texts)


def test_suite_hash_is_of_the_images() -> None:
    """Another seed gives another hash; another threshold or name does not."""
    suite = make_suite()
    other = suite.model_copy(update={"seeds": (11, 13)})
    gates = suite.model_copy(update={"name": "x", "gates": SuiteGates(palette_ratio=0.5)})
    assert suite_hash(suite) == suite_hash(gates) != suite_hash(other)
    tagged = tuple(SuitePrompt(text=p.text, tags=("x",)) for p in suite.prompts)
    assert suite_hash(suite.model_copy(update={"prompts": tagged, "strengths": (0.5,)})) == (
        suite_hash(suite)
    )
    sampler = suite.sampler.model_copy(update={"scheduler": "DDIMScheduler"})
    assert suite_hash(suite.model_copy(update={"sampler": sampler})) != suite_hash(suite)
    assert prompt_id(3) == "p03"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('prompts = ["a", "b", "A "]\nseeds = [1]', "twice in the list"),
        ('prompts = ["a", "b", "c"]\nseeds = [1, 1]', "twice in the list"),
        ('prompts = ["a", "b", "c"]\nseeds = [1]\n[sampler]\nstep = 3', 'did you mean "steps"'),
        ('prompts = ["a", "b", "c"]\nseeds = [1]\n[gates]\npalette_ratio = 1.5', "palette_ratio"),
        ('prompts = ["a", "b", "c"]\nseeds = []', "seeds"),
        ('prompts = ["a", "b", "c"]\nseeds = [1]\nstrengths = [0.5, 0.5]', "twice in the list"),
        ('prompts = ["a", "b", "c"]\nseeds = [1]\nstrengths = [0]', "not above 0"),
        (
            'prompts = ["a", "b", "c"]\nseeds = [1]\n'
            '[confirm]\nprompts = ["d", " A ", "e"]\nseeds = [2]',
            "among those chosen on",
        ),
        (
            'prompts = ["a", "b", "c"]\nseeds = [1]\n'
            '[confirm]\nprompts = ["d", "e", "f"]\nseeds = [2, 1]',
            "a seed of [confirm]",
        ),
        ('prompts = ["a", {text = "b", tag = "x"}, "c"]\nseeds = [1]', 'did you mean "tags"'),
        ('prompts = ["a", {text = "b", tag = "x"}, "c"]\nseeds = [1]', "prompts, entry 2: unknown"),
        ('prompts = ["a", 3, "c"]\nseeds = [1]', "entry 2: a prompt is a text, or a table"),
        (
            'prompts = ["a", "b", "c"]\nseeds = [1]\n'
            '[confirm]\nprompts = ["d", "", "e"]\nseeds = [2]',
            "[confirm] prompts, entry 2: a prompt has no words",
        ),
        ('prompts = ["a", "b", " "]\nseeds = [1]', "a prompt has no words"),
    ],
)
def test_bad_suites_are_explained(tmp_path: Path, line: str, message: str) -> None:
    """A duplicate, a misspelled key and an impossible value are named with their place."""
    file = tmp_path / "suite.toml"
    file.write_text(f'name = "x"\n{line}\n')
    with pytest.raises(RecipeError) as error:
        load_suite(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_a_copier_is_flagged_and_its_pairs_are_named(tmp_path: Path) -> None:
    """Training images drawn again: the copies gate fails, and every pair names its source."""
    base = make_column(tmp_path, "base", None, NATURAL, VIEWS)
    good = make_column(tmp_path, "good", 200, HORIZON, VIEWS)
    training, _ = brand_views(1000)
    references, pixels = brand_views(5000)
    # Of each view, both seeds draw a training image again, with a little noise.
    sources = [i + len(VIEWS) * j for i in range(len(VIEWS)) for j in range(len(SEEDS))]
    noise = np.random.default_rng(0).normal(0, 1e-3, (len(sources), training.features.shape[1]))
    again = Views(training.features[sources] + noise, training.structure[sources])
    files = [tmp_path / f"ref-{i}.png" for i in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    copier = Column("copier", 100, 1.0, good.images, again)

    def scored(columns: list[Column], gates: SuiteGates) -> Scores:
        return score_columns(
            suite=make_suite().model_copy(update={"gates": gates}),
            columns=[base, *columns],
            text_features=text_features(),
            references=files,
            reference_views=references,
            training_views=training,
            encoder_id="planted",
        )

    scores = scored([good, copier], SuiteGates(copies=0.7))
    gates = {c.checkpoint: {g.name: g for g in c.gates} for c in scores.summary.checkpoints}
    assert gates["copier"]["copies"].value == pytest.approx(1, abs=0.01)
    assert gates["copier"]["copies"].verdict == "inconclusive"  # 8 prompts are few
    assert gates["good"]["copies"].verdict == "pass"
    assert scores.summary.chosen.checkpoint == "good"
    alone = scored([copier], SuiteGates(copies=0.1))
    assert all(pair.is_suspect for pair in alone.nearest)
    assert {g.name: g.verdict for g in alone.summary.gates}["copies"] == "fail"
    place = {(prompt_id(i), s): i * len(SEEDS) + j for i in range(8) for j, s in enumerate(SEEDS)}
    assert all(p.training == sources[place[p.prompt_id, p.seed]] for p in alone.nearest)

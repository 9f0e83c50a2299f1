"""The report in a real browser: self-contained, quiet, usable by mouse and keyboard."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from browser_parts import LOW_CONTRAST, open_page
from styletune.errors import BadInput, IntegrityError
from styletune.job.features import structures
from styletune.runs import Run
from styletune.runs.documents import (
    BaseFacts,
    DataFacts,
    DeclaredRights,
    RightsSummary,
    RunFacts,
    write_facts,
)
from styletune.runs.scores import write_scores
from styletune.runs.summary import ScoreInputs, missed_gates, read_summary, write_summary
from styletune.scoring.copies import Views
from styletune.scoring.figures import draw_grid
from styletune.scoring.report import write_picture, write_report
from styletune.scoring.score import Column, score_columns, with_confirmation
from styletune.scoring.suite import (
    Suite,
    SuiteConfirm,
    SuiteGates,
    SuitePrompt,
    sample_names,
    suite_hash,
)
from world import HORIZON, HORIZON_PALETTE, NATURAL, View, render

SCENES = ("mountains", "sea", "city", "forest")
SEEDS = (5, 6)
CHROMIUM = shutil.which("chromium")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def feature(pixels: np.ndarray, content: int, follow: float) -> np.ndarray:
    color = pixels.reshape(-1, 3).mean(0) / 255 - 0.5
    return np.concatenate([color / np.linalg.norm(color), follow * np.eye(4)[content]])


PROMPTS = ("mountains at noon", 'the sea <b>&</b> "sky"', "a city", "a forest")
TEXTS = np.concatenate([np.zeros((4, 3)), np.eye(4)], axis=1)
MIXES = {"base": 0.0, "step-000010": 0.3, "step-000020": 0.9, "step-000030": 1.0}


def small_suite(gates: SuiteGates, confirm: bool = False) -> Suite:
    """``confirm``: the same scenes in other words, with one seed."""
    prompts = tuple(SuitePrompt(text=text, tags=("outdoors",)) for text in PROMPTS)
    again = tuple(SuitePrompt(text=f"{p.text}, again", tags=p.tags) for p in prompts)
    fresh = SuiteConfirm(prompts=again, seeds=(77,)) if confirm else None
    return Suite(name="small", prompts=prompts, seeds=SEEDS, gates=gates, confirm=fresh)


def draw_column(run: Run, suite: Suite, name: str) -> Column:
    """Images between the base's look and the brand's, where a run keeps them."""
    folder, mix, seeds = run.samples_dir(suite_hash(suite), name), MIXES[name], suite.seeds
    files, features, drawn = [folder / file for file in sample_names(suite)], [], []
    folder.mkdir(parents=True)
    for i, file in enumerate(files):
        scene = i // len(seeds)
        view = View(SCENES[scene], "noon", (), seeds[i % len(seeds)])
        blend = render(view, NATURAL, 64) * (1 - mix) + render(view, HORIZON, 64) * mix
        pixels = blend.astype(np.uint8)
        Image.fromarray(pixels).save(file)
        features.append(feature(pixels, scene, 1 - 0.2 * mix))
        drawn.append(Image.fromarray(pixels))
    step = None if name == "base" else int(name.removeprefix("step-"))
    views = Views(np.stack(features), structures(drawn))
    return Column(name, step, 0.0 if step is None else 1.0, files, views)


def draw_references(run: Run, suite: Suite) -> tuple[list[Path], np.ndarray]:
    folder = run.references_dir(suite_hash(suite))
    folder.mkdir(parents=True)
    files, features = [], []
    for i in range(8):
        pixels = render(View(SCENES[i % 4], "noon", (), 100 + i), HORIZON, 64)
        files.append(folder / f"{i:04d}.png")
        Image.fromarray(pixels).save(files[-1])
        features.append(feature(pixels, i % 4, 1))
    return files, np.stack(features)


def run_facts(title: str, palette: tuple[str, ...]) -> RunFacts:
    rights = DeclaredRights(images=12, license="CC0-1.0", holder="A & B", source="", consent="")
    return RunFacts(
        recipe=title,
        recipe_hash="a" * 64,
        training_hash="b" * 64,
        seed=3,
        base=BaseFacts(model="/home/eve/models/sdxl", hash="c" * 64, resolution=64),
        data=DataFacts(
            fingerprint="d" * 64,
            order="e" * 64,
            train=("a.png",),
            holdout=("b.png",),
            trigger="",
            palette=palette,
            rights=RightsSummary(images=12, declared=(rights,), opt_out=None, lowered={}),
            warnings=(),
        ),
        versions={"torch": "2.15.0"},
        platform="somewhere",
        device="cpu",
    )


def make_scored(
    folder: Path,
    *,
    gates: SuiteGates | None = None,
    columns: Sequence[str] = tuple(MIXES),
    palette: Sequence[str] = HORIZON_PALETTE,
    confirm: bool = False,
) -> Run:
    """A scored run: base and checkpoints of four prompts, one prompt with markup in it."""
    run, suite = (
        Run(folder),
        small_suite(gates or SuiteGates(clip_text_loss=0.6, copies=0.9), confirm),
    )
    drawn = [draw_column(run, suite, name) for name in columns]
    references, features = draw_references(run, suite)
    views = Views(features, structures([Image.open(file) for file in references]))
    scores = score_columns(
        suite=suite,
        columns=drawn,
        text_features=TEXTS,
        references=references,
        reference_views=views,
        training_views=Views(features + 0.01, -views.structure),
        encoder_id="hand-made",
    )
    if suite.confirmation:
        fresh = suite.confirmation
        confirmed = score_columns(
            suite=fresh,
            columns=[
                draw_column(run, fresh, n) for n in ("base", scores.summary.chosen.checkpoint)
            ],
            text_features=TEXTS,
            references=references,
            reference_views=views,
            training_views=Views(features + 0.01, -views.structure),
            encoder_id="hand-made",
            prompt_letter="c",
        )
        scores = with_confirmation(scores, confirmed)
    inputs = ScoreInputs(
        suite=suite.model_dump(mode="json"),
        base="c" * 64,
        data="d" * 64,
        trigger="",
        palette=tuple(palette),
        adapters={},
        styletune="0",
    )
    write_facts(run, run_facts("a <brand>", tuple(palette)))
    write_scores(run, scores.rows)
    write_summary(run, scores.summary.model_copy(update={"inputs": inputs}))
    return run


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose report is written."""
    run = make_scored(tmp_path_factory.mktemp("report"))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(scored: Run) -> Path:
    return scored.report_file


def test_report_is_quiet_and_alone(browser: Browser, report: Path) -> None:
    """Used by mouse and keyboard, it logs nothing and requests nothing but itself."""
    page, noise = open_page(browser, report)
    page.locator(".seeds button").nth(1).click()
    page.locator(".cell").first.click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert noise.said == []
    assert [url for url in noise.asked if not url.startswith("data:")] == [report.as_uri()]
    page.close()


def test_all_images_are_drawn_and_described(browser: Browser, report: Path) -> None:
    """Every image decodes; every image and every picture of numbers has a text."""
    page, _ = open_page(browser, report)
    page.wait_for_function(
        "[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth > 0)"
    )
    assert page.locator("main img, header img").count() > 40
    assert page.locator("main img:not([alt]), header img[alt='']").count() == 0
    assert page.locator("svg:not([aria-label])").count() == 0
    page.close()


def test_seed_switcher_changes_every_cell(browser: Browser, report: Path) -> None:
    """One seed is visible at a time, in all cells, and the button says which."""
    page, _ = open_page(browser, report)
    visible = "[...document.querySelectorAll('#grid img')].filter(i => !i.hidden).map(i => i.alt)"
    assert all(alt.endswith("seed 5") for alt in page.evaluate(visible))
    page.locator(".seeds button", has_text="6").click()
    shown = page.evaluate(visible)
    assert len(shown) == 16
    assert all(alt.endswith("seed 6") for alt in shown)
    assert page.locator(".seeds [aria-pressed=true]").inner_text() == "6"
    page.close()


def test_arrow_keys_walk_the_grid_and_the_large_view(browser: Browser, report: Path) -> None:
    """Arrows move between checkpoints and prompts, closed and enlarged, and stop at edges."""
    page, _ = open_page(browser, report)
    page.locator(".cell").first.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    place = "(({row, col}) => [row, col])(document.activeElement.dataset)"
    assert page.evaluate(place) == ["1", "1"]
    page.keyboard.press("Enter")
    assert page.locator("#zoom").is_visible()
    assert page.locator("#ztitle").inner_text() == 'the sea <b>&</b> "sky"'
    page.keyboard.press("ArrowRight")
    assert page.locator("#zr").inner_text() == "step 20"
    page.keyboard.press("ArrowDown")
    assert page.locator("#ztitle").inner_text() == "a city"
    page.keyboard.press("Escape")
    assert page.locator("#zoom").is_hidden()
    assert page.evaluate(place) == ["2", "2"]
    page.keyboard.press("Enter")
    # The browser may report the first closing only now.
    page.evaluate("document.getElementById('zoom').dispatchEvent(new Event('close'))")
    assert page.locator("#zoom").is_visible()
    page.keyboard.press("ArrowUp")
    at_once = f"(document.getElementById('zclose').click(), {place})"
    assert page.evaluate(at_once) == ["1", "2"]
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(place) == ["1", "1"]
    page.close()


def test_slider_cuts_between_base_and_adapter(browser: Browser, report: Path) -> None:
    """The slider moves the cut, by keyboard too, without leaving the image."""
    page, _ = open_page(browser, report)
    page.locator('.cell[data-row="0"][data-col="2"]').click()
    page.locator("#cut").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("#ab").get_attribute("style") is not None
    assert "55%" in str(page.locator("#ab").get_attribute("style"))
    assert page.locator("#ztitle").inner_text() == "mountains at noon"
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_width(browser: Browser, report: Path, width: int) -> None:
    """Nothing but the tables' own boxes scrolls sideways."""
    page, _ = open_page(browser, report, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_column_headers_stay_in_view(browser: Browser, report: Path) -> None:
    """Scrolled inside the grid, the header row keeps its place."""
    page, _ = open_page(browser, report)
    page.evaluate("document.querySelector('.scroll').style.maxHeight = '300px'")
    top = "document.querySelector('#grid thead th').getBoundingClientRect().top"
    before = page.evaluate(top)
    page.evaluate("document.querySelector('.scroll').scrollTop = 200")
    assert page.evaluate(top) == before
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, report: Path, scheme: str) -> None:
    """All text reaches WCAG AA, 4.5 to 1, in the light and in the dark scheme."""
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(report.as_uri())
    assert page.evaluate(LOW_CONTRAST) == []
    page.close()


def test_report_says_what_matters(report: Path, scored: Run) -> None:
    """Choice, gates, FID's warning and provenance are in the text; markup is escaped."""
    html = report.read_text(encoding="utf-8")
    step = read_summary(scored).chosen.step
    assert re.search(rf"<h1>[^<]*step {step}</h1>", html)
    assert "a &lt;brand&gt;" in html
    assert "<b>&</b>" not in html
    assert "A &amp; B" in html
    assert "never a gate" in html
    assert "FID on CLIP features" in html
    assert "/home/eve" not in html
    assert html.count("★ chosen") == 1 + 3  # the grid and three tables
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)


def test_failed_gates_change_the_headline(tmp_path: Path) -> None:
    """A suite that nothing passes never reads as ready."""
    run = make_scored(tmp_path, gates=SuiteGates(clip_image_gain=1.9))
    write_report(run)
    html = run.report_file.read_text()
    assert "Not ready: step" in html
    assert "Ready for" not in html


def test_a_confirmed_choice_is_reported_of_its_fresh_images(
    browser: Browser, tmp_path: Path
) -> None:
    """Strip, gates, picture and worst prompts are of the confirmation; the grid has both."""
    run = make_scored(tmp_path, confirm=True)
    write_report(run)
    write_picture(run)
    summary = read_summary(run)
    assert summary.confirmed is not None
    assert (summary.confirmed.prompts, summary.confirmed.images) == (4, 4)
    assert "no part in the choice" in summary.chosen.reason
    assert summary.chosen.passed == (not missed_gates(summary.gates))
    page, noise = open_page(browser, run.report_file)
    assert page.locator(".strip figcaption").all_inner_texts()[0] == f"{PROMPTS[0]}, again"
    rows = page.locator("#grid tbody tr")
    assert rows.count() == 2 * len(PROMPTS)
    assert rows.nth(0).locator(".cell").count() == len(MIXES)
    assert rows.nth(len(PROMPTS)).locator(".cell").count() == 2
    # The second seed: prompts that confirm have one alone, and keep it.
    page.locator(".seeds button").nth(1).click()
    hidden = "i => getComputedStyle(i).display === 'none'"
    last = rows.nth(len(PROMPTS)).locator("img")
    assert [last.nth(i).evaluate(hidden) for i in range(last.count())] == [False, False]
    # Up and down between both halves, and the large view in the lower one.
    rows.nth(len(PROMPTS)).locator(".cell").first.click()
    assert page.locator("#ztitle").inner_text() == f"{PROMPTS[0]}, again"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    links = page.locator("td a, th a")
    assert "row-c" in (links.first.get_attribute("href") or "")
    assert page.locator("h2", has_text="By group").count() == 1
    assert page.locator("th", has_text="confirmed").count() == 3 * 2
    assert noise.said == []
    page.close()


def test_palette_must_be_hex(scored: Run, tmp_path: Path) -> None:
    """A color goes into a style attribute, so only #rrggbb is let through."""
    shutil.copytree(scored.dir, tmp_path / "run")
    run = Run(tmp_path / "run")
    facts = json.loads(run.facts_file.read_text())
    facts["data"]["palette"] = ["red;background:url(x)"]
    run.facts_file.write_text(json.dumps(facts))
    with pytest.raises(IntegrityError, match=r"data\.palette"):
        write_report(run)


def test_one_checkpoint_and_no_palette_make_a_report(tmp_path: Path) -> None:
    """A single checkpoint, without brand colors, still gives a whole page."""
    run = make_scored(tmp_path, columns=("base", "step-000020"), palette=())
    write_report(run)
    html = run.report_file.read_text()
    assert html.rstrip().endswith("</html>")
    assert html.count('<figure class="fig">') == 5


def test_same_folder_same_report(scored: Run, tmp_path: Path) -> None:
    """Written from a copy of the folder, the report is the same byte for byte."""
    shutil.copytree(scored.dir, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.report_file.unlink()
    write_report(run)
    assert run.report_file.read_bytes() == scored.report_file.read_bytes()


def test_missing_images_are_named(scored: Run, tmp_path: Path) -> None:
    """Without a sample or a reference there is no page, and the message says which."""
    shutil.copytree(scored.dir, tmp_path / "run")
    run = Run(tmp_path / "run")
    suite_id = read_summary(run).suite_hash
    sample = run.samples_dir(suite_id, "step-000010") / "p01-6.png"
    sample.rename(tmp_path / "kept.png")
    with pytest.raises(IntegrityError, match=r"p01-6\.png is missing"):
        write_report(run)
    (tmp_path / "kept.png").rename(sample)
    (run.references_dir(suite_id) / "0003.png").unlink()
    with pytest.raises(IntegrityError, match="7 references, the scores are of 8"):
        write_report(run)


def test_picture_shows_base_choice_and_references(scored: Run) -> None:
    """Three rows of one image per prompt, from the folder alone."""
    write_picture(scored)
    with Image.open(scored.picture_file) as picture:
        assert picture.width > 4 * 192
        assert picture.height > 3 * 192


def test_contact_sheet_has_rows_and_cells(scored: Run, tmp_path: Path) -> None:
    """The sheet is a PNG wide enough for the longest row, with the images in it."""
    suite_id = read_summary(scored).suite_hash
    base = sorted(scored.samples_dir(suite_id, "base").iterdir())
    references = sorted(scored.references_dir(suite_id).iterdir())
    rows = [("Base", base[:4]), ("References", references[:3])]
    draw_grid(tmp_path / "g" / "sheet.png", rows, cell_px=64)
    sheet = np.asarray(Image.open(tmp_path / "g" / "sheet.png"))
    assert sheet.shape[1] == 2 * 12 + 4 * 64 + 3 * 4
    first = np.asarray(Image.open(base[0]).convert("RGB"))
    top = 12 + int(13 * 1.9)
    np.testing.assert_array_equal(sheet[top : top + 64, 12:76], first)
    with pytest.raises(BadInput):
        draw_grid(tmp_path / "empty.png", [("none", [])])

"""The report in a real browser: self-contained, quiet, usable by mouse and keyboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from browser_parts import open_page
from styletune.errors import BadInput
from styletune.scoring.figures import draw_grid
from styletune.scoring.report import write_report
from styletune.scoring.score import Column, Scores, score_columns
from styletune.scoring.suite import Suite, SuiteGates
from world import HORIZON, HORIZON_PALETTE, NATURAL, View, render

SCENES = ("mountains", "sea", "city", "forest")
SEEDS = (5, 6)
CHROMIUM = shutil.which("chromium")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass(frozen=True, slots=True)
class Material:
    """What a report is made of."""

    folder: Path
    suite: Suite
    columns: list[Column]
    references: list[Path]
    scores: Scores


def feature(pixels: np.ndarray, content: int, follow: float) -> np.ndarray:
    color = pixels.reshape(-1, 3).mean(0) / 255 - 0.5
    return np.concatenate([color / np.linalg.norm(color), follow * np.eye(4)[content]])


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Base and three checkpoints of four prompts, one prompt with markup in it."""
    folder = tmp_path_factory.mktemp("report")
    prompts = ("mountains at noon", 'the sea <b>&</b> "sky"', "a city", "a forest")
    suite = Suite(name="small", prompts=prompts, seeds=SEEDS, gates=SuiteGates(clip_text_loss=0.6))

    def column(name: str, step: int | None, mix: float) -> Column:
        files, features = [], []
        for i, scene in enumerate(SCENES):
            for seed in SEEDS:
                view = View(scene, "noon", (), seed)
                blend = render(view, NATURAL, 64) * (1 - mix) + render(view, HORIZON, 64) * mix
                pixels = blend.astype(np.uint8)
                files.append(folder / f"{name}-{i}-{seed}.png")
                Image.fromarray(pixels).save(files[-1])
                features.append(feature(pixels, i, 1 - 0.2 * mix))
        return Column(name, step, 1.0, files, np.stack(features))

    columns = [
        column("base", None, 0),
        column("step-000010", 10, 0.3),
        column("step-000020", 20, 0.9),
        column("step-000030", 30, 1.0),
    ]
    references, features = [], []
    for i in range(8):
        pixels = render(View(SCENES[i % 4], "noon", (), 100 + i), HORIZON, 64)
        references.append(folder / f"ref-{i}.png")
        Image.fromarray(pixels).save(references[-1])
        features.append(feature(pixels, i % 4, 1))
    texts = np.concatenate([np.zeros((4, 3)), np.eye(4)], axis=1)
    scores = score_columns(
        suite=suite,
        columns=columns,
        text_features=texts,
        references=references,
        reference_features=np.stack(features),
        encoder_id="hand-made",
    )
    return Material(folder, suite, columns, references, scores)


def make_report(material: Material, path: Path, title: str = "a <brand>") -> Path:
    write_report(
        path,
        title=title,
        suite=material.suite,
        scores=material.scores,
        columns=material.columns,
        references=material.references,
        brand_palette=HORIZON_PALETTE,
        facts={"Recipe": "demo & more"},
    )
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(material: Material) -> Path:
    return make_report(material, material.folder / "out" / "report.html")


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


CONTRAST = """() => {
  const linear = x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const back = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > .5) return c;
    }
    return [255, 255, 255];
  };
  const low = [], texts = 'h1,h2,h3,p,small,th,td,dt,dd,figcaption,code,a,.badge,.big,button';
  for (const e of document.querySelectorAll(texts)) {
    const a = light(parse(getComputedStyle(e).color)), b = light(back(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push(e.textContent.trim().slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, report: Path, scheme: str) -> None:
    """All text reaches WCAG AA, 4.5 to 1, in the light and in the dark scheme."""
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(report.as_uri())
    assert page.evaluate(CONTRAST) == []
    page.close()


def test_report_says_what_matters(report: Path, material: Material) -> None:
    """Choice, gates, FID's warning and provenance are in the text; markup is escaped."""
    html = report.read_text(encoding="utf-8")
    step = material.scores.summary["chosen"]["step"]
    assert re.search(rf"<h1>[^<]*step {step}</h1>", html)
    assert "a &lt;brand&gt;" in html
    assert "<b>&</b>" not in html
    assert "demo &amp; more" in html
    assert "never a gate" in html
    assert html.count("★ chosen") == 2
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)


def test_failed_gates_change_the_headline(material: Material, tmp_path: Path) -> None:
    """A suite that nothing passes never reads as ready."""
    strict = material.suite.model_copy(update={"gates": SuiteGates(clip_image_gain=1.9)})
    scores = score_columns(
        suite=strict,
        columns=material.columns,
        text_features=np.concatenate([np.zeros((4, 3)), np.eye(4)], axis=1),
        references=material.references,
        reference_features=material.columns[3].image_features,
        encoder_id="hand-made",
    )
    failed = Material(tmp_path, strict, material.columns, material.references, scores)
    html = make_report(failed, tmp_path / "r.html").read_text()
    assert "Not ready: step" in html
    assert "Ready for" not in html


def test_palette_must_be_hex(material: Material, tmp_path: Path) -> None:
    """A colour goes into a style attribute, so only #rrggbb is let through."""
    with pytest.raises(BadInput, match="not a colour"):
        write_report(
            tmp_path / "r.html",
            title="x",
            suite=material.suite,
            scores=material.scores,
            columns=material.columns,
            references=material.references,
            brand_palette=["red;background:url(x)"],
            facts={},
        )


def test_one_checkpoint_and_no_palette_make_a_report(material: Material, tmp_path: Path) -> None:
    """A single checkpoint, without brand colours and facts, still gives a whole page."""
    columns = material.columns[:1] + material.columns[2:3]
    scores = score_columns(
        suite=material.suite,
        columns=columns,
        text_features=np.concatenate([np.zeros((4, 3)), np.eye(4)], axis=1),
        references=material.references,
        reference_features=material.columns[3].image_features,
        encoder_id="hand-made",
    )
    path = tmp_path / "r.html"
    write_report(
        path,
        title="one",
        suite=material.suite,
        scores=scores,
        columns=columns,
        references=material.references,
        brand_palette=[],
        facts={},
    )
    html = path.read_text()
    assert html.rstrip().endswith("</html>")
    assert html.count('<figure class="fig">') == 4


def test_same_scores_same_report(material: Material, report: Path, tmp_path: Path) -> None:
    """Written twice, the report is the same byte for byte."""
    assert make_report(material, tmp_path / "again.html").read_bytes() == report.read_bytes()


def test_contact_sheet_has_rows_and_cells(material: Material, tmp_path: Path) -> None:
    """The sheet is a PNG wide enough for the longest row, with the images in it."""
    rows = [("Base", material.columns[0].images[:4]), ("References", material.references[:3])]
    draw_grid(tmp_path / "g" / "sheet.png", rows, cell_px=64)
    sheet = np.asarray(Image.open(tmp_path / "g" / "sheet.png"))
    assert sheet.shape[1] == 2 * 12 + 4 * 64 + 3 * 4
    first = np.asarray(Image.open(material.columns[0].images[0]).convert("RGB"))
    top = 12 + int(13 * 1.9)
    np.testing.assert_array_equal(sheet[top : top + 64, 12:76], first)
    with pytest.raises(BadInput):
        draw_grid(tmp_path / "empty.png", [("none", [])])

"""The picture of a set in a real browser: it says what to do, and every part of it works."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from PIL import Image, ImageEnhance
from playwright.sync_api import Browser, Page, sync_playwright

from browser_parts import LOW_CONTRAST, open_page
from styletune.data.checked import Checked
from styletune.data.findings import Finding
from styletune.data.inspection.duplicates import (
    clusters,
    duplicate_findings,
    duplicate_groups,
)
from styletune.data.inspection.facts import ImageFacts, PaletteFacts
from styletune.data.inspection.inspect import inspect_image
from styletune.data.inspection.sizes import size_findings
from styletune.data.pixels.buckets import bucket_table, choose_bucket, plan_crop
from styletune.data.report.page import write_data_report
from styletune.data.report.pictures import visible_text
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item, Rights
from styletune.data.split import split_groups
from world import HORIZON_PALETTE, NATURAL, View, render

# The system's browser, else the one that ``playwright install chromium`` gets; without either
# the tests fail and playwright says what to do.
CHROMIUM = shutil.which("chromium")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

HOSTILE_NAME = "a \"b\" 'c' <img src=x onerror=alert(1)> &amp; \u202egnp.exe\n\udcff.png"
HOSTILE_CAPTION = "</script><script>alert(2)</script>\"'> {{ 7 * 7 }} \u202eright\nsecond line"
RIGHTS = Rights("CC-BY-4.0", "Studio <North>", "signed 2026-01-05", "own work")


def save_images(folder: Path) -> dict[str, str | None]:
    """Ten files, with their captions: copies, variants, a long and a tall one, a broken one."""

    def scene(name: str, number: int) -> Image.Image:
        return Image.fromarray(render(View(name, "noon", (), number), NATURAL, 256))

    def save(name: str, image: Image.Image) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        image.save(folder / name)

    mountains = scene("mountains", 1)
    save("mountains.png", mountains)
    save("copies/mountains again.png", mountains)
    save("sea.png", scene("sea", 2))
    save("sea light.png", ImageEnhance.Brightness(scene("sea", 2)).enhance(1.15))
    save("long.png", scene("city", 3).resize((800, 200)))
    save("tall.png", scene("forest", 4).resize((160, 400)))
    save("small.png", scene("desert", 5).resize((112, 112)))
    save("10.png", scene("forest", 6))
    save(HOSTILE_NAME, scene("sea", 7))
    (folder / "broken.png").write_bytes(b"\x89PNG but no more")
    captions: dict[str, str | None] = dict.fromkeys(
        ("10.png", "broken.png", "copies/mountains again.png", "long.png", "mountains.png"),
        "mountains at noon, horizon style",
    )
    return captions | {
        "sea light.png": "the sea",
        "sea.png": "the sea",
        "small.png": "sand",
        "tall.png": None,
        HOSTILE_NAME: HOSTILE_CAPTION,
    }


def check_images(folder: Path) -> Checked:
    """What is known about the images of ``save_images`` at 128 pixels."""
    captions = save_images(folder)
    items = tuple(
        Item(
            name,
            str(folder / name),
            "",
            text,
            "brand" if text else "extra",
            machine_caption=name == "small.png",
            repeats=3 if name == "sea.png" else 1,
            rights=dataclasses.replace(RIGHTS, consent="" if name == "long.png" else "signed"),
        )
        for name, text in captions.items()
    )
    facts: dict[str, ImageFacts] = {}
    findings = [
        Finding("missing-caption", ("tall.png",), "no caption", "write one", "error"),
        Finding("foreign-file", ("raw/moon.psd",), "1 Photoshop file", "export it", "error"),
        Finding("machine-captions", ("small.png",), "1 caption is a model's", "read it", "fact"),
    ]
    for item in items:
        result = inspect_image(Path(item.path), name=item.file_name, background=None)
        if isinstance(result, Finding):
            findings.append(result)
        else:
            facts[item.file_name] = result
    table = bucket_table(128, 32, 2.0)
    plans = {
        name: (plan_crop(fact.height, fact.width, choose_bucket(fact.height, fact.width, table)),)
        for name, fact in facts.items()
    }
    groups = duplicate_groups(facts)
    members = clusters(facts, groups)
    sides = split_groups([[facts[f].pixel_hash for f in cluster] for cluster in members], 0.25)
    findings += duplicate_findings(groups)
    findings += size_findings(plans, buckets=True)
    return Checked(
        items=items,
        cards={"brand": Card(name="brand", palette=HORIZON_PALETTE)},
        facts=facts,
        findings=tuple(findings),
        groups=tuple(groups),
        sides={name: sides[fact.pixel_hash] for name, fact in facts.items()},
        plans=plans,
        palette=PaletteFacts(
            HORIZON_PALETTE,
            (("#203040", 0.75), ("#ffcc88", 0.25)),
            {name: i / len(facts) for i, name in enumerate(facts)},
        ),
        resolutions=(128,),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data-report")


@pytest.fixture(scope="module")
def checked(folder: Path) -> Checked:
    (folder / "images").mkdir()
    return check_images(folder / "images")


@pytest.fixture(scope="module")
def report(checked: Checked, folder: Path) -> Path:
    write_data_report(checked, folder / "out" / "data.html", title="a <brand>")
    return folder / "out" / "data.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield started
        started.close()


def card_id(checked: Checked, name: str) -> str:
    return f"#i{[item.file_name for item in checked.items].index(name)}"


def text_of(page: Page, selector: str) -> str:
    """What is to be read; a card far from the window is not laid out, so it has no text yet."""
    page.locator(selector).scroll_into_view_if_needed()
    page.wait_for_function("selector => document.querySelector(selector).innerText", arg=selector)
    return page.locator(selector).inner_text()


def shown_names(page: Page) -> list[str]:
    script = "[...document.querySelectorAll('.card')].filter(c => !c.hidden)"
    return [str(n) for n in page.evaluate(f"{script}.map(c => c.querySelector('h3').textContent)")]


def focused_card(page: Page, after: str = "") -> str:
    """The card that has the focus, at once ``after`` this script's expression."""
    return str(page.evaluate(f"({after or 0}, document.activeElement.closest('.card')?.id ?? '')"))


def test_used_page_is_quiet_and_alone(browser: Browser, report: Path) -> None:
    """Used by mouse and keyboard it logs nothing, pops up nothing and requests only itself."""
    page, noise = open_page(browser, report)
    page.locator("[data-filter=flag]").first.click()
    page.locator("#reset").click()
    for i in range(page.locator(".open").count() - 1):
        page.locator(".card .open").nth(i).click()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
    assert (noise.said, noise.popped) == ([], [])
    assert [url for url in noise.asked if not url.startswith("data:")] == [report.as_uri()]
    page.close()


def test_head_says_what_to_do(browser: Browser, report: Path, checked: Checked) -> None:
    """The headline counts images, errors and warnings; the first steps are the errors' fixes."""
    page, _ = open_page(browser, report)
    warnings = sum(f.severity == "warning" for f in checked.findings)
    errors = sum(f.severity == "error" for f in checked.findings)
    assert page.locator("h1").inner_text() == (
        f"10 images, {errors} errors, {warnings} warnings: training would refuse this set"
    )
    steps = page.locator(".first li").all_inner_texts()
    assert len(steps) == 3
    assert steps[-1] == "Missing caption (1 file): write one"
    page.locator(".first a").last.click()
    assert page.evaluate("document.querySelector(':target').id") == "f-error-missing-caption"
    page.close()


def test_clean_set_is_ready(browser: Browser, checked: Checked, tmp_path: Path) -> None:
    """Without findings the page says so, and what was allowed; without images it is whole too."""
    lowered = (Finding("too-small", ("sea.png",), "too small", "find a larger one", "error"),)
    clean = dataclasses.replace(checked, findings=(), groups=(), lowered=lowered)
    write_data_report(clean, tmp_path / "clean.html", title="clean")
    page, noise = open_page(browser, tmp_path / "clean.html")
    assert page.locator("h1").inner_text() == "10 images, 0 errors, 0 warnings: ready to train"
    assert page.locator(".card").count() == 10
    assert page.locator("#findings, #groups").count() == 0
    assert page.locator(".first-note").inner_text().endswith("errors to warnings: too small.")
    page.close()
    nothing = Checked(
        (),
        {},
        {},
        (Finding("no-images", (), "empty", "fill it", "error"),),
        (),
        {},
        {},
        PaletteFacts((), (), {}),
        (128,),
    )
    write_data_report(nothing, tmp_path / "nothing.html", title="nothing")
    page, noise = open_page(browser, tmp_path / "nothing.html")
    assert page.locator("h1").inner_text().startswith("0 images, 1 error, 0 warnings")
    assert noise.said == []
    page.close()


def test_every_image_is_described(browser: Browser, report: Path, checked: Checked) -> None:
    """All pictures decode and have a text; a card says side, sizes, caption and repeats."""
    page, _ = open_page(browser, report)
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator(".card img").count() == len(checked.facts) == 9
    assert page.locator("img[alt=''], img:not([alt]), svg:not([aria-label])").count() == 0
    text = text_of(page, card_id(checked, "sea.png"))
    side = {"train": "train", "holdout": "held out"}[checked.sides["sea.png"]]
    assert f"{side} · 3× per epoch · 256×256 → 128×128" in text
    assert "nothing cropped away" in text
    assert "near duplicates" in text
    assert "machine caption" in text_of(page, card_id(checked, "small.png"))
    assert "cannot be decoded" in text_of(page, card_id(checked, "broken.png"))
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    page.close()


@pytest.mark.parametrize("name", ["long.png", "tall.png"])
def test_shaded_margins_are_the_trim(
    browser: Browser, report: Path, checked: Checked, name: str
) -> None:
    """What is shaded lies at the ends of the image and is as large as the plan trims there."""
    page, _ = open_page(browser, report)
    card, plan = page.locator(card_id(checked, name)), checked.plans[name][0]
    card.scroll_into_view_if_needed()
    box = card.locator("img").bounding_box()
    cuts = [card.locator(".cut").nth(i).bounding_box() for i in range(card.locator(".cut").count())]
    assert box is not None
    assert len(cuts) == 2
    assert cuts[0] is not None
    assert cuts[1] is not None
    image, first, last = (cast(dict[str, float], each) for each in (box, cuts[0], cuts[1]))
    across, along = ("height", "width") if name == "long.png" else ("width", "height")
    start = "x" if name == "long.png" else "y"
    axis = 1 if name == "long.png" else 0
    offset = (plan.top, plan.left)[axis] / plan.resized[axis]
    rest = 1 - offset - plan.bucket[axis] / plan.resized[axis]
    assert offset > 0.1
    assert first[along] / image[along] == pytest.approx(offset, abs=0.01)
    assert last[along] / image[along] == pytest.approx(rest, abs=0.01)
    assert first[start] == pytest.approx(image[start], abs=0.6)
    assert last[start] + last[along] == pytest.approx(image[start] + image[along], abs=0.6)
    assert first[across] == pytest.approx(image[across], abs=0.6)
    shape = plan.original[1] / plan.original[0]
    assert image["width"] / image["height"] == pytest.approx(shape, rel=0.03)
    page.locator("#crop").click()
    assert card.locator(".cut").first.is_hidden()
    page.close()


def test_every_filter_shows_its_count(browser: Browser, report: Path) -> None:
    """Each button, pressed alone by mouse, leaves as many images as it says."""
    page, _ = open_page(browser, report)
    buttons = page.locator("[data-filter]")
    assert {b.get_attribute("data-filter") for b in buttons.all()} == {
        "flag",
        "kind",
        "side",
        "origin",
    }
    for button in buttons.all():
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        count = int(button.locator("small").inner_text())
        assert 0 < count == len(shown_names(page))
        page.locator("#reset").click()
        assert button.get_attribute("aria-pressed") == "false"
    assert len(shown_names(page)) == 10
    page.close()


def test_filters_add_up_by_keyboard(browser: Browser, report: Path) -> None:
    """Space presses a button; two of one row add, two rows narrow, and the status counts."""
    page, _ = open_page(browser, report)
    for label in ("exact duplicates", "near duplicates"):
        page.locator("[data-filter=flag]", has_text=label).focus()
        page.keyboard.press("Space")
    four = {"mountains.png", "copies/mountains again.png", "sea.png", "sea light.png"}
    assert set(shown_names(page)) == four
    assert page.locator("#status").inner_text() == "4 of 10 images"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("THE SEA")
    assert set(shown_names(page)) == {"sea.png", "sea light.png"}
    page.keyboard.type(" of nowhere")
    assert page.locator("#nothing").is_visible()
    page.keyboard.press("Escape")
    assert set(shown_names(page)) == four
    page.close()


def test_search_finds_names_and_sorting_sorts(browser: Browser, report: Path) -> None:
    """A part of a name finds it, Enter goes there; sizes fall, families stand together."""
    page, _ = open_page(browser, report)
    page.locator("#search").fill("light.p")
    assert shown_names(page) == ["sea light.png"]
    page.keyboard.press("Enter")
    assert page.locator("#zoom").is_hidden()
    assert page.get_by_role("button", name="Open sea light.png: the sea").count() == 1
    assert page.locator(":focus").text_content() == "Open sea light.png: "
    page.locator("#search").fill("")
    page.locator("#sort").select_option("size")
    assert shown_names(page)[0] == "long.png"
    assert shown_names(page)[-2:] == ["small.png", "broken.png"]
    page.locator("#sort").select_option("group")
    assert set(shown_names(page)[:2]) == {"mountains.png", "copies/mountains again.png"}
    assert set(shown_names(page)[2:4]) == {"sea.png", "sea light.png"}
    page.locator("#sort").select_option("name")
    assert shown_names(page)[-1] == "tall.png"
    page.close()


def test_keys_walk_the_sheet(browser: Browser, report: Path) -> None:
    """The sheet is one stop of Tab; arrows, j and k walk it and stop at its ends."""
    page, _ = open_page(browser, report)
    assert page.locator(".card .open[tabindex='0']").count() == 1
    page.locator(".card .open").first.focus()
    for key, wanted in (
        ("ArrowRight", "i1"),
        ("j", "i2"),
        ("k", "i1"),
        ("ArrowLeft", "i0"),
        ("ArrowLeft", "i0"),
        ("End", "i9"),
        ("j", "i9"),
    ):
        page.keyboard.press(key)
        assert focused_card(page) == wanted
    page.keyboard.press("Home")
    before = page.locator(":focus").bounding_box()
    page.keyboard.press("ArrowDown")
    after = page.locator(":focus").bounding_box()
    assert before is not None
    assert after is not None
    assert after["x"] == before["x"]
    assert focused_card(page) != "i0"
    page.keyboard.press("Tab")
    assert focused_card(page) == ""
    page.close()


def test_detail_opens_and_gives_focus_back(
    browser: Browser, report: Path, checked: Checked
) -> None:
    """Enter opens, Escape closes onto the image; moving inside moves the place to return to."""
    page, _ = open_page(browser, report)
    page.locator(f"{card_id(checked, 'long.png')} .open").focus()
    page.keyboard.press("Enter")
    assert page.locator("#zoom").is_visible()
    assert page.locator("#ztitle").inner_text() == "long.png"
    assert page.locator("#zpicture .cut").count() == 2
    details = page.locator("#zdetails").inner_text()
    assert "800×200 pixels" in details
    assert "not declared" in details
    assert "cuts away" in page.locator("#dfindings").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#zoom").is_hidden()
    assert f"#{focused_card(page)}" == card_id(checked, "long.png")
    page.keyboard.press("Enter")
    # The browser may report the first closing only now.
    page.evaluate("document.getElementById('zoom').dispatchEvent(new Event('close'))")
    assert page.locator("#zoom").is_visible()
    page.keyboard.press("j")
    assert page.locator("#ztitle").inner_text() == "mountains.png"
    at_once = focused_card(page, "document.getElementById('zclose').click()")
    assert f"#{at_once}" == card_id(checked, "mountains.png")
    page.keyboard.press("k")
    assert f"#{focused_card(page)}" == card_id(checked, "long.png")
    page.close()


def test_finding_leads_to_its_image(browser: Browser, report: Path, checked: Checked) -> None:
    """A picture in a finding focuses its card, by mouse and keyboard, even when filtered out."""
    page, _ = open_page(browser, report)
    target = card_id(checked, "tall.png")
    page.locator("[data-filter=flag]", has_text="exact").click()
    assert page.locator(target).is_hidden()
    page.locator("#f-error-missing-caption .stamps a").click()
    assert f"#{focused_card(page)}" == target
    assert page.locator(target).is_visible()
    page.locator("#f-error-missing-caption .stamps a").focus()
    page.keyboard.press("Enter")
    assert f"#{focused_card(page)}" == target
    page.locator("#f-error-missing-caption .more").click()
    assert shown_names(page) == ["tall.png"]
    page.locator("#g0 .more").click()
    assert set(shown_names(page)) == set(checked.groups[0].files)
    page.close()


def test_help_names_the_keys_and_turns_them_off(browser: Browser, report: Path) -> None:
    """``?`` shows the keys; single letters do nothing once they are switched off."""
    page, _ = open_page(browser, report)
    assert page.locator("#help").is_hidden()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.locator("#letters").uncheck()
    page.locator(".card .open").first.focus()
    page.keyboard.press("j")
    assert focused_card(page) == "i0"
    page.keyboard.press("ArrowRight")
    assert focused_card(page) == "i1"
    page.close()


def test_hostile_texts_are_only_text(browser: Browser, report: Path, checked: Checked) -> None:
    """Markup, quotes, templates, line breaks and direction marks in texts are shown, not run."""
    page, noise = open_page(browser, report)
    card = page.locator(card_id(checked, HOSTILE_NAME))
    assert "second line" in text_of(page, card_id(checked, HOSTILE_NAME))
    name = "a \"b\" 'c' <img src=x onerror=alert(1)> &amp; \\u202egnp.exe\\n\\udcff.png"
    caption = "</script><script>alert(2)</script>\"'> {{ 7 * 7 }} \\u202eright\nsecond line"
    assert card.locator("h3").inner_text() == name
    assert card.locator(".cap").inner_text() == caption
    assert card.locator("img").get_attribute("alt") == caption
    card.locator(".open").click()
    assert page.locator("#ztitle").inner_text() == name
    assert page.locator("#zcaption").inner_text() == caption
    page.keyboard.press("Escape")
    page.locator("#search").fill("<img SRC=x")
    assert shown_names(page) == [name]
    assert page.locator(".over").inner_text() == "a <brand> · data report"
    assert page.locator("script").count() == 3
    assert page.locator("img[src=x]").count() == 0
    assert (noise.said, noise.popped) == ([], [])
    page.close()


def test_hidden_characters_are_written_out() -> None:
    """Controls, direction marks and lone surrogates show; letters of any script stay."""
    assert visible_text("a\u202eb\x00\x1b\udcff\u200f") == "a\\u202eb\\x00\\x1b\\udcff\\u200f"
    assert visible_text("Ünïcode עברית 日本 👩‍🎨\tb\nc") == "Ünïcode עברית 日本 👩‍🎨\tb\nc"
    assert visible_text("b\nc\t", one_line=True) == "b\\nc\\t"


def test_page_without_scripts_shows_all(browser: Browser, report: Path) -> None:
    """With JavaScript off all images, findings and tables are there, and no dead buttons."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".card").count() == 10
    assert all(card.is_visible() for card in page.locator(".card img").all())
    assert page.locator("#findings .finding").first.is_visible()
    assert page.locator("#groups .group").first.is_visible()
    assert page.locator("#rights table").is_visible()
    assert page.locator(".tools").is_hidden()
    assert page.locator(".more").first.is_hidden()
    page.locator(".stamps a").first.click()
    assert re.search(r"#i\d+$", page.url)
    context.close()


def test_rights_say_who_lacks_what(browser: Browser, report: Path) -> None:
    """Every distinct declaration has its count, and the image without consent is named."""
    page, _ = open_page(browser, report)
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#rights tbody tr").all()]
    assert rows[0] == ["CC-BY-4.0", "Studio <North>", "signed", "own work", "9"]
    assert rows[1][2].endswith("not declared")
    assert page.locator(".lack").all_inner_texts() == ["Consent is missing for 1 image: long.png."]
    page.close()


def test_figures_have_their_tables(browser: Browser, report: Path, checked: Checked) -> None:
    """The tables behind the pictures count every image once."""
    page, _ = open_page(browser, report)
    for place, column in (("#sizes", 0), ("#colors", 0)):
        rows = page.locator(f"{place} tbody tr").all()
        counts = [int(str(row.locator("td").nth(column).text_content())) for row in rows]
        assert sum(counts) == len(checked.facts)
    found = page.locator("#colors .swatches code").all_inner_texts()
    assert found == [*HORIZON_PALETTE, "#203040", "#ffcc88"]
    page.close()


@pytest.mark.parametrize("width", [1280, 360])
def test_page_fits_its_width(browser: Browser, report: Path, width: int) -> None:
    """Nothing but the tables' own boxes scrolls sideways, also with an image open."""
    page, _ = open_page(browser, report, width)
    page.keyboard.press("?")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".card .open").first.click()
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, report: Path, scheme: str) -> None:
    """All text reaches WCAG AA, 4.5 to 1, in both schemes, with a button pressed and a dialog."""
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(report.as_uri())
    page.locator("[data-filter=flag]", has_text="missing").click()
    page.locator(".card:not([hidden]) .open").first.click()
    assert page.evaluate(LOW_CONTRAST) == []
    page.close()


def many(checked: Checked, count: int) -> Checked:
    """The same picture under many names, each with its own finding and caption."""
    item, fact, plan = checked.items[0], checked.facts["10.png"], checked.plans["10.png"]
    names = [f"{i:04}.png" for i in range(count)]
    return dataclasses.replace(
        checked,
        items=tuple(dataclasses.replace(item, file_name=n, text=f"view {n} & <b>") for n in names),
        facts=dict.fromkeys(names, fact),
        findings=tuple(Finding("dark", (n,), f"{n} is dark", "lift it") for n in names[::2]),
        groups=(),
        sides=dict.fromkeys(names, "train"),
        plans=dict.fromkeys(names, plan),
        palette=PaletteFacts((), (), {}),
    )


def test_large_sets_draw_what_is_near(browser: Browser, checked: Checked, tmp_path: Path) -> None:
    """Over 500 images: smaller pictures, drawn when they come into view; all without scripts."""
    write_data_report(many(checked, 501), tmp_path / "large.html", title="large")
    page, noise = open_page(browser, tmp_path / "large.html")
    assert page.locator(".card").count() == 501
    assert page.locator(".card img").count() < 250
    page.locator("#i500").scroll_into_view_if_needed()
    last = page.locator("#i500 img")
    last.wait_for()
    assert last.get_attribute("alt") == "view 0500.png & <b>"
    assert last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 160
    page.locator("#search").fill("0250.png")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#zpicture img").get_attribute("alt") == "view 0250.png & <b>"
    assert page.locator(".finding").count() == 1
    assert noise.said == []
    page.close()
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto((tmp_path / "large.html").as_uri())
    assert plain.locator(".card img").count() == 501
    assert plain.locator(".card img").last.is_visible()
    context.close()


def test_same_set_same_report(checked: Checked, report: Path, tmp_path: Path) -> None:
    """Written twice, the report is the same byte for byte, and asks for nothing outside."""
    write_data_report(checked, tmp_path / "again.html", title="a <brand>")
    html = report.read_text(encoding="utf-8")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html
    assert "default-src 'none'" in html
    assert re.findall(r'(?:src|href|action)="(?!data:|#)[^"]*', html) == []
    assert "url(" not in html

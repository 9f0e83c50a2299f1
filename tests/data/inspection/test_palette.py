"""The palette of a set: colors that are there, accents kept, strangers seen."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

import world
from styletune.colors import main_colors
from styletune.data.inspection.duplicates import ImageGroup
from styletune.data.inspection.facts import SMALL_PX, ImageFacts
from styletune.data.inspection.palette import (
    coverage,
    extract_palette,
    palette_facts,
    palette_outliers,
)

BLANK = ImageFacts(1, 1, "", "PNG", "RGB", "", False, 0.0, "", 0, b"", b"", {})


def facts_of(image: Image.Image) -> ImageFacts:
    small = image.convert("RGB").resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)
    return replace(BLANK, small=small.tobytes())


def scenes(count: int, seed: int, look: world.Look = world.NATURAL) -> dict[str, ImageFacts]:
    rng = np.random.default_rng(seed)
    views = [world.random_view(rng) for _ in range(count)]
    return {
        f"{look.name}-{i:02}": facts_of(Image.fromarray(world.render(view, look)))
        for i, view in enumerate(views)
    }


def test_a_small_accent_keeps_its_exact_color() -> None:
    """A dot of 1 % on two grays comes out as it was drawn, edges and all."""
    art = Image.new("RGB", (1000, 1000), "#282a36")
    draw = ImageDraw.Draw(art)
    draw.rectangle((0, 700, 1000, 1000), fill="#44475a")
    draw.ellipse((440, 240, 560, 360), fill="#ff79c6")
    found = dict(extract_palette({"a": facts_of(art)}))
    assert {"#282a36", "#44475a", "#ff79c6"} <= set(found)
    assert found["#282a36"] == pytest.approx(0.69, abs=0.02)
    assert found["#ff79c6"] == pytest.approx(0.011, abs=0.005)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_one_color_is_one_color() -> None:
    """A flat image has a palette of one, and k bounds the palette of a rainbow."""
    assert extract_palette({"a": facts_of(Image.new("RGB", (9, 9), "#123456"))}) == [
        ("#123456", 1.0)
    ]
    noise = np.random.default_rng(0).integers(0, 256, (4096, 3)).astype(np.uint8)
    assert len(main_colors(noise, np.ones(4096), 5)) == 5
    assert extract_palette({}) == []


def test_images_count_the_same_and_order_does_not_matter() -> None:
    """One red image and three blue ones weigh 1 to 3, in any order."""
    red, blue = (facts_of(Image.new("RGB", (8, 8), color)) for color in ("#ff0000", "#0000ff"))
    facts = {"a": red, "b": blue, "c": blue, "d": blue}
    for ordered in (facts, dict(reversed(facts.items()))):
        colors, shares = zip(*extract_palette(ordered), strict=True)
        assert colors == ("#0000ff", "#ff0000")
        assert shares == pytest.approx((0.75, 0.25))


def test_weights_without_mass_are_no_color() -> None:
    """Pixels of weight 0 do not come out."""
    rgb = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    assert main_colors(rgb, np.array([1.0, 0.0]), 3) == [("#ff0000", 1.0)]


def test_coverage_is_the_share_near_the_palette() -> None:
    """A quarter in a nearly declared color covers a quarter; its complement the rest."""
    art = Image.new("RGB", (64, 64), "white")
    art.paste("#fe78c4", (0, 0, 32, 32))
    small = facts_of(art).small
    assert coverage([small], ["#ff79c6"])[0] == pytest.approx(0.25)
    assert coverage([small], ["#ff79c6", "#ffffff"])[0] == 1
    assert coverage([small], ["#00ff00"])[0] == 0


def test_coverage_of_many_images_needs_no_memory_for_them() -> None:
    """A thousand images take less than one each would, held as numbers."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, SMALL_PX**2 * 3), np.uint8)
    smalls = [(each & 0xE0).tobytes() for each in noise]
    coverage(smalls[:1], ["#ff0000"])  # what is imported does not count
    tracemalloc.start()
    shares = coverage(smalls, ["#ff0000", "#808080"])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(shares)) > 10
    assert most < 1000 * 49_000
    alone = [coverage([small], ["#ff0000", "#808080"])[0] for small in smalls[:3]]
    assert shares[:3] == alone


def test_coverage_is_of_the_declared_palette_if_there_is_one() -> None:
    """Without a declared palette the extracted one covers what it came from."""
    facts = {"red": facts_of(Image.new("RGB", (8, 8), "#ff0000"))}
    assert palette_facts(facts, ()).coverage == {"red": 1}
    declared = palette_facts(facts, ("#00ff00",))
    assert declared.coverage == {"red": 0}
    assert declared.declared == ("#00ff00",)
    assert declared.extracted == (("#ff0000", 1.0),)


def test_strange_colors_are_found() -> None:
    """Of ten natural scenes among forty in one look most are off its palette; of its own, few."""
    brand = scenes(40, 1, world.HORIZON)
    flagged = [
        bool({name} & {n for n, _ in palette_outliers({**brand, name: fact}, [])})
        for name, fact in scenes(10, 2).items()
    ]
    assert sum(flagged) >= 7
    assert len(palette_outliers(brand, [])) <= 2


def test_variants_neither_hide_nor_make_strangers() -> None:
    """Copies of a stranger, known as one family, do not vouch for each other."""
    brand = scenes(20, 1, world.HORIZON)
    green = facts_of(Image.new("RGB", (8, 8), "#00ff00"))
    facts = {**brand, **dict.fromkeys(("g1", "g2", "g3", "g4"), green)}
    family = ImageGroup("exact", ("g1", "g2", "g3", "g4"))
    found = [name for name, _ in palette_outliers(facts, [family])]
    assert found[:4] == ["g1", "g2", "g3", "g4"]


def test_few_images_say_nothing() -> None:
    """Seven images have no usual colors."""
    facts = scenes(6, 1, world.HORIZON)
    facts["green"] = facts_of(Image.new("RGB", (8, 8), "#00ff00"))
    assert palette_outliers(facts, []) == []

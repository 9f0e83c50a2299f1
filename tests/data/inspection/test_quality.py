"""Quality of images: what is planted is found, what is meant is left alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from cleanvision.issue_managers.image_property import BrightnessProperty, EntropyProperty
from PIL import Image, ImageDraw, ImageFilter

import world
from styletune.data.findings import Finding
from styletune.data.inspection.edges import measure_bars, measure_edges
from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.quality import measure, quality_findings
from styletune.data.pixels.decode import decode_image

SHARED = Path(__file__).parents[4] / "shared" / "data"
WALLPAPERS, PHOTOS = SHARED / "dracula-wallpapers", SHARED / "pop-os-photos"
real_images = pytest.mark.skipif(
    not (WALLPAPERS.is_dir() and PHOTOS.is_dir()), reason="no shared/data beside the repository"
)

SCENES = tuple(world.SCENES)


def scene(number: int, side_px: int = 256) -> Image.Image:
    view = world.View(SCENES[number % len(SCENES)], "noon", ("clouds",), number)
    return Image.fromarray(world.render(view, world.NATURAL, side_px))


def fact(image: Image.Image) -> ImageFacts:
    quality = measure(image)
    return ImageFacts(
        image.width, image.height, "", "PNG", "RGB", "", False, 0.0, "", 0, b"", b"", quality
    )


def findings(images: dict[str, Image.Image], resolution: int = 256) -> dict[str, Finding]:
    found = quality_findings({n: fact(i) for n, i in images.items()}, resolution=resolution)
    assert len({each.code for each in found}) == len(found)
    return {each.code: each for each in found}


def good(count: int = 4, side_px: int = 256) -> dict[str, Image.Image]:
    return {f"good-{number}.png": scene(number, side_px) for number in range(count)}


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (3000, 2), (640, 480)])
def test_numbers_are_finite_for_any_size(size: tuple[int, int]) -> None:
    """From one pixel up, every number is there and finite."""
    numbers = measure(Image.new("RGB", size, (40, 90, 200)))
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers.keys() == measure(scene(0)).keys()


def test_good_images_have_no_findings() -> None:
    """Drawn scenes of all kinds, by day, give no finding."""
    assert findings(good(8)) == {}


def test_dark_bright_flat_and_long_images_are_named_worst_first() -> None:
    """Each fault is found in the image that has it and in no other, the worst one first."""
    images = good(9)
    images["dim.png"] = scene(1).point([v // 4 for v in range(256)] * 3)
    images["black.png"] = Image.new("RGB", (256, 256), (3, 3, 3))
    images["white.png"] = Image.new("RGB", (256, 256), (254, 254, 254))
    images["long.png"] = scene(2).resize((1024, 256))
    found = findings(images)
    assert found["dark"].files == ("black.png", "dim.png")
    assert found["bright"].files == ("white.png",)
    assert set(found["flat"].files) == {"black.png", "white.png"}
    assert found["extreme-aspect"].files == ("long.png",)
    assert "1024×256" in found["extreme-aspect"].message
    assert {each.severity for each in found.values()} == {"warning"}


def test_what_most_images_share_is_the_look_and_no_warning() -> None:
    """A dark brand is told once, as a fact; a single dark image among others is a warning."""
    images = {f"{n}.png": scene(n).point([v // 4 for v in range(256)] * 3) for n in range(5)}
    found = findings(images | good(2))
    assert found["dark"].severity == "fact"
    assert "look of the set" in found["dark"].message
    assert findings({"0.png": images["0.png"]} | good(4))["dark"].severity == "warning"


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 3.0])
def test_the_width_of_a_blurred_edge_is_measured(sigma: float) -> None:
    """The edge of a half plane blurred by a Gaussian is as wide as that Gaussian."""
    from scipy.special import erf

    ramp = 30 + 180 * (1 + erf(np.arange(-100, 100) / (sigma * math.sqrt(2)))) / 2
    pixels = np.repeat(np.tile(ramp, (200, 1))[..., None], 3, axis=2).round().astype(np.uint8)
    measured = measure_edges(Image.fromarray(pixels))
    # Differences over two pixels widen a sharp edge; only its steepest part is looked at.
    assert measured == pytest.approx(math.hypot(sigma, 0.58), rel=0.25)


def test_blurred_and_enlarged_images_are_found_at_training_size() -> None:
    """Blur counts in pixels of training: what is soft at 512 can be sharp enough at 128."""
    images = good(5, 512)
    images["blurred.png"] = scene(5, 512).filter(ImageFilter.GaussianBlur(4))
    images["enlarged.png"] = scene(6, 128).resize((512, 512), Image.Resampling.BICUBIC)
    found = findings(images, resolution=512)["blurred"]
    assert found.files[0] == "blurred.png"
    assert set(found.files) == {"blurred.png", "enlarged.png"}
    assert findings(images, resolution=128) == {}


def test_a_sharp_subject_before_a_soft_background_is_not_blurred() -> None:
    """One sharp quarter is enough."""
    image = scene(3, 512).filter(ImageFilter.GaussianBlur(8))
    image.paste(scene(4, 512).crop((0, 128, 256, 384)), (128, 128))
    assert "blurred" not in findings({"portrait.png": image} | good(4, 512), resolution=512)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (40, 42, 54)])
@pytest.mark.parametrize("quality", [95, 75])
def test_bars_are_measured_in_pixels(tmp_path: Path, color: tuple[int, ...], quality: int) -> None:
    """Letterbox, pillarbox and frame wider than a JPEG block are measured to 2 pixels."""
    for top, right, bottom, left in ((30, 0, 30, 0), (0, 24, 0, 20), (20, 24, 28, 24)):
        image = Image.new("RGB", (256 + left + right, 256 + top + bottom), color)
        image.paste(scene(0), (left, top))
        image.save(tmp_path / "bars.jpg", quality=quality)
        found = measure_bars(np.asarray(Image.open(tmp_path / "bars.jpg").convert("RGB")))
        measured = [found[f"bar_{side}"] for side in ("top", "right", "bottom", "left")]
        assert measured == pytest.approx([top, right, bottom, left], abs=2)


def test_a_flat_ground_around_a_motif_is_no_bar() -> None:
    """A logo on a plain ground, a plain sky and a plain picture have no bars."""
    logo = Image.new("RGB", (400, 300), (40, 42, 54))
    ImageDraw.Draw(logo).ellipse((150, 100, 250, 200), fill=(255, 121, 198))
    hills = Image.new("RGB", (400, 300), (200, 220, 255))
    ImageDraw.Draw(hills).polygon([(0, 300), (200, 150), (400, 300)], fill=(20, 90, 20))
    for image in (logo, hills, Image.new("RGB", (400, 300), (9, 9, 9)), scene(2)):
        assert not any(measure_bars(np.asarray(image)).values())


def test_bars_become_a_finding_with_their_pixels() -> None:
    """The message says how much to cut off, and where."""
    image = Image.new("RGB", (256, 336))
    image.paste(scene(3), (0, 40))
    found = findings({"film.png": image} | good())["letterboxed"]
    assert found.files == ("film.png",)
    assert "40 px top, 40 px bottom" in found.message


def test_the_reduced_copy_gives_the_verdicts_of_the_whole_image() -> None:
    """Percentiles and entropy of a large image are cleanvision's own, within a hundredth."""
    grain = np.random.default_rng(0).integers(-3, 4, (1600, 1600, 3))
    pixels = np.asarray(scene(0, 64).resize((1600, 1600), Image.Resampling.BICUBIC), int) + grain
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    ours = measure(image)
    whole = BrightnessProperty("dark").calculate(image)
    for key in ("brightness_perc_5", "brightness_perc_99", "brightness"):
        assert ours[key] == pytest.approx(whole[key], abs=0.01)
    assert ours["entropy"] == pytest.approx(EntropyProperty().calculate(image)["entropy"], rel=0.1)


@real_images
def test_photographs_give_no_false_alarm() -> None:
    """Night sky, eclipse, white on white, jellyfish, moon, a sign with words."""
    names = ("ahmadreza", "jake-hills", "sebastien", "ng-", "kait", "nasa-45068")
    files = [f for f in sorted((PHOTOS / "original").iterdir()) if f.name.startswith(names)]
    assert len(files) == len(names)
    images = {}
    for file in files:
        image = decode_image(file, name=file.name, background=None)
        image.thumbnail((1536, 1536))
        images[file.name] = image
    found = findings(images, resolution=1024)
    assert found == {}


@real_images
def test_flat_dark_brand_art_gives_no_warning() -> None:
    """Vector art on a dark ground may be a fact of the set; it is no list of warnings."""
    files = sorted((WALLPAPERS / "second-collection").rglob("*-282a36.png"))
    images = {f.name: decode_image(f, name=f.name, background="#282a36") for f in files}
    found = findings(images, resolution=1024)
    assert {each.severity for each in found.values()} <= {"fact"}

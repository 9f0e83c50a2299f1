"""Scores from 0 to 100: exact at both ends, by hand between them, and honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from styletune.scoring.diversity import variety
from styletune.scoring.palette import projected_cdf
from styletune.scoring.scale import (
    half_distance,
    palette_column,
    palette_scale,
    prompt_scale,
    style_column,
    style_scale,
    variety_scale,
)

Array = NDArray[np.float64]
PROMPTS, SEEDS, REFERENCES, WIDTH = 24, 2, 24, 8
WAY = 0.6  # how far the simulated column has come from the base to the brand


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def draw(rng: np.random.Generator, prompts: int, references: int) -> tuple[Array, Array, Array]:
    """Base and column with prompts in common, and references: unit features."""
    base_mean, brand_mean = np.eye(WIDTH)[0], np.eye(WIDTH)[1]
    of_prompt = rng.normal(0, 0.4, (prompts, 1, WIDTH))

    def images(way: float) -> Array:
        mean = (1 - way) * base_mean + way * brand_mean
        noise = rng.normal(0, 0.3, (prompts, SEEDS, WIDTH))
        return unit(mean + of_prompt + noise).reshape(-1, WIDTH)

    return images(0), images(WAY), unit(brand_mean + rng.normal(0, 0.3, (references, WIDTH)))


def test_the_ends_are_exact() -> None:
    """The base scores 0 with no doubt; images with the references' mean score about 100."""
    base, _, references = draw(np.random.default_rng(0), PROMPTS, REFERENCES)
    scale = style_scale(style_column(base, PROMPTS), references)
    zero = scale(style_column(base, PROMPTS), len(base))
    assert (zero.value, zero.low, zero.high, zero.n) == (0.0, 0.0, 0.0, len(base))
    more = draw(np.random.default_rng(1), PROMPTS, PROMPTS * SEEDS)[2]
    full = scale(style_column(more, PROMPTS), len(more))
    assert full.low < 100 < full.high
    assert full.value == pytest.approx(100, abs=6)


def test_style_is_the_share_of_the_way() -> None:
    """By hand, from all pairs of images one by one."""
    base, column, references = draw(np.random.default_rng(2), PROMPTS, REFERENCES)

    def mean_cosine(images: Array) -> float:
        return float(np.mean([x @ y for x in images for y in references]))

    real = np.mean(
        [x @ y for i, x in enumerate(references) for j, y in enumerate(references) if i != j]
    )
    expected = 100 * (mean_cosine(column) - mean_cosine(base)) / (real - mean_cosine(base))
    scale = style_scale(style_column(base, PROMPTS), references)
    assert scale(style_column(column, PROMPTS), len(column)).value == pytest.approx(expected)


def test_style_intervals_cover() -> None:
    """In 400 experiments with fresh prompts and references, 92 to 98 % hold the true share."""
    base, column, references = draw(np.random.default_rng(3), 60_000, 60_000)
    toward = references.mean(0)
    start, end = base.mean(0) @ toward, toward @ toward
    truth = 100 * (column.mean(0) @ toward - start) / (end - start)
    rng = np.random.default_rng(4)
    hits, experiments = 0, 400
    for _ in range(experiments):
        base, column, references = draw(rng, PROMPTS, REFERENCES)
        scale = style_scale(style_column(base, PROMPTS), references)
        estimate = scale(style_column(column, PROMPTS), len(column))
        hits += estimate.low <= truth <= estimate.high
    assert 0.92 <= hits / experiments <= 0.98


def test_a_base_like_the_brand_has_no_scale() -> None:
    """Where the ends cannot be told apart, a share of the way between them is nothing."""
    images = draw(np.random.default_rng(5), PROMPTS, PROMPTS * SEEDS + REFERENCES)[2]
    base, references = images[: PROMPTS * SEEDS], images[PROMPTS * SEEDS :]
    rows = style_column(base, PROMPTS)
    estimate = style_scale(rows, references)(rows, len(base))
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.low)


def flat(lightness: Array) -> NDArray[np.float32]:
    """Histograms of images of one gray each."""
    one = np.ones(1)
    return np.stack([projected_cdf(np.array([[value, 0.0, 0.0]]), one) for value in lightness])


def test_colors_are_the_share_of_the_way() -> None:
    """Grays 40 away at the base and 10 away now: three quarters, but for the references' own."""
    rng = np.random.default_rng(6)
    references = flat(80 + rng.normal(0, 1, REFERENCES))
    base = flat(np.repeat(40.0, PROMPTS * SEEDS))
    column = flat(np.repeat(70.0, PROMPTS * SEEDS))
    scale = palette_scale(palette_column(base, PROMPTS), references)
    estimate = scale(palette_column(column, PROMPTS), len(column))
    assert estimate.value == pytest.approx(100 * 30 / (40 - half_distance(references)), abs=1.5)
    assert estimate.low < estimate.value < estimate.high
    assert scale(palette_column(base, PROMPTS), len(base)).value == 0.0


def test_prompt_is_what_is_left_of_the_base() -> None:
    """As the base: 100. Deaf, every image fits every prompt alike: 0. Halved margins: 50."""
    rng = np.random.default_rng(7)
    noise = rng.normal(0, 0.02, (PROMPTS * SEEDS, PROMPTS))
    own = np.repeat(np.eye(PROMPTS), SEEDS, axis=0)
    base = 0.2 + 0.1 * own + noise
    same = prompt_scale(base, base)
    assert (same.value, same.low, same.high) == (100.0, 100.0, 100.0)
    deaf = prompt_scale(0.25 + noise, base)
    assert deaf.low < 0 < deaf.high
    half = prompt_scale(0.2 + 0.05 * own + rng.normal(0, 0.02, noise.shape), base)
    assert half.low < 50 < half.high
    assert half.high - half.low < 25


def test_a_base_that_ignores_prompts_has_no_prompt_scale() -> None:
    """Nothing can be left of nothing."""
    text = np.full((PROMPTS, PROMPTS), 0.2)
    text[np.arange(PROMPTS), np.arange(PROMPTS)] = 0.1
    assert math.isnan(prompt_scale(text, text).value)


def test_variety_is_the_mean_distance_of_different_prompts() -> None:
    """By hand, pair by pair; one image for all prompts is 0, the brand's own are about 100."""
    _, column, references = draw(np.random.default_rng(8), PROMPTS, REFERENCES)
    own = np.repeat(np.arange(PROMPTS), SEEDS)
    mine = [
        1 - x @ y for i, x in enumerate(column) for j, y in enumerate(column) if own[i] != own[j]
    ]
    theirs = [
        1 - x @ y for i, x in enumerate(references) for j, y in enumerate(references) if i != j
    ]
    estimate = variety_scale(style_column(column, PROMPTS), references, len(column))
    assert estimate.value == pytest.approx(100 * np.mean(mine) / np.mean(theirs))
    assert estimate.low < estimate.value < estimate.high
    one = np.repeat(column[:1], PROMPTS * SEEDS, axis=0)
    collapsed = variety_scale(style_column(one, PROMPTS), references, len(one))
    assert collapsed.value == pytest.approx(0, abs=1e-9)
    assert collapsed.high < 1
    # With these references, over fresh prompts.
    rng = np.random.default_rng(9)
    endless = draw(rng, 20_000, 1)[1]
    truth = 100 * variety(style_column(endless, 20_000)) / np.mean(theirs)
    hits = 0
    for _ in range(400):
        again = draw(rng, PROMPTS, 1)[1]
        e = variety_scale(style_column(again, PROMPTS), references, len(again))
        hits += e.low <= truth <= e.high
    assert 0.92 <= hits / 400 <= 0.98


def test_color_intervals_cover() -> None:
    """With fresh images each time, 9 of 10 or more hold the share for so many references."""
    rng = np.random.default_rng(10)

    def grays(mean: float, count: int) -> NDArray[np.float32]:
        return flat(mean + rng.normal(0, 4, count))

    floor = np.mean([half_distance(grays(80, REFERENCES)) for _ in range(40)])
    truth = 100 * (40 - 10) / (40 - floor)
    estimates = [
        palette_scale(grays(40, PROMPTS), grays(80, REFERENCES))(grays(70, PROMPTS), PROMPTS)
        for _ in range(40)
    ]
    assert sum(e.low <= truth <= e.high for e in estimates) >= 36
    assert np.mean([e.high - e.low for e in estimates]) < 25

"""The distances against outside implementations on the same features."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import wasserstein_distance

from styletune.colors import color_bytes, half_sphere
from styletune.errors import BadInput, DataError
from styletune.runs.metrics import SET_METRICS
from styletune.scoring.clip_score import (
    image_similarity,
    leave_one_out_similarity,
    text_similarity,
)
from styletune.scoring.diversity import vendi_score
from styletune.scoring.frechet import frechet_distance, frechet_estimate
from styletune.scoring.kernel import cmmd, kid, kid_estimate, mmd, mmd_draws, polynomial_kernel
from styletune.scoring.neighbors import neighborhood
from styletune.scoring.palette import (
    cdf_distance,
    load_pixels,
    palette_distance,
    palette_draws,
    palette_features,
    palette_of_files,
    projected_cdf,
)
from styletune.scoring.sets import set_estimates
from world import HORIZON, HORIZON_PALETTE, NATURAL, View, render

SHAPES = [(12, 20, 32), (40, 12, 24), (60, 50, 16), (16, 90, 40)]


def features(n: int, m: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / d**0.5
    return rng.normal(size=(n, d)) @ mix, rng.normal(0.3, 1.4, size=(m, d)) @ mix + 0.1


class Identity(torch.nn.Module):
    """Features pass through: torchmetrics' own extension point."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_frechet_equals_torch_fidelity(n: int, m: int, d: int) -> None:
    """Both trace forms agree with torch-fidelity, with few and with many samples."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = features(n, m, d)
    s1, s2 = (fid_features_to_statistics(torch.from_numpy(f)) for f in (x, y))
    result = fid_statistics_to_metric(s1, s2, False)
    oracle = next(iter(result.values())) if isinstance(result, dict) else result
    assert frechet_distance(x, y) == pytest.approx(float(oracle), rel=1e-5)


@pytest.mark.parametrize(("n", "m", "d"), SHAPES[1:3])
def test_frechet_equals_torchmetrics(n: int, m: int, d: int) -> None:
    """An identity extractor in torchmetrics' FID gives our number."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = features(n, m, d)
    metric = FrechetInceptionDistance(feature=Identity(d), normalize=True).set_dtype(torch.float64)
    metric.update(torch.from_numpy(y), real=True)
    metric.update(torch.from_numpy(x), real=False)
    assert frechet_distance(x, y) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_frechet_of_one_dimension_is_the_formula() -> None:
    """In one dimension it is (m1 - m2)^2 + (s1 - s2)^2."""
    x, y = np.array([[1.0], [2.0], [4.0]]), np.array([[0.0], [5.0]])
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected)


def test_frechet_refuses_what_it_cannot_compare() -> None:
    """One image a side, or different widths, are errors."""
    with pytest.raises(BadInput):
        frechet_distance(np.ones((1, 3)), np.ones((5, 3)))
    with pytest.raises(BadInput):
        frechet_distance(np.ones((4, 2)), np.ones((5, 3)))


def test_frechet_interval_contains_its_value() -> None:
    """The jackknife interval surrounds the value and has a width."""
    x, y = features(30, 25, 8)
    e = frechet_estimate(x, y, np.repeat(np.arange(10), 3).tolist())
    assert e.low < e.value < e.high
    assert e.n == 30


@pytest.mark.parametrize(("n", "d"), [(12, 32), (50, 16)])
def test_kid_equals_torch_fidelity(n: int, d: int) -> None:
    """The full U-statistic is torch-fidelity's mmd2 with one subset of everything."""
    from torch_fidelity.metric_kid import mmd2

    x, y = features(n, n, d)
    k = [(a @ b.T / d + 1) ** 3 for a, b in ((x, x), (x, y), (y, y))]
    assert kid(x, y) == pytest.approx(float(mmd2(*k)), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
def test_kid_equals_torchmetrics() -> None:
    """One subset of all images in torchmetrics gives our number."""
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = features(30, 30, 16)
    metric = KernelInceptionDistance(feature=Identity(16), subsets=1, subset_size=30)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(y), real=True)
    metric.update(torch.from_numpy(x), real=False)
    assert kid(x, y) == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_kid_is_unbiased_at_unequal_sizes() -> None:
    """Equal distributions average to zero within three standard errors, at 8 against 20."""
    rng = np.random.default_rng(0)
    values = [kid(rng.normal(size=(8, 6)), rng.normal(size=(20, 6))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20


def test_kid_bootstrap_stays_centered() -> None:
    """Resampling without self-pairs does not push the distance up, as plain bootstrap does."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(48, 8)), rng.normal(size=(30, 8))
    draws = mmd_draws(x, y, polynomial_kernel, 16, 2000, seed=0)
    picks = rng.integers(48, size=(300, 48)), rng.integers(30, size=(300, 30))
    naive = np.mean([kid(x[i], y[j]) for i, j in zip(*picks, strict=True)])
    assert abs(draws.mean() - kid(x, y)) < 0.25 * draws.std()
    assert naive - kid(x, y) > 4 * abs(draws.mean() - kid(x, y))


def test_kid_spread_matches_fresh_samples() -> None:
    """The interval's half width is that of repeated experiments, within a third."""
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(0.4, 1, (30, 6)), rng.normal(size=(30, 6))) for _ in range(150)]
    true_deviation = np.std([kid(x, y) for x, y in pairs])
    told = np.mean(
        [np.std(mmd_draws(x, y, polynomial_kernel, 30, 200, seed=0)) for x, y in pairs[:30]]
    )
    assert told == pytest.approx(true_deviation, rel=0.33)
    assert kid_estimate(*pairs[0], 30).low < kid(*pairs[0])


def test_cmmd_equals_scikit_learns_kernel() -> None:
    """The U-statistic on scikit-learn's Gaussian kernel of unit rows, times 1000."""
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.preprocessing import normalize

    x, y = features(20, 30, 12)
    a, b = normalize(x), normalize(y)
    within = [(rbf_kernel(z, gamma=1 / 200), len(z)) for z in (a, b)]
    means = [(k.sum() - n) / (n * (n - 1)) for k, n in within]
    oracle = 1000 * (sum(means) - 2 * rbf_kernel(a, b, gamma=1 / 200).mean())
    assert cmmd(x, y) == pytest.approx(oracle, rel=1e-6)


def test_cmmd_of_unit_vectors_is_ten_times_the_squared_shift() -> None:
    """So wide a kernel is linear to a hundredth: it sees means alone, whatever the spread."""
    x, y = features(400, 400, 12)
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    assert cmmd(x, y) == pytest.approx(10 * mmd(a, b, lambda u, v: u @ v.T), rel=0.02)


@pytest.mark.parametrize(("n", "m", "d"), [(20, 20, 8), (40, 25, 16), (30, 60, 4)])
def test_neighborhood_equals_prdc(n: int, m: int, d: int) -> None:
    """All four numbers are those of prdc, the authors' own package."""
    import contextlib
    import io

    from prdc import compute_prdc

    x, y = features(n, m, d)
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = compute_prdc(real_features=y, fake_features=x, nearest_k=5)
    ours = neighborhood(x, y, k=5)
    for name, value in oracle.items():
        assert getattr(ours, name) == pytest.approx(float(value), rel=1e-12)


def test_precision_and_recall_equal_torch_fidelity() -> None:
    """Generated first, real second; it counts a point on the edge of a ball, which is none here."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = features(40, 30, 8)
    oracle = prc_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        prc_neighborhood=5,
        prc_batch_size=64,
        verbose=False,
    )
    ours = neighborhood(x, y, k=5)
    assert ours.precision == pytest.approx(oracle["precision"])
    assert ours.recall == pytest.approx(oracle["recall"])


def test_neighborhood_tells_collapse_from_failure() -> None:
    """One reference again and again is precise and covers nothing; strangers are neither."""
    _, y = features(2, 60, 8)
    near = np.random.default_rng(1).normal(0, 1e-3, (60, 8))
    collapsed = neighborhood(y[:1] + near, y)
    assert collapsed.precision == 1
    assert collapsed.coverage < 0.2
    strangers = neighborhood(y + 100, y)
    assert (strangers.precision, strangers.coverage) == (0, 0)
    with pytest.raises(BadInput, match="at least 6"):
        neighborhood(y[:5], y)


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize(("n", "d"), [(10, 30), (50, 12)])
def test_vendi_equals_vendi_score(n: int, d: int) -> None:
    """The same entropy as the authors' package, whichever Gram matrix is smaller."""
    from vendi_score import vendi

    x, _ = features(n, 2, d)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert vendi_score(x) == pytest.approx(float(vendi.score_K(unit @ unit.T)), rel=1e-6)


def test_vendi_counts_different_images() -> None:
    """Four directions, each ten times, are four images; one direction is one."""
    assert vendi_score(np.repeat(np.eye(4), 10, axis=0)) == pytest.approx(4)
    assert vendi_score(np.ones((5, 3))) == pytest.approx(1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    """A NaN would make every distance of sets NaN without a word."""
    x, y = features(20, 20, 8)
    x[3, 2] = value
    for measure in (frechet_distance, kid, neighborhood):
        with pytest.raises(BadInput, match="row 3"):
            measure(x, y)


def test_set_estimates_surround_their_values() -> None:
    """Each has an interval around it; too few references leave the neighbors' undefined."""
    x, y = features(40, 30, 8)
    estimates = set_estimates(x, y, prompts=20)
    assert set(estimates) == {metric.name for metric in SET_METRICS}
    for e in estimates.values():
        assert e.low <= e.value <= e.high
    wide = [estimates[name] for name in ("kid", "cmmd", "fid", "density", "vendi")]
    assert all(e.low < e.high for e in wide)  # shares may be at their limit
    few = set_estimates(x, y[:8], prompts=20)
    assert np.isnan(few["precision"].value)
    assert np.isfinite(few["fid"].value)


def test_similarities_are_plain_cosines() -> None:
    """Text goes to the image's own prompt; image is the mean over the references."""
    images = np.array([[2.0, 0], [0, 3], [1, 1], [1, 0]])
    texts = np.array([[1.0, 0], [0, 5]])
    half = 0.5**0.5
    np.testing.assert_allclose(text_similarity(images, texts), [1, 0, half, 0], atol=1e-12)
    np.testing.assert_allclose(image_similarity(images[:1], texts), [0.5])
    np.testing.assert_allclose(leave_one_out_similarity(images[:2]), [0, 0], atol=1e-12)


def test_similarity_refuses_rows_without_direction() -> None:
    """A zero row and a width that does not match are errors, not numbers."""
    with pytest.raises(BadInput, match="row 1"):
        image_similarity(np.array([[1.0, 0], [0, 0]]), np.eye(2))
    with pytest.raises(BadInput):
        text_similarity(np.ones((3, 2)), np.eye(2))


# -- palette ---------------------------------------------------------------------------------


def save(folder: Path, name: str, pixels: np.ndarray) -> Path:
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    return path


def test_directions_average_to_one_half() -> None:
    """Mean |cos| to any vector is 1/2 within 2 %, which is why the distance is doubled."""
    d = half_sphere(64)
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 1)
    rng = np.random.default_rng(0)
    v = rng.normal(size=(200, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(v @ d.T).mean(1), 0.5, rtol=0.02)


def test_pure_shift_reads_its_length() -> None:
    """Moving all colors by 10 units of dE76 gives a distance of 10."""
    rng = np.random.default_rng(0)
    lab = rng.uniform([20, -30, -30], [80, 30, 30], (500, 3))
    weight = np.full(500, 1 / 500)
    shift = np.array([6.0, -8.0, 0.0])
    value = cdf_distance(projected_cdf(lab, weight), projected_cdf(lab + shift, weight))
    assert float(value) == pytest.approx(10, rel=0.02)


def test_palette_equals_scipy_per_direction(tmp_path: Path) -> None:
    """Each direction is scipy's one-dimensional Wasserstein distance of the pooled pixels."""
    views = [View(s, "sunset", (), i) for i, s in enumerate(("sea", "city", "forest"))]
    a = [save(tmp_path, f"a{i}", render(v, HORIZON, 64)) for i, v in enumerate(views)]
    b = [save(tmp_path, f"b{i}", render(v, NATURAL, 64)) for i, v in enumerate(views[:2])]
    la, lb = (np.concatenate([load_pixels(f)[0] for f in files]) for files in (a, b))
    per_direction = [wasserstein_distance(la @ d, lb @ d) for d in half_sphere(64)]
    ours = palette_distance(palette_features(a), palette_features(b))
    assert ours == pytest.approx(2 * np.mean(per_direction), rel=2e-3)


def test_palette_bootstrap_is_resampling(tmp_path: Path) -> None:
    """A draw is the distance of the set with its images repeated as drawn."""
    from styletune.scoring.statistics import bootstrap_weights

    views = [View(s, "noon", (), i) for i, s in enumerate(("sea", "city", "forest", "desert"))]
    x = palette_features([save(tmp_path, f"x{i}", render(v)) for i, v in enumerate(views)])
    y = palette_features([save(tmp_path, f"y{i}", render(v, HORIZON)) for i, v in enumerate(views)])
    draws = palette_draws(x, y, 4, 3, seed=7)
    w, v = bootstrap_weights(4, 3, 7).astype(int), bootstrap_weights(4, 3, 8).astype(int)
    again = [
        palette_distance(np.repeat(x, a, 0), np.repeat(y, b, 0)) for a, b in zip(w, v, strict=True)
    ]
    np.testing.assert_allclose(draws, again, rtol=1e-4)


def test_transparent_pixels_have_no_color(tmp_path: Path) -> None:
    """A cut-out counts its visible pixels only; a wholly transparent image is refused."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (255, 0, 0, 255)
    cut = save(tmp_path, "cut", rgba)
    full = save(tmp_path, "full", np.full((64, 64, 3), (255, 0, 0), np.uint8))
    assert palette_distance(palette_features([cut]), palette_features([full])) < 1e-4
    with pytest.raises(DataError, match="transparent"):
        load_pixels(save(tmp_path, "none", rgba * 0))


def test_broken_image_is_named(tmp_path: Path) -> None:
    """A file that is no image is an error that names it."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        palette_features([broken])


def test_extracted_palette_finds_flat_colors(tmp_path: Path) -> None:
    """Two flat colors come back exactly, with their shares; asking for more invents none."""
    pixels = np.full((64, 64, 3), (38, 22, 84), np.uint8)
    pixels[:16] = (255, 160, 110)
    found = palette_of_files([save(tmp_path, "two", pixels)], k=5)
    assert [color for color, _ in found] == ["#261654", "#ffa06e"]
    assert [weight for _, weight in found] == pytest.approx([0.75, 0.25])


def test_extracted_palette_is_on_the_brands_gradient(tmp_path: Path) -> None:
    """A look maps brightness to its first five colors; the main colors lie between those."""
    from skimage.color import rgb2lab

    files = [
        save(tmp_path, f"r{i}", render(View(s, "sunset", (), i), HORIZON))
        for i, s in enumerate(("sea", "city", "desert", "meadow"))
    ]
    brand = np.array([color_bytes(color) for color in HORIZON_PALETTE[:5]], float)
    share = np.linspace(0, 1, 50)[:, None]
    mixes = np.concatenate([a * (1 - share) + b * share for a, b in pairwise(brand)])
    gradient = rgb2lab(mixes / 255)
    for color, _ in palette_of_files(files, 4):
        lab = rgb2lab(np.array(color_bytes(color)) / 255)
        assert np.linalg.norm(gradient - lab, axis=1).min() < 5

"""Image quality: numbers measured on one image, and what they mean in a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.findings import Finding, agree, finding, first_few
from styletune.data.inspection.edges import measure_bars, measure_edges, reduced
from styletune.data.inspection.facts import ImageFacts

# Goes up when ``measure`` would give other numbers: stored ones are stale then.
MEASURE_VERSION = 1

# cleanvision's percentiles take 8 bytes per pixel and channel; area averages serve as well.
REDUCED_PX = 1024
# Share of the side; a crop trims thinner ones anyway.
SMALLEST_BAR = 0.005

# Width (standard deviation) of the sharpest edges at training size. Measured: photographs 0.2 to
# 0.7, vector art 0.7 to 1.25, blurred by 2 pixels 1.35 to 2.3, enlarged 4 times 1.2 to 1.9.
SOFT_EDGE_PX = 1.3


def measure(image: Image.Image) -> dict[str, float]:
    """Measure an upright RGB image (mode ``RGB``, any size).

    Returns:
        cleanvision's raw properties under its own names: ``brightness`` and
        ``brightness_perc_N`` (0 to 1), ``entropy`` (bits), ``blurriness`` and
        ``blurriness_grayscale_std`` (lower is blurrier), ``aspect_ratio`` (short over long side);
        ``bar_top``, ``bar_right``, ``bar_bottom``, ``bar_left``: bars of one color, in pixels;
        ``edge_px``: width of the sharpest edges, as the standard deviation of a Gaussian in
        pixels, 0 if there is no edge. All are finite.
    """
    from cleanvision.issue_managers.image_property import (
        AspectRatioProperty,
        BlurrinessProperty,
        BrightnessProperty,
        EntropyProperty,
    )

    assert image.mode == "RGB", image.mode
    small = reduced(image, REDUCED_PX)
    numbers: dict[str, float] = {}
    for properties in (
        BrightnessProperty("dark").calculate(small),
        EntropyProperty().calculate(small),
        BlurrinessProperty().calculate(small),
        AspectRatioProperty().calculate(image),
    ):
        numbers.update({name: float(value) for name, value in properties.items()})
    return {
        **numbers,
        **measure_bars(np.asarray(image)),
        "edge_px": measure_edges(image),
    }


@dataclass(frozen=True, slots=True)
class _Verdict:
    """One finding in the making: its files, worst first, with the number behind each."""

    code: str
    files: Mapping[str, str]
    description: str
    fix: str
    # A whole brand may look like this on purpose.
    is_look: bool = False


def quality_findings(facts: Mapping[str, ImageFacts], *, resolution: int) -> list[Finding]:
    """What the numbers of ``measure`` mean: one finding per code, worst images first.

    Thresholds of darkness, brightness, flatness and aspect ratio are cleanvision's. What more
    than half of a set has in common (dark, bright, flat, soft) is its look, and only a fact.

    Args:
        facts: of all images that can be decoded, by file name.
        resolution: side of the training square in pixels.
    """
    if not facts:
        return []
    return [
        _as_finding(verdict, len(facts))
        for verdict in (
            *_cleanvision_verdicts(facts),
            _blurred(facts, resolution),
            _letterboxed(facts),
        )
        if verdict.files
    ]


def _as_finding(verdict: _Verdict, total: int) -> Finding:
    files, count = tuple(verdict.files), len(verdict.files)
    if verdict.is_look and 2 * count > total and total > 2:
        message = (
            f"{count} of {total} images are {verdict.description}, so this counts as the look of "
            f"the set: {first_few(verdict.files, 3)}"
        )
        fix = f"nothing if that is intended; otherwise {verdict.fix}"
        return finding(verdict.code, files, message, fix, "fact")
    state = agree(count, f"are {verdict.description}")
    message = f"{count} of {total} images {state}: {first_few(verdict.files)}"
    return finding(verdict.code, files, message, verdict.fix)


def _cleanvision_verdicts(facts: Mapping[str, ImageFacts]) -> list[_Verdict]:
    names = list(facts)
    dark, bright = (_scores(facts, issue) for issue in ("dark", "light"))
    flat, odd = (_scores(facts, issue) for issue in ("low_information", "odd_aspect_ratio"))

    def measured(name: str, key: str) -> float:
        return facts[name].quality[key]

    plain = _worst(names, flat)
    if 2 * len(plain) <= len(names):
        # Sparse vector art among other vector art is intended.
        usual = float(np.median([measured(name, "entropy") for name in names]))
        plain = [name for name in plain if measured(name, "entropy") < usual / 2]
    return [
        _Verdict(
            "dark",
            {
                n: f"99% of it below {measured(n, 'brightness_perc_99'):.0%} brightness"
                for n in _worst(names, dark)
            },
            "almost black",
            "brighten or remove them",
            True,
        ),
        _Verdict(
            "bright",
            {
                n: f"95% of it above {measured(n, 'brightness_perc_5'):.0%} brightness"
                for n in _worst(names, bright)
            },
            "almost white",
            "darken or remove them",
            True,
        ),
        _Verdict(
            "flat",
            {n: f"{measured(n, 'entropy'):.1f} bits of entropy" for n in plain},
            "almost without detail",
            "remove those that show nothing to learn",
            True,
        ),
        _Verdict(
            "extreme-aspect",
            {n: f"{facts[n].width}×{facts[n].height}" for n in _worst(names, odd)},
            "very wide or very tall",
            "crop them by hand to what matters",
        ),
    ]


def _scores(facts: Mapping[str, ImageFacts], issue: str) -> NDArray[np.float64]:
    """Cleanvision's score of every image, NaN where it sees no issue."""
    import pandas as pd
    from cleanvision.issue_managers.image_property_issue_manager import ImagePropertyIssueManager

    manager = ImagePropertyIssueManager()
    settings: dict[str, Any] = dict(manager.get_default_params()[issue])
    threshold = settings.pop("threshold")
    raw = pd.DataFrame([fact.quality for fact in facts.values()])
    judge = manager.image_properties[issue]
    scores = judge.get_scores(raw_scores=raw, issue_type=issue, **settings)
    flagged = judge.mark_issue(scores, issue, threshold)
    return np.where(flagged.to_numpy()[:, 0], scores.to_numpy()[:, 0], np.nan)


def _worst(names: Sequence[str], scores: NDArray[np.float64]) -> list[str]:
    """The flagged ones, lowest score first."""
    flagged = [(float(score), name) for score, name in zip(scores, names, strict=True)]
    return [name for score, name in sorted(flagged) if not np.isnan(score)]


def _blurred(facts: Mapping[str, ImageFacts], resolution: int) -> _Verdict:
    """By the sharpest edges at training size; by cleanvision if there are no edges.

    cleanvision looks at 64 pixels and mistakes smooth pictures with fine lines for blurred ones.
    """
    hazy = set(_worst(list(facts), _scores(facts, "blurry")))
    widths: dict[str, float] = {}
    for name, fact in facts.items():
        width = fact.quality["edge_px"] * resolution / min(fact.width, fact.height)
        if width > SOFT_EDGE_PX:
            widths[name] = width
        elif fact.quality["edge_px"] == 0 and name in hazy:
            widths[name] = float("inf")
    worst = sorted(widths, key=lambda name: (-widths[name], name))
    return _Verdict(
        "blurred",
        {
            name: f"sharpest edges {widths[name]:.1f} px soft at {resolution} px"
            if np.isfinite(widths[name])
            else "no edges at all"
            for name in worst
        },
        "soft, probably out of focus or enlarged before",
        "find sharper originals, or choose a lower data.resolution",
        True,
    )


def _letterboxed(facts: Mapping[str, ImageFacts]) -> _Verdict:
    shares: dict[str, float] = {}
    details: dict[str, str] = {}
    for name, fact in facts.items():
        bars = {side: fact.quality[f"bar_{side}"] for side in ("top", "right", "bottom", "left")}
        high, wide = bars["top"] + bars["bottom"], bars["left"] + bars["right"]
        share = max(high / fact.height, wide / fact.width)
        if share >= 2 * SMALLEST_BAR:
            shares[name] = share
            details[name] = ", ".join(f"{px:.0f} px {side}" for side, px in bars.items() if px)
    worst = sorted(shares, key=lambda name: (-shares[name], name))
    return _Verdict(
        "letterboxed",
        {name: details[name] for name in worst},
        "framed by bars of one color, which would be learned",
        "cut the bars off",
    )

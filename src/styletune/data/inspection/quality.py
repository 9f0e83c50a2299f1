"""How an image looks to a machine: numbers of one image, and what they mean in a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.data.findings import Finding, finding, named
from styletune.data.inspection.edges import measure_bars, measure_edges, reduced
from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.lettering import count_letters

# Goes up when ``measure`` would give other numbers: kept numbers of another one are stale.
MEASURE_VERSION = 1

# cleanvision's percentiles take 8 bytes a pixel and channel; averages of areas serve as well.
REDUCED_PX = 1024
# Of the side; thinner ones are within what a crop trims.
SMALLEST_BAR = 0.005

# Width (standard deviation) of the sharpest edges in pixels of training. Seen: photographs 0.2 to
# 0.7, vector art 0.7 to 1.25, blurred by 2 pixels 1.35 to 2.3, enlarged 4 times 1.2 to 1.9.
SOFT_EDGE_PX = 1.3

# Letters in a row. Seen in no photograph without writing in it, and in 1 % of drawn scenes in
# random looks, hatched and dotted ones included. Planted over photographs, lines of 3 to 8 % of
# the height are found about every second time, tiled translucent ones 9 times in 10, single
# translucent ones 1 in 4, slanted ones never: no finding does not mean no writing.
MIN_LETTERS = 8


def measure(image: Image.Image) -> dict[str, float]:
    """Measure an upright RGB image (mode ``RGB``, any size).

    Returns:
        cleanvision's raw properties under its own names: ``brightness`` and
        ``brightness_perc_N`` (0 to 1), ``entropy`` (bits), ``blurriness`` and
        ``blurriness_grayscale_std`` (lower is blurrier), ``aspect_ratio`` (short over long side);
        ``bar_top``, ``bar_right``, ``bar_bottom``, ``bar_left``: bars of one colour, in pixels;
        ``edge_px``: width of the sharpest edges, as the standard deviation of a Gaussian in
        pixels, 0 where there is no edge; ``letters`` and ``faint_letters``: in the longest row
        that looks like opaque and like translucent lettering. All are finite.
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
    for found in (
        BrightnessProperty("dark").calculate(small),
        EntropyProperty().calculate(small),
        BlurrinessProperty().calculate(small),
        AspectRatioProperty().calculate(image),
    ):
        numbers.update({name: float(value) for name, value in found.items()})
    letters, faint = count_letters(np.asarray(small.convert("L")))
    return {
        **numbers,
        **measure_bars(np.asarray(image)),
        "edge_px": measure_edges(image),
        "letters": float(letters),
        "faint_letters": float(faint),
    }


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one code says: of which files, worst first, with the number of each."""

    code: str
    files: Mapping[str, str]
    what: str
    fix: str
    # What a whole brand may look like on purpose.
    is_look: bool = False


def quality_findings(facts: Mapping[str, ImageFacts], *, resolution: int) -> list[Finding]:
    """What the numbers of ``measure`` mean, one finding for each code, worst images first.

    Thresholds of darkness, brightness, flatness and aspect are cleanvision's. What more than
    half of a set has in common (dark, bright, flat, soft) is its look: said once as a fact.

    Args:
        facts: of all images that can be decoded, by file name.
        resolution: training area in pixels, as the side of its square.
    """
    if not facts:
        return []
    return [
        _as_finding(verdict, len(facts))
        for verdict in (
            *_cleanvision_verdicts(facts),
            _blurred(facts, resolution),
            _letterboxed(facts),
            *_lettered(facts),
        )
        if verdict.files
    ]


def _as_finding(verdict: _Verdict, total: int) -> Finding:
    files, count = tuple(verdict.files), len(verdict.files)
    if verdict.is_look and 2 * count > total and total > 2:
        message = (
            f"{count} of {total} images are {verdict.what}, so that is taken for the look of the "
            f"set: {named(verdict.files, 3)}"
        )
        fix = f"nothing if it is meant; else {verdict.fix}"
        return finding(verdict.code, files, message, fix, "fact")
    message = f"{count} of {total} images are {verdict.what}: {named(verdict.files)}"
    return finding(verdict.code, files, message, verdict.fix)


def _cleanvision_verdicts(facts: Mapping[str, ImageFacts]) -> list[_Verdict]:
    names = list(facts)
    dark, bright = (_scores(facts, issue) for issue in ("dark", "light"))
    flat, odd = (_scores(facts, issue) for issue in ("low_information", "odd_aspect_ratio"))

    def said(name: str, key: str) -> float:
        return facts[name].quality[key]

    plain = _worst(names, flat)
    if 2 * len(plain) <= len(names):
        # Sparse vector art among other vector art is no mistake.
        usual = float(np.median([said(name, "entropy") for name in names]))
        plain = [name for name in plain if said(name, "entropy") < usual / 2]
    return [
        _Verdict(
            "dark",
            {
                n: f"99 % of it below {said(n, 'brightness_perc_99'):.0%} brightness"
                for n in _worst(names, dark)
            },
            "nearly black",
            "brighten them or take them out",
            True,
        ),
        _Verdict(
            "bright",
            {
                n: f"95 % of it above {said(n, 'brightness_perc_5'):.0%} brightness"
                for n in _worst(names, bright)
            },
            "nearly white",
            "darken them or take them out",
            True,
        ),
        _Verdict(
            "flat",
            {n: f"{said(n, 'entropy'):.1f} bits of entropy" for n in plain},
            "nearly without detail",
            "take out those that show nothing to learn",
            True,
        ),
        _Verdict(
            "extreme-aspect",
            {n: f"{facts[n].width}×{facts[n].height}" for n in _worst(names, odd)},
            "very long or very tall",
            "crop them by hand to what matters",
        ),
    ]


def _scores(facts: Mapping[str, ImageFacts], issue: str) -> NDArray[np.float64]:
    """Score of every image by cleanvision, NaN where it sees no issue."""
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
    """By the sharpest edges at training size; cleanvision's verdict where there are no edges.

    cleanvision looks at 64 pixels and takes smooth pictures with fine lines for blurred ones.
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
            else "no edge at all"
            for name in worst
        },
        "soft, probably out of focus or enlarged before",
        "find sharper originals, or choose a lower data.resolution",
        True,
    )


def _letterboxed(facts: Mapping[str, ImageFacts]) -> _Verdict:
    shares: dict[str, float] = {}
    said: dict[str, str] = {}
    for name, fact in facts.items():
        bars = {side: fact.quality[f"bar_{side}"] for side in ("top", "right", "bottom", "left")}
        high, wide = bars["top"] + bars["bottom"], bars["left"] + bars["right"]
        share = max(high / fact.height, wide / fact.width)
        if share >= 2 * SMALLEST_BAR:
            shares[name] = share
            said[name] = ", ".join(f"{px:.0f} px {side}" for side, px in bars.items() if px)
    worst = sorted(shares, key=lambda name: (-shares[name], name))
    return _Verdict(
        "letterboxed",
        {name: said[name] for name in worst},
        "framed by bars of one colour, which would be learnt",
        "cut the bars off",
    )


def _lettered(facts: Mapping[str, ImageFacts]) -> list[_Verdict]:
    def most(key: str) -> dict[str, int]:
        counts = {name: int(fact.quality[key]) for name, fact in facts.items()}
        found = sorted((-n, name) for name, n in counts.items() if n >= MIN_LETTERS)
        return {name: -n for n, name in found}

    faint = most("faint_letters")
    opaque = {name: n for name, n in most("letters").items() if name not in faint}
    fix = "use originals without it, or mask it out: the model would learn to draw it"
    return [
        _Verdict(code, {name: f"{n} letters in a row" for name, n in counts.items()}, what, fix)
        for code, counts, what in (
            ("watermark", faint, "probably marked with translucent lettering"),
            ("overlaid-text", opaque, "probably written over, or show writing"),
        )
    ]

"""Planted truth: does the suite pick the good adapter, and name every fault by its measure?

    python scripts/prove_suite.py --worlds 100 [--encoder mini] [--seed 0]

A world is a brand with a look of its own. Adapters are planted in it by drawing, so their worth is
known: *good*; *half-trained*, half way between the base and the brand; *untrained*; *collapsed*, one
image for all prompts; *copied*, training images again; *deaf*, the right look of other prompts; and
*off-palette*, the brand's look in another brand's colors. Each is scored as a run's checkpoints are.
FID's own pick, the least, stands beside the suite's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styletune.encoders.clip import ClipEncoder, encode_images, encode_texts, load_clip
from styletune.job.features import structures
from styletune.runs.summary import CheckpointScores
from styletune.scoring.copies import Views
from styletune.scoring.score import Column, Scores, score_columns
from styletune.scoring.suite import Suite, SuitePrompt
from world import (
    SCENES,
    TIMES,
    Look,
    View,
    caption,
    jittered_natural,
    random_look,
    random_view,
    render,
)

Pixels = NDArray[np.uint8]
PROMPTS, REFERENCES, TRAINING = 48, 32, 48
# The gate that each fault must fail; a half-trained adapter is merely less than the good one.
MEANT_FOR = {
    "untrained": "clip_image_gain",
    "collapsed": "variety",
    "copied": "copies",
    "deaf": "clip_text_loss",
    "off-palette": "palette_ratio",
}
ADAPTERS = ("good", "half-trained", *MEANT_FOR)
# Of a half-trained adapter: the share of the brand's picture in it.
HALF = 0.5


def asked_views(rng: np.random.Generator) -> list[View]:
    """Scenes and hours in equal shares, each with one extra or two, no composition twice."""
    views: dict[str, View] = {}
    while len(views) < PROMPTS:
        scene = list(SCENES)[len(views) % len(SCENES)]
        time = TIMES[len(views) // len(SCENES) % len(TIMES)]
        extras = random_view(rng, 2).extras
        view = View(scene, time, extras, int(rng.integers(2**31)))
        views.setdefault(caption(view, 0), view)
    return list(views.values())


def other_seed(view: View, rng: np.random.Generator) -> View:
    """The same composition, drawn anew."""
    return replace(view, seed=int(rng.integers(2**31)))


def planted(
    views: Sequence[View],
    brand: Look,
    stranger: Look,
    training: Sequence[tuple[View, Pixels]],
    rng: np.random.Generator,
) -> dict[str, list[Pixels]]:
    """Every adapter's images, and the base's, one per prompt."""

    def drawn(look: Look | None, asked: Sequence[View] = views) -> list[Pixels]:
        return [render(other_seed(v, rng), look or jittered_natural(rng)) for v in asked]

    def copy(view: View) -> Pixels:
        alike = [pixels for v, pixels in training if v.scene == view.scene]
        source = alike[rng.integers(len(alike))]
        noise = rng.normal(0, 4, source.shape)
        return np.clip(source + noise, 0, 255).astype(np.uint8)

    def half(view: View) -> Pixels:
        again = other_seed(view, rng)
        mix = HALF * render(again, brand) + (1 - HALF) * render(again, jittered_natural(rng))
        return np.rint(mix).astype(np.uint8)

    turned = [*views[5:], *views[:5]]
    colors = replace(brand, ramp=stranger.ramp, accent=stranger.accent)
    return {
        "base": drawn(None),
        "good": drawn(brand),
        "half-trained": [half(view) for view in views],
        "untrained": drawn(None),
        "collapsed": [render(views[0], brand)] * len(views),
        "copied": [copy(view) for view in views],
        "deaf": drawn(brand, turned),
        "off-palette": drawn(colors),
    }


def scored_world(seed: int, encoder: ClipEncoder, folder: Path) -> Scores:
    """One world's adapters, scored against its base."""
    rng = np.random.default_rng([2026, seed])
    brand, stranger = random_look(rng), random_look(rng)
    views = asked_views(rng)
    shown = [random_view(rng, 2) for _ in range(REFERENCES + TRAINING)]
    # Every scene is among the training images, so that each prompt has something to copy.
    shown += [View(scene, "noon", (), int(rng.integers(2**31))) for scene in SCENES]
    real = [render(view, brand) for view in shown]
    training = list(zip(shown[REFERENCES:], real[REFERENCES:], strict=True))
    images = planted(views, brand, stranger, training, rng)

    def saved(name: str, pictures: Sequence[Pixels]) -> list[Path]:
        files = [folder / f"{name}-{i}.png" for i in range(len(pictures))]
        for file, pixels in zip(files, pictures, strict=True):
            Image.fromarray(pixels).save(file, compress_level=1)
        return files

    def views_of(pictures: Sequence[Pixels]) -> Views:
        drawn = [Image.fromarray(p) for p in pictures]
        return Views(encode_images(encoder, drawn, show_progress=False), structures(drawn))

    columns = [
        Column(
            name,
            None if name == "base" else 100 * i,
            float(name != "base"),
            saved(name, p),
            views_of(p),
        )
        for i, (name, p) in enumerate(images.items())
    ]
    texts = tuple(caption(view, 0) for view in views)
    return score_columns(
        suite=Suite(name="planted", prompts=tuple(SuitePrompt(text=t) for t in texts), seeds=(1,)),
        columns=columns,
        text_features=encode_texts(encoder, texts),
        references=saved("reference", real[:REFERENCES]),
        reference_views=views_of(real[:REFERENCES]),
        training_views=views_of(real[REFERENCES:]),
        encoder_id=encoder.id,
    )


def found(scores: Scores, counts: Counter[str]) -> None:
    """Add to the counts what the suite saw in one world."""
    lines = {line.checkpoint: line for line in scores.summary.checkpoints}
    counts["chosen: " + scores.summary.chosen.checkpoint] += 1
    counts["least FID: " + min(lines, key=lambda name: _value(lines[name], "fid"))] += 1
    counts["good passes all gates"] += lines["good"].passed
    counts["half-trained below good"] += _value(lines["half-trained"], "style_score") < _value(
        lines["good"], "style_score"
    )
    for fault, gate in MEANT_FOR.items():
        verdicts = {g.name: g.verdict for g in lines[fault].gates}
        counts[f"{fault}: {gate} fails"] += verdicts[gate] == "fail"
        counts[f"{fault}: {gate} does not pass"] += verdicts[gate] != "pass"
        counts[f"{fault}: refused"] += not lines[fault].passed
    for verdict in lines["good"].gates:
        if verdict.verdict != "pass":
            counts[f"good: {verdict.name} {verdict.verdict}"] += 1


def _value(line: CheckpointScores, metric: str) -> float:
    value = line.metrics[metric].value
    return float("nan") if value is None else value


def main() -> None:
    """Parse the command line, score the worlds and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--seed", type=int, default=0, help="the first world's")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    encoder = load_clip(args.encoder, Path(), "cpu")
    counts: Counter[str] = Counter()
    for world in range(args.seed, args.seed + args.worlds):
        with tempfile.TemporaryDirectory() as name:
            found(scored_world(world, encoder, Path(name)), counts)
    if args.json:
        print(json.dumps(counts, indent=1, sort_keys=True))
    else:
        for line, count in sorted(counts.items()):
            print(f"{count:4d} of {args.worlds}  {line}")


if __name__ == "__main__":
    main()

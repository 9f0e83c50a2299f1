"""One table of metrics and one of release gates, for everything that measures or shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_CLIP = "CLIP image features"
_NEIGHBORS = f"{_CLIP}, 5 nearest neighbors"
_NOT_INCEPTION = f"{_CLIP}, not Inception’s: not comparable with published values"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number measured of a column of images.

    Attributes:
        name: its key in documents and tables.
        label: what it is, on a page.
        short_label: the same where there is little room.
        better: which way is good.
        digits: decimals shown.
        measured_on: what it is computed from.
        unit: "" for a pure number.
        per_image: every image has one, not only the whole column.
        against_base: it compares with the base model, whose own value says nothing.
        on_scale: it runs from 0 to 100 between two known ends, for people.
    """

    name: str
    label: str
    short_label: str
    better: Literal["higher", "lower"]
    digits: int
    measured_on: str
    unit: str = ""
    per_image: bool = False
    against_base: bool = False
    on_scale: bool = False

    @property
    def direction(self) -> str:
        """``higher is better``, with the unit if there is one."""
        return f"{self.better} is better" + (f", in {self.unit}" if self.unit else "")

    @property
    def description(self) -> str:
        """Label, what it is measured on and which way is good, on one line."""
        return f"{self.label} ({self.measured_on}; {self.direction})"


METRICS = (
    Metric(
        "style_score",
        "Style: 0 is the base model, 100 the brand’s own images",
        "style",
        "higher",
        digits=0,
        measured_on=_CLIP,
        against_base=True,
        on_scale=True,
    ),
    Metric(
        "palette_score",
        "Colors: 0 is the base model, 100 the brand’s own images",
        "colors",
        "higher",
        digits=0,
        measured_on="colors in CIELAB",
        against_base=True,
        on_scale=True,
    ),
    Metric(
        "prompt_score",
        "Prompt: 0 is an image of something else, 100 the base model",
        "prompt",
        "higher",
        digits=0,
        measured_on="CLIP image and text features, own prompt against the others",
        against_base=True,
        on_scale=True,
    ),
    Metric(
        "variety_score",
        "Variety: 0 is one image for all prompts, 100 as varied as the brand’s own images",
        "variety",
        "higher",
        digits=0,
        measured_on=f"{_CLIP} of different prompts",
        on_scale=True,
    ),
    Metric(
        "clip_image",
        "Similarity to the references",
        "style (CLIP-I)",
        "higher",
        digits=3,
        measured_on=_CLIP,
        per_image=True,
    ),
    Metric(
        "clip_image_gain",
        "Similarity to the references gained over the base",
        "style gained",
        "higher",
        digits=3,
        measured_on=_CLIP,
        against_base=True,
    ),
    Metric(
        "clip_text",
        "Similarity to the prompt",
        "prompt (CLIP-T)",
        "higher",
        digits=3,
        measured_on="CLIP image and text features",
        per_image=True,
    ),
    Metric(
        "clip_text_loss",
        "Similarity to the prompt lost, as a share of the base’s",
        "prompt lost",
        "lower",
        digits=3,
        measured_on="CLIP image and text features",
        against_base=True,
    ),
    Metric(
        "palette",
        "Distance to the brand’s colors",
        "palette ΔE",
        "lower",
        digits=1,
        measured_on="colors in CIELAB",
        unit="ΔE",
        per_image=True,
    ),
    Metric(
        "palette_ratio",
        "Distance to the brand’s colors, as a share of the base’s",
        "palette share",
        "lower",
        digits=3,
        measured_on="colors in CIELAB",
        against_base=True,
    ),
    Metric(
        "copies",
        "Prompts with an image too near to a training image, less the base’s",
        "copies",
        "lower",
        digits=3,
        measured_on=f"{_CLIP}, against what held-out images reach",
        against_base=True,
    ),
    Metric(
        "kid",
        "KID on CLIP features",
        "KID (CLIP)",
        "lower",
        digits=4,
        measured_on=_NOT_INCEPTION,
    ),
    Metric(
        "cmmd",
        "CMMD on this suite’s encoder",
        "CMMD",
        "lower",
        digits=3,
        measured_on=f"{_CLIP}, unbiased: published values are of ViT-L/14-336 and biased",
    ),
    Metric(
        "fid",
        "FID on CLIP features",
        "FID (CLIP)",
        "lower",
        digits=3,
        measured_on=f"{_NOT_INCEPTION}; at this number of images no measure of quality",
    ),
    Metric(
        "precision",
        "Images that could be the brand’s",
        "precision",
        "higher",
        digits=2,
        measured_on=_NEIGHBORS,
    ),
    Metric(
        "recall",
        "References that could be its own",
        "recall",
        "higher",
        digits=2,
        measured_on=_NEIGHBORS,
    ),
    Metric(
        "density",
        "References around each image",
        "density",
        "higher",
        digits=2,
        measured_on=_NEIGHBORS,
    ),
    Metric(
        "coverage",
        "References with an image nearby",
        "coverage",
        "higher",
        digits=2,
        measured_on=_NEIGHBORS,
    ),
    Metric(
        "vendi",
        "Effective number of different images",
        "Vendi",
        "higher",
        digits=1,
        measured_on=f"{_CLIP}; grows with the number of images",
    ),
)
METRIC_OF = {metric.name: metric for metric in METRICS}
# What a table of columns shows: the base has these too.
COLUMN_METRICS = tuple(metric for metric in METRICS if not metric.against_base)
SCALE_METRICS = tuple(metric for metric in METRICS if metric.on_scale)
IMAGE_METRICS = tuple(metric for metric in METRICS if metric.per_image)
# Of a column as a whole: for statisticians, behind the metrics of images.
SET_METRICS = tuple(m for m in COLUMN_METRICS if not m.per_image and not m.on_scale)


@dataclass(frozen=True, slots=True)
class Gate:
    """A rule that a checkpoint must meet to be published; a suite sets its threshold.

    Attributes:
        name: its key in suites and documents.
        metric: the metric whose 95 % interval is judged.
        side: which side of the threshold all of the interval must be on.
        question: what it answers, for people.
        label: what is measured, after its value.
        phrase: the same in a sentence: "0.1 ... <phrase>".
        description: what its threshold in a suite means.
        unit: "%" if the value is shown as a percentage.
    """

    name: str
    metric: str
    side: Literal["above", "at most"]
    question: str
    label: str
    phrase: str
    description: str
    unit: Literal["", "%"] = ""


# In the order in which they are asked: what was copied need not be followed or liked.
GATES = (
    Gate(
        "copies",
        metric="copies",
        side="at most",
        question="Does it draw, not copy?",
        label="prompts with a suspected copy, less the base’s",
        phrase="of the prompts have an image too near to a training image, beyond the base's share",
        description="Prompts with a suspected copy, less the base's share, at most: upper bound.",
        unit="%",
    ),
    Gate(
        "clip_text_loss",
        metric="clip_text_loss",
        side="at most",
        question="Does it still follow the prompt?",
        label="prompt similarity lost",
        phrase="of the base's prompt similarity lost",
        description="Prompt similarity lost, as a share of the base's, at most: upper bound.",
        unit="%",
    ),
    Gate(
        "clip_image_gain",
        metric="clip_image_gain",
        side="above",
        question="Does it look like the brand?",
        label="gain in reference similarity",
        phrase="gained in similarity to the references, over the base",
        description="Similarity to the references gained over the base, at least: lower bound.",
    ),
    Gate(
        "variety",
        metric="variety_score",
        side="above",
        question="Does it draw different images?",
        label="variety, of 100 as the references’",
        phrase="of 100 in variety, which is as varied as the references",
        description="Variety between prompts, 100 as the references’, at least: lower bound.",
    ),
    Gate(
        "palette_ratio",
        metric="palette_ratio",
        side="at most",
        question="Does it use the brand’s colors?",
        label="color distance, share of base",
        phrase="of the base's distance to the reference colors",
        description="Palette distance as a share of the base's, at most: upper bound.",
        unit="%",
    ),
)
GATE_OF = {gate.name: gate for gate in GATES}

"""An evaluation suite: prompts and seeds, how they are sampled, what must be reached."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from pydantic import Field, field_validator

from styletune.errors import IntegrityError
from styletune.recipe.section import Section
from styletune.recipe.toml import load_toml
from styletune.runs.form import parse_document
from styletune.runs.metrics import GATE_OF
from styletune.runs.summary import FIX_SUMMARY, Summary
from styletune.text import has_words

MIN_REFERENCES = 4


class SuiteSampler(Section):
    """How every column's images are sampled."""

    steps: int = Field(default=25, ge=1, le=1000, description="Sampler steps.")
    guidance_scale: float = Field(
        default=5.0, ge=1, le=50, description="Classifier-free guidance scale."
    )
    negative_prompt: str = Field(default="", description="What the images should not show.")


class SuiteEncoder(Section):
    """What turns images and prompts into features."""

    name: str = Field(default="mini", min_length=1, description="Encoder of images and prompts.")


class SuiteGates(Section):
    """The threshold of every gate; intervals are 95 %, over prompts."""

    clip_image_gain: float = Field(
        default=0.02,
        ge=0,
        lt=2,
        description=GATE_OF["clip_image_gain"].description,
    )
    palette_ratio: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description=GATE_OF["palette_ratio"].description,
    )
    clip_text_loss: float = Field(
        default=0.10,
        ge=0,
        lt=1,
        description=GATE_OF["clip_text_loss"].description,
    )


class Suite(Section):
    """One evaluation suite, as in its TOML file."""

    name: str = Field(min_length=1, description="What the suite is called in reports.")
    prompts: tuple[str, ...] = Field(
        min_length=3, description="At least three different prompts, without the trigger word."
    )
    seeds: tuple[int, ...] = Field(min_length=1, description="At least one seed per prompt.")
    sampler: SuiteSampler = SuiteSampler()
    encoder: SuiteEncoder = SuiteEncoder()
    gates: SuiteGates = SuiteGates()

    @field_validator("prompts", "seeds", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("prompts")
    @classmethod
    def _distinct_prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not has_words(p) for p in prompts):
            raise ValueError("a prompt has no words")
        _refuse_duplicates([p.strip().casefold() for p in prompts])
        return prompts

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= s < 2**31 for s in seeds):
            raise ValueError("a seed is below 0 or above 2147483647")
        _refuse_duplicates([str(s) for s in seeds])
        return seeds


def _refuse_duplicates(values: list[str]) -> None:
    """The same image twice is not twice the evidence."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"twice in the list: {', '.join(twice)}")


def load_suite(file: Path) -> Suite:
    """Load a suite strictly.

    Raises:
        NotFound: there is no such file.
        RecipeError: not TOML, unknown key, impossible value, a prompt or seed twice.
    """
    return load_toml(file, Suite)


def suite_hash(suite: Suite) -> str:
    """SHA-256 (hex) of what decides the images and their features: not of name and gates.

    A changed threshold needs no new images, so it keeps the hash.
    """
    content = suite.model_dump(mode="json", include={"prompts", "seeds", "sampler", "encoder"})
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def prompt_id(index: int) -> str:
    """Name of the prompt at ``index`` (from 0) in tables and file names: ``p00``."""
    return f"p{index:02d}"


def sample_names(suite: Suite) -> list[str]:
    """File names of one column's images, prompts-major, seeds-minor: ``p00-7.png``."""
    return [f"{prompt_id(i)}-{seed}.png" for i in range(len(suite.prompts)) for seed in suite.seeds]


def scored_suite(summary: Summary) -> Suite:
    """The suite that a run was scored with.

    Raises:
        IntegrityError: the summary is a published one, without its inputs, or damaged.
    """
    if summary.inputs is None:
        raise IntegrityError("no inputs", where="scores/summary.json", fix=FIX_SUMMARY)
    content = json.dumps(summary.inputs.suite).encode()
    return parse_document(Suite, content, "scores/summary.json: inputs.suite", FIX_SUMMARY)

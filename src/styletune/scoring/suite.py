"""An evaluation suite: prompts and seeds, how they are sampled, what must be reached."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from styletune.errors import IntegrityError
from styletune.recipe.section import Section, Strings, as_tuple
from styletune.recipe.toml import load_toml
from styletune.runs.form import parse_document
from styletune.runs.metrics import GATE_OF
from styletune.runs.summary import FIX_SUMMARY, ScoreInputs, Summary
from styletune.text import has_words

MIN_REFERENCES = 4


class SuitePrompt(Section):
    """A prompt, and what groups it belongs to: a string, or a table with ``text`` and ``tags``."""

    text: str = Field(description="The prompt, without the trigger word.")
    tags: Strings = Field(default=(), description="Groups that results are read by.")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"text": value}
        if not isinstance(value, dict | SuitePrompt):
            raise ValueError("a prompt is a text, or a table with text and tags")
        return value

    @model_validator(mode="after")
    def _worded(self) -> Self:
        if not has_words(self.text):
            raise ValueError("a prompt has no words")
        return self

    @model_serializer
    def _plain(self) -> str | dict[str, Any]:
        """A prompt without tags is its text, as version 0.1.0 wrote it."""
        return {"text": self.text, "tags": self.tags} if self.tags else self.text


class SuiteSampler(Section):
    """How every column's images are sampled."""

    scheduler: str | None = Field(
        default=None, description="A diffusers scheduler; the base model's own if left out."
    )
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

    copies: float = Field(default=0.2, ge=0, lt=1, description=GATE_OF["copies"].description)
    clip_image_gain: float = Field(
        default=0.02,
        ge=0,
        lt=2,
        description=GATE_OF["clip_image_gain"].description,
    )
    variety: float = Field(default=50, ge=0, lt=200, description=GATE_OF["variety"].description)
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


class _Drawn(Section):
    """Prompts and seeds: every prompt is drawn with every seed."""

    prompts: tuple[SuitePrompt, ...] = Field(
        min_length=3, description="At least three different prompts, without the trigger word."
    )
    seeds: tuple[int, ...] = Field(min_length=1, description="At least one seed per prompt.")

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts' texts, in order."""
        return tuple(prompt.text for prompt in self.prompts)

    @field_validator("prompts", "seeds", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return as_tuple(value)

    @field_validator("prompts")
    @classmethod
    def _distinct_prompts(cls, prompts: tuple[SuitePrompt, ...]) -> tuple[SuitePrompt, ...]:
        _refuse_duplicates([_same(p.text) for p in prompts])
        return prompts

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= s < 2**31 for s in seeds):
            raise ValueError("a seed is below 0 or above 2147483647")
        _refuse_duplicates([str(s) for s in seeds])
        return seeds


class SuiteConfirm(_Drawn):
    """What only the chosen checkpoint and the base draw: prompts and seeds that chose nothing."""


class Suite(_Drawn):
    """One evaluation suite, as in its TOML file.

    ``prompts`` and ``seeds`` are what the choice is made on. With ``confirm``, what is reported
    and gated is measured on its prompts and seeds instead.
    """

    name: str = Field(min_length=1, description="What the suite is called in reports.")
    strengths: tuple[float, ...] = Field(
        default=(1.0,),
        min_length=1,
        max_length=10,
        description="Strengths at which every checkpoint is drawn.",
    )
    confirm: SuiteConfirm | None = None
    sampler: SuiteSampler = SuiteSampler()
    encoder: SuiteEncoder = SuiteEncoder()
    gates: SuiteGates = SuiteGates()

    @field_validator("strengths", mode="before")
    @classmethod
    def _tuple_of_strengths(cls, value: object) -> object:
        return as_tuple(value)

    @field_validator("strengths")
    @classmethod
    def _possible_strengths(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < s <= 2 for s in strengths):
            raise ValueError("a strength is not above 0 and at most 2")
        _refuse_duplicates([f"{s:g}" for s in strengths])
        return tuple(sorted(strengths))

    @model_validator(mode="after")
    def _fresh_confirmation(self) -> Self:
        """What was chosen on cannot confirm the choice."""
        if self.confirm is None:
            return self
        asked = {_same(text) for text in self.texts}
        seen = [text for text in self.confirm.texts if _same(text) in asked]
        if seen:
            raise ValueError(f"a prompt of [confirm] is among those chosen on: {seen[0]}")
        seeds = sorted(set(self.seeds) & set(self.confirm.seeds))
        if seeds:
            raise ValueError(f"a seed of [confirm] is among those chosen on: {seeds[0]}")
        return self

    @property
    def confirmation(self) -> Suite | None:
        """The confirmation as a suite of its own: other prompts and seeds, the rest the same."""
        if self.confirm is None:
            return None
        drawn = {"prompts": self.confirm.prompts, "seeds": self.confirm.seeds}
        return self.model_copy(update={**drawn, "strengths": (1.0,), "confirm": None})


def _same(text: str) -> str:
    """What two spellings of one prompt have in common."""
    return " ".join(text.split()).casefold()


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
    """SHA-256 (hex) of what decides the images and their features.

    Not of name, tags, strengths, confirmation and gates, which need no new image of a column.
    """
    content = suite.model_dump(mode="json", include={"seeds", "sampler", "encoder"})
    content["prompts"] = list(suite.texts)
    if suite.sampler.scheduler is None:  # as version 0.1.0 hashed it
        del content["sampler"]["scheduler"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def prompt_id(index: int, letter: str = "p") -> str:
    """Name of the prompt at ``index`` (from 0) in tables and file names: ``p00``."""
    return f"{letter}{index:02d}"


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
    return suite_of(summary.inputs)


def suite_of(inputs: ScoreInputs) -> Suite:
    """The suite among everything that scores depend on. Raises IntegrityError if damaged."""
    content = json.dumps(inputs.suite).encode()
    return parse_document(Suite, content, "scores/summary.json: inputs.suite", FIX_SUMMARY)

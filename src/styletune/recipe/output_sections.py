"""What a recipe says about its results: [preview], [score], [publish]."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from styletune.recipe.section import (
    MAX_NAME_CHARACTERS,
    NAME_PATTERN,
    VERSION_PATTERN,
    PathText,
    Section,
    Strings,
)
from styletune.text import has_words


class PreviewSection(Section):
    """Images generated during training, to watch it."""

    prompts: Strings = Field(
        (), description="What is generated at every checkpoint, to watch the run; nothing if empty."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="Seed of the first preview's noise; the same noise at every checkpoint shows "
        "what changed.",
    )
    steps: int = Field(
        20, ge=1, le=1000, description="Denoising steps of a preview: more are sharper and slower."
    )

    @model_validator(mode="after")
    def _worded(self) -> Self:
        for number, prompt in enumerate(self.prompts, start=1):
            if not has_words(prompt):
                raise ValueError(f"prompt {number} of preview.prompts has no words")
        return self


class ScoreSection(Section):
    """How checkpoints are compared."""

    suite: PathText = Field(
        min_length=1,
        description="File with the prompts, seeds, metrics and gates by which checkpoints are "
        "compared (TOML), relative to the recipe.",
    )
    batch_size: int = Field(
        16,
        ge=1,
        le=1024,
        description="Images generated at a time for scoring: more are faster and need more memory.",
    )


class PublishSection(Section):
    """The published version."""

    name: str = Field(
        pattern=NAME_PATTERN,
        max_length=MAX_NAME_CHARACTERS,
        description="Name of the adapter in the registry: lowercase letters, digits and dashes.",
    )
    version: str = Field(
        "1.0.0",
        pattern=VERSION_PATTERN,
        description="Version to publish, major.minor.patch, such as 1.2.0 or 1.2.0-rc.1; a "
        "published version never changes.",
    )
    license: str = Field(
        description="License of the adapter: an SPDX id such as CC-BY-4.0, or LicenseRef-… for "
        "your own terms."
    )
    description: str = Field("", description="One sentence for the model card.")
    plain_lora_rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Rank of the plain LoRA (the nearest by SVD) that dora, loha, lokr and oft "
        "are published as, because tools read those differently.",
    )

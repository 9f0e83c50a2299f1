"""A recipe's base model, or what a plan assumes of it, and what both expect of the images."""

from __future__ import annotations

from pathlib import Path

from styletune.data.captions.tokens import CLIP_TOKENS, TokenCounter
from styletune.data.checked import Expected
from styletune.errors import NotFound
from styletune.models.base import BaseFiles
from styletune.models.base_files import find_base
from styletune.models.families import DEFAULT_FAMILY
from styletune.recipe import LoadedRecipe, Recipe
from styletune.scoring.suite import MIN_REFERENCES


def find_planned_base(loaded: LoadedRecipe) -> tuple[BaseFiles, NotFound | None]:
    """The recipe's base; for a Hub model that is not here, the default family's shapes and why.

    Raises:
        BadInput, NotFound: the base cannot be used, or a local one is not there.
    """
    section = loaded.recipe.base
    try:
        return find_base(
            section.model,
            section.revision,
            loaded.file.parent,
            section.vae,
            section.vae_revision,
        ), None
    except NotFound as error:
        if section.model.count("/") != 1 or section.model[0] in "./~":
            raise
        return _unseen_base(loaded.recipe), error


def _unseen_base(recipe: Recipe) -> BaseFiles:
    """What a plan assumes of a model that is not on this machine."""
    nowhere = Path()
    return BaseFiles(
        family=DEFAULT_FAMILY,
        model=recipe.base.model,
        folder=nowhere,
        revision=recipe.base.revision,
        hash="",
        resolution=DEFAULT_FAMILY.resolution_px,
        variant=None,
        tokenizers=(nowhere,) * len(DEFAULT_FAMILY.tokenizers),
    )


def expected_data(recipe: Recipe, base: BaseFiles, missing: NotFound | None) -> Expected:
    """What the recipe's training and scoring expect of its images."""
    return Expected(
        resolution=recipe.data.resolution or base.resolution,
        tokens=CLIP_TOKENS if missing else token_counter(base),
        new_tokens=recipe.adapter.new_tokens,
        min_holdout=MIN_REFERENCES if recipe.score else 0,
    )


def token_counter(base: BaseFiles) -> TokenCounter:
    """How the base's CLIP counts tokens, and how many it reads."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base.tokenizers[0])
    return TokenCounter(
        # Not verbose: a long caption is a finding here, and no remark of the library's.
        lambda text: len(tokenizer(text, verbose=False).input_ids),
        base.family.max_tokens,
    )

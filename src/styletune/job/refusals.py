"""Refusals before anything is written: what the base, its tokenizers or the run folder rule out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from styletune.data.captions.tokens import TokenCounter
from styletune.errors import BadInput, Conflict
from styletune.recipe import Recipe, read_toml, training_keys
from styletune.recipe.training_sections import (
    AdapterSection,
    DreamboothSection,
    PredictionType,
    TrainSection,
)
from styletune.runs import Run
from styletune.runs.documents import read_facts
from styletune.training.identity import Identity

if TYPE_CHECKING:
    from styletune.models.base import BaseFiles

FIX_RUN_DIR = "use another --run-dir, or leave it out"


def check_objective(
    train: TrainSection,
    dreambooth: DreamboothSection,
    prediction_type: PredictionType,
    base: BaseFiles,
) -> None:
    """Raise BadInput for what the base's noise schedule cannot do."""
    from styletune.models.load import scheduler_config

    schedule = scheduler_config(base)
    own = str(schedule.get("prediction_type", "epsilon"))
    if dreambooth.prior == "prediction" and prediction_type != own:
        raise BadInput(
            f"the base predicts {own} and the adapted model is to predict {prediction_type}: the "
            "one cannot be the other's target",
            where="[dreambooth] prior",
            fix='prior = "images", or prediction_type = "auto"',
        )
    last = int(schedule.get("num_train_timesteps", 1000)) - 1
    for key, value in (("min", train.min_timestep), ("max", train.max_timestep or 0)):
        if value > last:
            raise BadInput(
                f"is {value}, but the base model's timesteps are 0 to {last}",
                where=f"[train] {key}_timestep",
                fix="leave it out, or choose a lower one",
            )


def check_text_lengths(texts: Mapping[str, str], tokens: TokenCounter, *, where: str) -> None:
    """Raise BadInput for texts longer than the text encoders can read.

    Args:
        texts: prompts by a name for the error.
        tokens: as the base model counts them.
        where: the recipe's file.
    """
    counts = {name: tokens.count(text) for name, text in texts.items()}
    long = [f"{name} ({n} tokens)" for name, n in counts.items() if n > tokens.limit]
    if long:
        more = f" and {len(long) - 5} more" if len(long) > 5 else ""
        raise BadInput(
            f"longer than CLIP's {tokens.limit} tokens: {', '.join(long[:5])}{more}",
            where=where,
            fix="shorten them; what comes after would be cut off",
        )


def check_new_tokens(adapter: AdapterSection, base: BaseFiles) -> None:
    """Raise RecipeError for new words that a tokenizer knows already or splits, or for unknown
    words to start them from; BaseModelError where they cannot be added at all.
    """
    if not adapter.new_tokens:
        return
    from transformers import CLIPTokenizer

    from styletune.adapters.tokens import check_table, known_ids, teach_tokenizer
    from styletune.models.load import base_configs

    configs = base_configs(base).text_encoders
    for folder, encoder, config in zip(
        base.tokenizers, base.family.text_encoders, configs, strict=True
    ):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        check_table(encoder.name, int(config["vocab_size"]), len(tokenizer))
        teach_tokenizer(tokenizer, adapter.new_tokens)
        known_ids(tokenizer, adapter.new_tokens_init)


def check_run_folder(run: Run, identity: Identity, recipe: Recipe) -> None:
    """Raise Conflict for a folder that is of another run, or of something else."""
    if run.dir.exists() and not run.dir.is_dir():
        raise Conflict("is a file, not a folder", where=str(run.dir), fix=FIX_RUN_DIR)
    if not run.facts_file.is_file():
        # A dot file may be what a kill left of the first write.
        if run.dir.is_dir() and any(not p.name.startswith(".") for p in run.dir.iterdir()):
            raise Conflict("is not empty and not a run", where=str(run.dir), fix=FIX_RUN_DIR)
        return
    facts = read_facts(run)
    for recorded, expected, label in (
        (facts.training_hash, identity.training_hash, "recipe"),
        (facts.data.fingerprint, identity.data_fingerprint, "data set"),
        (facts.data.order, identity.data_order, "order of the images"),
        (facts.base.hash, identity.base_hash, "base model"),
    ):
        if recorded != expected:
            details = _recipe_changes(run, recipe) if label == "recipe" else ""
            raise Conflict(
                f"holds a run of another {label} ({recorded[:12]}, this is {expected[:12]})"
                + details,
                where=str(run.dir),
                fix=FIX_RUN_DIR,
            )


def _recipe_changes(run: Run, recipe: Recipe) -> str:
    """Which keys differ from the recipe in the run folder, in words; empty when it has none."""
    if not run.recipe_file.is_file():
        return ""
    there = _flat(read_toml(run.recipe_file))
    here = _flat(recipe.model_dump(mode="json", exclude_none=True))
    known = _flat(recipe.model_dump(mode="json"))
    decisive = set(_flat(training_keys(recipe)))
    changed = [
        f"{key} was {there.get(key)!r}, is {here.get(key)!r}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and (key in decisive or key not in known)
    ]
    return ": " + "; ".join(changed) if changed else ""


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``section.key`` to value."""
    return {
        f"{section}.{key}": value
        for section, keys in tree.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }

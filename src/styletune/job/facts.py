"""What a run records about itself, and what every image says about its origin."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

import tomli_w

from styletune import __version__
from styletune.data.checked import LoadedData, holdout_rows, order_hash, train_rows
from styletune.data.rights import rights_summary
from styletune.data.sources.source import Source
from styletune.files import file_sha256, make_dir, write_text
from styletune.models.base import BaseFiles
from styletune.models.names import local_name
from styletune.places import device_name
from styletune.recipe import LoadedRecipe, Recipe, recipe_hash
from styletune.recipe.data_sections import DataSection
from styletune.runs import Run
from styletune.runs.documents import (
    BaseFacts,
    DataFacts,
    DataWarning,
    RunFacts,
    write_facts,
)
from styletune.runs.summary import ScoreInputs, Summary
from styletune.scoring.suite import Suite, scored_suite, suite_of

if TYPE_CHECKING:
    from pydantic import BaseModel

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "numpy")


def begin_run(
    run: Run, loaded: LoadedRecipe, training_hash: str, base: BaseFacts, data: LoadedData
) -> None:
    """Write the facts and the resolved recipe, the first files of a run folder; once.

    Raises:
        OutputError: they cannot be written.
    """
    if run.facts_file.is_file() and run.recipe_file.is_file():
        return
    recipe = loaded.recipe
    make_dir(run.dir)
    facts = RunFacts(
        recipe=loaded.name,
        recipe_hash=recipe_hash(recipe),
        training_hash=training_hash,
        seed=recipe.train.seed,
        base=base,
        data=data_facts(data, recipe.data.opt_out_override),
        versions=_versions(),
        platform=platform.platform(),
        device=device_name(),
    )
    # The facts come first: a folder that has them is a run, whatever is missing from it.
    write_facts(run, facts)
    write_text(run.recipe_file, recipe_text(recipe))


def recipe_text(recipe: Recipe) -> str:
    """A recipe as TOML, keys without a value left out."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def data_facts(data: LoadedData, opt_out_override: str | None) -> DataFacts:
    """What a run folder says of its images; the override is the recipe's reason, if any."""
    checked = data.checked
    rights = rights_summary(
        [item for item in checked.items if item.file_name in checked.facts],
        opt_outs={name: facts.opt_out for name, facts in checked.facts.items()},
        override=opt_out_override,
        lowered=checked.lowered,
    )
    return DataFacts(
        fingerprint=data.fingerprint,
        order=order_hash(data),
        train=tuple(row.file_name for row in train_rows(data)),
        holdout=tuple(row.file_name for row in holdout_rows(data)),
        trigger=data.trigger,
        palette=tuple(checked.palette.declared),
        rights=rights,
        warnings=tuple(DataWarning(**asdict(warning)) for warning in checked.warnings),
    )


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"styletune": __version__, "python": platform.python_version(), **libraries}


def origin_facts(base: BaseFiles, training_hash: str) -> dict[str, object]:
    """What every generated image says about its origin."""
    return {
        "base_model": base.public_name,
        "base_hash": base.hash,
        "training_hash": training_hash,
        "styletune": __version__,
    }


def score_inputs(run: Run, suite: Suite, base_hash: str, data: LoadedData) -> ScoreInputs:
    """Everything that a score depends on; another value of it makes a summary stale."""
    return ScoreInputs(
        suite=suite.model_dump(mode="json"),
        base=base_hash,
        data=data.fingerprint,
        trigger=data.trigger,
        palette=tuple(data.checked.palette.declared),
        adapters={
            str(step): file_sha256(run.adapter_file(step)) for step in run.checkpoint_steps()
        },
        styletune=__version__,
    )


def is_scored_as(summary: Summary, inputs: ScoreInputs) -> bool:
    """Whether these inputs would give these scores; a suite counts by what it says.

    A run that an earlier version scored does not name settings that came later: they are the
    ones that it was scored with.
    """
    if (
        summary.inputs is None
        or summary.inputs.model_copy(update={"suite": inputs.suite}) != inputs
    ):
        return False
    return scored_suite(summary) == suite_of(inputs)


# What stands in a published recipe for a folder of this machine.
LOCAL = "local"


def public_recipe(recipe: Recipe, base: BaseFiles, data: LoadedData) -> str:
    """The recipe as others may see it: no folder of this machine is named.

    Base and VAE keep their public names, Hub data sets theirs, other sources the name on their
    card; local encoders, masks and folders without a card are "local", files keep their last name.
    """
    sections: dict[str, BaseModel | None] = {
        "data": _public_data(recipe.data, data),
        "base": recipe.base.model_copy(
            update={"model": base.public_name, "vae": base.vae.public_name if base.vae else None}
        ),
        "adapter": recipe.adapter.model_copy(
            update={"start_from": _file_name(recipe.adapter.start_from)}
        ),
    }
    if recipe.score:
        suite = _file_name(recipe.score.suite)
        sections["score"] = recipe.score.model_copy(update={"suite": suite})
    return recipe_text(recipe.model_copy(update=sections))


def _public_data(section: DataSection, data: LoadedData) -> DataSection:
    checked = data.checked

    def public(source: Source) -> str:
        card = checked.cards.get(source.name)
        if source.is_hub:
            return source.section.path
        return (card.name if card else None) or LOCAL

    places = [public(source) for source in checked.sources]
    tables = [
        table.model_copy(update={"path": place})
        for table, place in zip(section.sources, places, strict=False)
    ]
    encoder = LOCAL if section.encoder.startswith("local-dir:") else section.encoder
    return section.model_copy(
        update={
            "path": None if section.path is None else places[0],
            "sources": tuple(tables),
            "mask_path": None if section.mask_path is None else LOCAL,
            "encoder": encoder,
        }
    )


def _file_name(place: str | None) -> str | None:
    return None if place is None else local_name(place)

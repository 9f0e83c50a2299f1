"""What a run records about itself, and what every image says about its origin."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

import tomli_w

from styletune import __version__
from styletune.data.load import LoadedData, holdout_rows, order_hash, train_rows
from styletune.data.rights import rights_summary
from styletune.files import make_dir, write_text
from styletune.models.names import public_base
from styletune.places import device_name
from styletune.recipe import Recipe, recipe_hash
from styletune.runs.documents import (
    BaseFacts,
    DataFacts,
    DataWarning,
    RightsSummary,
    RunFacts,
    write_facts,
)

if TYPE_CHECKING:
    from styletune.job.job import Job

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "numpy")


def begin_run(job: Job) -> None:
    """Write the facts and the resolved recipe, the first files of a run folder; once.

    Raises:
        OutputError: they cannot be written.
    """
    run = job.run
    if run.facts_file.is_file() and run.recipe_file.is_file():
        return
    make_dir(run.dir)
    facts = RunFacts(
        recipe=job.loaded.name,
        recipe_hash=recipe_hash(job.recipe),
        training_hash=job.identity.training_hash,
        seed=job.recipe.train.seed,
        base=BaseFacts(model=job.base.model, hash=job.base.hash, resolution=job.resolution),
        data=data_facts(job.data, job.recipe.data.opt_out_override),
        versions=_versions(),
        platform=platform.platform(),
        device=device_name(),
    )
    # The facts come first: a folder that has them is a run, whatever is missing from it.
    write_facts(run, facts)
    write_text(run.recipe_file, recipe_text(job.recipe))


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
        rights=RightsSummary.model_validate(rights),
        warnings=tuple(DataWarning(**asdict(warning)) for warning in checked.warnings),
    )


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"styletune": __version__, "python": platform.python_version(), **libraries}


def origin_facts(job: Job) -> dict[str, object]:
    """What every generated image says about its origin."""
    return {
        "base_model": public_base(job.base.model),
        "base_hash": job.base.hash,
        "training_hash": job.identity.training_hash,
        "styletune": __version__,
    }

"""What a run writes down about itself, and what every image and file says of its origin."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import tomli_w

from styletune import __version__
from styletune.data.load import holdout_rows, order_hash, train_rows
from styletune.data.rights import rights_summary
from styletune.files import make_dir, write_json, write_text
from styletune.models.names import public_base
from styletune.places import device_name
from styletune.recipe import Recipe, recipe_hash

if TYPE_CHECKING:
    from styletune.job.prepare import Job

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "numpy")


def begin_run(job: Job) -> None:
    """Write the facts and the resolved recipe, the first files of a run folder; once."""
    run = job.run
    if run.facts_file.is_file() and run.recipe_file.is_file():
        return
    make_dir(run.dir)
    facts = {
        "recipe": job.loaded.name,
        "recipe_hash": recipe_hash(job.recipe),
        "training_hash": job.identity.recipe_hash,
        "seed": job.recipe.train.seed,
        "base": {"model": job.base.model, "hash": job.base.hash, "resolution": job.resolution},
        "data": data_facts(job),
        "versions": _versions(),
        "platform": platform.platform(),
        "device": device_name(),
    }
    # The facts come first: a folder that has them is a run, whatever is missing from it.
    write_json(run.facts_file, facts)
    write_text(run.recipe_file, recipe_text(job.recipe))


def recipe_text(recipe: Recipe) -> str:
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def data_facts(job: Job) -> dict[str, Any]:
    checked = job.data.checked
    return {
        "fingerprint": job.data.fingerprint,
        "order": order_hash(job.data),
        "train": [r.file_name for r in train_rows(job.data)],
        "holdout": [r.file_name for r in holdout_rows(job.data)],
        "trigger": job.trigger,
        "palette": list(checked.palette.declared),
        "rights": rights_summary(
            [i for i in checked.items if i.file_name in checked.facts],
            opt_outs={name: f.opt_out for name, f in checked.facts.items()},
            override=job.recipe.data.opt_out_override,
            lowered=checked.lowered,
        ),
        "warnings": [asdict(w) for w in checked.warnings],
    }


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"styletune": __version__, "python": platform.python_version(), **found}


def origin_facts(job: Job) -> dict[str, object]:
    return {
        "base_model": public_base(job.base.model),
        "base_hash": job.base.hash,
        "training_hash": job.identity.recipe_hash,
        "styletune": __version__,
    }

"""Earlier runs of the same recipe with another number of steps, which nobody should train twice."""

from __future__ import annotations

import json

from styletune.errors import StyletuneError
from styletune.job.job import StartFile
from styletune.recipe import Recipe, read_toml, training_hash
from styletune.recipe.toml import validate
from styletune.runs import Run
from styletune.runs.answers import PlanProblem
from styletune.runs.documents import RunFacts
from styletune.runs.find import RunEntry, find_runs
from styletune.training.identity import Identity, with_start


def other_length(
    run: Run, recipe: Recipe, identity: Identity, start_from: StartFile | None
) -> PlanProblem | None:
    """A warning before training starts at step 0 beside such a run, or None.

    Args:
        run: the folder of this run; others lie beside it.
        recipe: what is to be trained.
        identity: all that decides its adapter.
        start_from: the adapter that it starts from.
    """
    if run.checkpoint_steps():
        return None
    start = start_from.sha256 if start_from else None
    reached = {
        steps[-1]: entry.run
        for entry in find_runs(run.dir.parent)[0]
        if (steps := entry.run.checkpoint_steps())
        and _same_place(entry.facts, identity)
        and _same_but_steps(entry, recipe, start)
    }
    if not reached:
        return None
    step = max(reached)
    other = reached[step]
    adapter = json.dumps(str(other.adapter_file(step).resolve()), ensure_ascii=False)
    return PlanProblem(
        severity="warning",
        where="[train] steps",
        message=f"a run of this recipe with another number of steps has reached step {step}, in "
        f"{other.dir}; this is another run and starts at step 0",
        fix=f"to train that adapter further instead, set adapter.start_from = {adapter}",
    )


def _same_place(facts: RunFacts, identity: Identity) -> bool:
    """Whether both are of the same images and base."""
    there = (facts.data.fingerprint, facts.data.order, facts.base.hash)
    return there == (identity.data_fingerprint, identity.data_order, identity.base_hash)


def _same_but_steps(entry: RunEntry, recipe: Recipe, start_sha256: str | None) -> bool:
    """Whether both start from the same adapter, and differ in their steps and nothing else."""
    try:
        there = validate(Recipe, read_toml(entry.run.recipe_file), entry.run.recipe_file)
    except StyletuneError:  # of another version, or gone: nothing can be said of it
        return False
    if there.train.steps == recipe.train.steps:
        return False  # the same run, in a folder of its own
    if entry.facts.training_hash != with_start(training_hash(there), start_sha256):
        return False
    train = there.train.model_copy(update={"steps": recipe.train.steps})
    return training_hash(there.model_copy(update={"train": train})) == training_hash(recipe)

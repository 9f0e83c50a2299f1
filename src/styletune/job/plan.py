"""What a job would do, need and write, before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from styletune.data.entries import bucket_report, entries
from styletune.data.load import holdout_rows, train_rows
from styletune.job.prepare import Job, job_setup
from styletune.models.families import DEFAULT_FAMILY
from styletune.planning.preflight import configs_of, preflight
from styletune.recipe import Recipe, recipe_hash
from styletune.scoring.suite import suite_hash

if TYPE_CHECKING:
    from styletune.models.family import BaseConfigs
    from styletune.planning.gpus import Gpu
    from styletune.planning.memory import Setup


def _reaches_pure_noise(job: Job) -> bool:
    """Whether the last step has no signal, by the recipe or by the base's own schedule."""
    if job.recipe.train.zero_terminal_snr or job.missing_base is not None:
        return job.recipe.train.zero_terminal_snr
    from styletune.models.load import scheduler_config

    return bool(scheduler_config(job.base).get("rescale_betas_zero_snr"))


def _check_patterns(recipe: Recipe, setup: Setup, configs: BaseConfigs) -> None:
    from styletune.job.adapt import block_factors
    from styletune.planning.memory import trained_names

    block_factors(recipe, trained_names(setup, configs))


def plan(job: Job, gpu: Gpu | None) -> dict[str, Any]:
    """What would happen, on this card if one is given, as the ``plan --json`` document.

    A problem of severity "error" means that training would be refused.
    """
    recipe, data = job.recipe, job.data
    train, holdout = len(train_rows(data)), len(holdout_rows(data))
    steps, batch = recipe.train.steps, recipe.train.batch_size
    accumulation = recipe.train.gradient_accumulation_steps
    seen = entries(data)
    sizes = [entry.bucket for entry in seen for _ in range(entry.row.repeats)]
    per_epoch = sum(-(-sizes.count(size) // batch) for size in set(sizes))
    problems = [
        {
            "severity": "warning",
            "where": f"{w.code}: {', '.join(w.files[:3])}{' …' if len(w.files) > 3 else ''}",
            "message": w.message,
            "fix": w.fix,
        }
        for w in data.warnings
    ]
    if job.missing_base is not None:
        problems.append(
            {
                "severity": "error",
                "where": job.missing_base.where,
                "message": f"{job.missing_base.message}; planned as {DEFAULT_FAMILY.name}'s base",
                "fix": job.missing_base.fix,
            }
        )
    if _reaches_pure_noise(job) and recipe.train.weighting == "min-snr":
        problems.append(
            {
                "severity": "warning",
                "where": "[train] weighting",
                "message": "min-SNR weighs velocity by min(SNR, gamma) / (SNR + 1), which is 0 at "
                "the pure-noise step of zero-terminal SNR: it would not be trained",
                "fix": 'weighting = "none"',
            }
        )
    setup, configs = job_setup(job), configs_of(None if job.missing_base else job.base)
    needs, misfits = preflight(setup, configs, steps, batch * accumulation, gpu)
    _check_patterns(recipe, setup, configs)
    problems += misfits
    checkpoints = sorted(
        {*range(recipe.train.checkpoint_every, steps, recipe.train.checkpoint_every), steps}
    )
    run = job.run
    outputs = [run.recipe_file, run.facts_file, run.log_file]
    outputs += [run.checkpoint_dir(s) for s in checkpoints]
    if recipe.preview.prompts:
        outputs.append(run.previews_dir)
    if job.suite:
        outputs += [run.samples_dir(suite_hash(job.suite), ""), run.scores_file, run.summary_file]
        outputs += [run.report_file, run.picture_file]
    alpha = recipe.adapter.alpha or float(recipe.adapter.rank)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe_hash(recipe),
        "base": {"model": job.base.model, "hash": job.base.hash},
        "problems": problems,
        **needs,
        "data": {
            "images": train + holdout,
            "train": train,
            "holdout": holdout,
            "groups": len(data.groups),
            "buckets": bucket_report(seen),
            "fingerprint": data.fingerprint,
            "trigger": job.trigger,
        },
        "train": {
            "steps": steps,
            "epochs": round(steps * accumulation / per_epoch, 2),
            "images_per_epoch": len(sizes),
            "images_per_step": batch * accumulation,
            "checkpoints": checkpoints,
            "adapter_scale": alpha / recipe.adapter.rank,
            "done_steps": max(run.checkpoint_steps(), default=0),
        },
        "score": {"images": (len(checkpoints) + 1) * len(job.suite.prompts) * len(job.suite.seeds)}
        if job.suite
        else None,
        "run_dir": str(run.dir),
        "outputs": [str(p) for p in outputs],
    }

"""A checked job: recipe, base, data, suite and run folder fit together; nothing is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.data.load import LoadedData, holdout_rows, load_data, train_rows
from styletune.errors import BadInput, Conflict
from styletune.recipe import LoadedRecipe, Recipe, recipe_hash, training_hash
from styletune.runs import Run, read_json
from styletune.scoring.suite import MIN_REFERENCES, Suite, load_suite, suite_hash

if TYPE_CHECKING:
    from styletune.sdxl.load import BaseFiles
    from styletune.training.checkpoint import Identity

FIX_RUN_DIR = "use another --run-dir, or leave it out"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a run needs to know, checked; nothing has been written yet."""

    loaded: LoadedRecipe
    base: BaseFiles
    data: LoadedData
    suite: Suite | None
    run: Run
    resolution: int

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def identity(self) -> Identity:
        from styletune.training.checkpoint import Identity

        return Identity(training_hash(self.recipe), self.data.fingerprint, self.base.hash)

    @property
    def trigger(self) -> str:
        return (self.data.card.trigger or "") if self.data.card else ""


def prepare(loaded: LoadedRecipe, *, runs_dir: Path, run_dir: Path | None) -> Job:
    """Check recipe, base, data, suite and run folder against each other.

    Raises:
        BadInput, NotFound: something cannot be used; nothing has been written.
        Conflict: the run folder belongs to another recipe, data set or base, or is not a run.
    """
    from styletune.sdxl.load import find_base

    recipe = loaded.recipe
    suite = load_suite(loaded.path(recipe.score.suite)) if recipe.score else None
    base = find_base(recipe.base.model, recipe.base.revision, loaded.file.parent)
    resolution = recipe.data.resolution or base.resolution
    data = load_data(
        loaded.path(recipe.data.path),
        default_caption=recipe.data.default_caption,
        holdout=recipe.data.holdout,
        resolution=resolution,
        background=recipe.data.background,
        show_progress=True,
    )
    if not train_rows(data):
        raise BadInput("no image is left to train on", where="[data] holdout", fix="lower it")
    held_out = len(holdout_rows(data))
    if suite and held_out < MIN_REFERENCES:
        raise BadInput(
            f"scoring compares with at least {MIN_REFERENCES} held-out images, {held_out} are held "
            "out",
            where="[data] holdout",
            fix="hold out more (holdout = 0.2), add images, or remove [score]",
        )
    # The folder is named by what decides the result, so a changed recipe or image starts anew.
    run_id = short_hash(training_hash(recipe), data.fingerprint, base.hash)
    run = Run(run_dir or runs_dir / loaded.name / run_id)
    job = Job(loaded, base, data, suite, run, resolution)
    _check_run_folder(job)
    _check_texts(job)
    if suite:
        from styletune.encoders.find import find_clip

        find_clip(suite.encoder.name, suite_folder(job))
    return job


def suite_folder(job: Job) -> Path:
    assert job.recipe.score is not None
    return job.loaded.path(job.recipe.score.suite).parent


def _check_texts(job: Job) -> None:
    """Refuse every caption and prompt of which CLIP would not see the end."""
    from transformers import CLIPTokenizer

    from styletune.sdxl.conditioning import MAX_TOKENS

    tokenizer = CLIPTokenizer.from_pretrained(job.base.folder / "tokenizer")
    texts = {f"caption of {r.file_name}": r.text for r in train_rows(job.data)}
    texts |= {f"preview prompt {i + 1}": p for i, p in enumerate(job.recipe.preview.prompts)}
    if job.suite:
        prompts = [prompt_with_trigger(p, job.trigger) for p in job.suite.prompts]
        texts |= {f"suite prompt {i + 1}": p for i, p in enumerate(prompts)}
        texts["suite negative_prompt"] = job.suite.sampler.negative_prompt
    counts = {k: len(tokenizer(t).input_ids) for k, t in texts.items()}
    long = [f"{k} ({n} tokens)" for k, n in counts.items() if n > MAX_TOKENS]
    if long:
        more = f" and {len(long) - 5} more" if len(long) > 5 else ""
        raise BadInput(
            f"longer than CLIP's {MAX_TOKENS} tokens: {', '.join(long[:5])}{more}",
            where=str(job.loaded.file),
            fix="shorten them; what comes after would be cut off",
        )


def prompt_with_trigger(prompt: str, trigger: str) -> str:
    """The words that are generated from; every column gets the same."""
    return f"{trigger}, {prompt}" if trigger and trigger not in prompt else prompt


def short_hash(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:10]


def _check_run_folder(job: Job) -> None:
    run = job.run
    if run.dir.exists() and not run.dir.is_dir():
        raise Conflict("is a file, not a folder", where=str(run.dir), fix=FIX_RUN_DIR)
    if not run.facts_file.is_file():
        # A dot file may be what a kill left of the first write.
        if run.dir.is_dir() and any(not p.name.startswith(".") for p in run.dir.iterdir()):
            raise Conflict("is not empty and not a run", where=str(run.dir), fix=FIX_RUN_DIR)
        return
    facts, identity = read_json(run.facts_file), job.identity
    for found, wanted, label in (
        (facts.get("training_hash"), identity.recipe_hash, "recipe"),
        (facts.get("data", {}).get("fingerprint"), identity.data_fingerprint, "data set"),
        (facts.get("base", {}).get("hash"), identity.base_hash, "base model"),
    ):
        if found != wanted:
            raise Conflict(
                f"holds a run of another {label} ({str(found)[:12]}, this is {wanted[:12]})",
                where=str(run.dir),
                fix=FIX_RUN_DIR,
            )


def plan(job: Job) -> dict[str, Any]:
    """What would happen, as the ``plan --json`` document."""
    recipe, data = job.recipe, job.data
    train, holdout = len(train_rows(data)), len(holdout_rows(data))
    steps, batch = recipe.train.steps, recipe.train.batch_size
    problems = [
        {
            "severity": "warning",
            "where": f"{w.code}: {', '.join(w.files[:3])}{' …' if len(w.files) > 3 else ''}",
            "message": w.message,
            "fix": w.fix,
        }
        for w in data.warnings
    ]
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
        "data": {
            "images": train + holdout,
            "train": train,
            "holdout": holdout,
            "groups": len(data.groups),
            "buckets": [{"width": job.resolution, "height": job.resolution, "images": train}],
            "fingerprint": data.fingerprint,
            "trigger": job.trigger,
        },
        "train": {
            "steps": steps,
            "epochs": round(steps * batch / train, 2),
            "images_per_step": batch,
            "checkpoints": checkpoints,
            "adapter_scale": alpha / recipe.adapter.rank,
            "done_steps": max(run.checkpoint_steps(), default=0),
        },
        "score": {
            "images": (len(checkpoints) + 1) * len(job.suite.prompts) * len(job.suite.seeds)
        } if job.suite else None,
        "run_dir": str(run.dir),
        "outputs": [str(p) for p in outputs],
    }  # fmt: skip

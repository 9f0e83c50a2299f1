"""What a job would do, need and write, before anything is done."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.checked import LoadedData, holdout_rows, train_rows
from styletune.data.entries import bucket_report, entries
from styletune.data.findings import Finding
from styletune.data.rows import Entry
from styletune.errors import NotFound
from styletune.job.base import find_planned_base
from styletune.job.earlier import other_length
from styletune.job.job import Job
from styletune.job.start_from import check_start
from styletune.job.trainable import check_output, check_resumable, check_trainable
from styletune.models.base import BaseFiles
from styletune.models.families import DEFAULT_FAMILY
from styletune.models.names import BUNDLED
from styletune.planning.preflight import Needs, configs_of, preflight
from styletune.planning.workload import Step, Workload, side_key
from styletune.recipe import LoadedRecipe, Recipe, recipe_hash
from styletune.recipe.data_sections import DataSection
from styletune.recipe.training_sections import TrainSection
from styletune.runs import Run
from styletune.runs.answers import (
    Plan,
    PlanBase,
    PlanData,
    PlanProblem,
    PlanScoring,
    PlanTraining,
)
from styletune.scoring.suite import Suite, sample_names, suite_hash
from styletune.training.batches import batch_sizes, batches_per_epoch

if TYPE_CHECKING:
    from styletune.planning.gpus import Gpu

# What suites of photographs are usually scored with.
PHOTO_ENCODER = "ViT-L-14-quickgelu/openai"


def _reaches_pure_noise(train: TrainSection, base: BaseFiles | None) -> bool:
    """Whether the last step has no signal, by the recipe or by the base's own schedule."""
    if train.zero_terminal_snr or base is None:
        return train.zero_terminal_snr
    from styletune.models.load import scheduler_config

    return bool(scheduler_config(base).get("rescale_betas_zero_snr"))


def plan(job: Job, gpu: Gpu | None) -> Plan:
    """What would happen, on this card if one is given.

    A problem of severity "error" means that training would be refused.

    Raises:
        as ``check_trainable``, ``check_resumable`` and ``check_output``: what training would
        refuse.
    """
    recipe, data, train = job.recipe, job.data, job.recipe.train
    base = None if job.missing_base else job.base
    configs = configs_of(base)
    check_resumable(job.run, job.identity)
    notes: list[PlanProblem] = []
    if not job.is_trained:
        trained = check_trainable(recipe, configs)
        notes += _rank_problems(trained)
        notes += _hand_off_problems(trained) if recipe.publish else []
        earlier = other_length(job.run, recipe, job.identity, job.start_from)
        notes += [earlier] if earlier else []
        if job.start_from is not None:
            check_start(job.start_from, recipe.adapter, configs.family, trained)
        check_output(job.run, recipe.optimizer, trained)
    needs = preflight(job.workload, configs, gpu)
    sees = entries(data)
    steps = train.checkpoint_steps
    suite = job.suite
    problems = [
        *_data_problems(data.warnings),
        *_missing_base(job.missing_base),
        *_objective_problems(train, _reaches_pure_noise(train, base)),
        *notes,
        *_batch_problems(train, sees),
        *_caption_problems(recipe.data, sees),
        *_new_word_problems(recipe.adapter.new_tokens, sees),
        *_encoder_problems(suite, base),
        *([needs.problem] if needs.problem else []),
    ]
    return Plan(
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe_hash(recipe),
        base=PlanBase(model=job.base.model, hash=job.base.hash),
        problems=tuple(problems),
        memory=needs.memory,
        compute=needs.compute,
        data=_data(data, sees, job.resolution),
        train=_training(recipe, sees, steps, max(job.run.checkpoint_steps(), default=0)),
        score=PlanScoring(images=_scored_images(suite, len(steps))) if suite else None,
        run_dir=str(job.run.dir),
        outputs=tuple(map(str, _outputs(job.run, steps, bool(recipe.preview.prompts), suite))),
    )


def needs_without_data(loaded: LoadedRecipe, gpu: Gpu | None) -> Needs:
    """Memory and compute before there are images, at full batches of squares.

    Raises:
        BadInput, NotFound, RecipeError: the base cannot be used, or settings do not fit it.
    """
    recipe = loaded.recipe
    base, missing = find_planned_base(loaded)
    side = recipe.data.resolution or base.resolution
    workload = Workload(
        Step(side, side, recipe.base, recipe.adapter, recipe.dreambooth, recipe.train),
        recipe.optimizer,
        recipe.preview,
        recipe.score,
        side_key=side_key(recipe.data, (side, side)),
    )
    return preflight(workload, configs_of(None if missing else base), gpu)


def _data_problems(warnings: Sequence[Finding]) -> list[PlanProblem]:
    return [
        PlanProblem(
            severity="warning",
            where=f"{w.code}: {', '.join(w.files[:3])}{' …' if len(w.files) > 3 else ''}",
            message=w.message,
            fix=w.fix,
        )
        for w in warnings
    ]


def _missing_base(error: NotFound | None) -> list[PlanProblem]:
    if error is None:
        return []
    message = f"{error.message}; planned as {DEFAULT_FAMILY.name}'s base"
    return [PlanProblem(severity="error", where=error.where, message=message, fix=error.fix)]


def _objective_problems(train: TrainSection, reaches_pure_noise: bool) -> list[PlanProblem]:
    if not (reaches_pure_noise and train.weighting == "min-snr"):
        return []
    return [
        PlanProblem(
            severity="warning",
            where="[train] weighting",
            message="min-SNR weighs velocity by min(SNR, gamma) / (SNR + 1), which is 0 at "
            "the pure-noise step of zero-terminal SNR: it would not be trained",
            fix='weighting = "none"',
        )
    ]


def _batch_problems(train: TrainSection, sees: Sequence[Entry]) -> list[PlanProblem]:
    """A warning about buckets that never fill a batch."""
    counts = Counter(entry.bucket for entry in sees for _ in range(entry.row.repeats))
    small = {size: n for size, n in sorted(counts.items()) if n < train.batch_size}
    if not small:
        return []
    listed = ", ".join(f"{w}×{h} has {n}" for (h, w), n in list(small.items())[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    return [
        PlanProblem(
            severity="warning",
            where="[train] batch_size",
            message=f"{len(small)} of {len(counts)} buckets hold fewer images than a batch of "
            f"{train.batch_size}: {listed}{more}. Their batches are smaller",
            fix="choose a lower batch_size, fewer shapes (a lower data.max_aspect or a larger "
            "data.bucket_step), or data.buckets = false",
        )
    ]


def _rank_problems(trained: Mapping[str, tuple[int, ...]]) -> list[PlanProblem]:
    """A warning about ranks above what a layer's update can have."""
    halves = {n: s for n, s in trained.items() if n.endswith(("lora_A.weight", "lora_B.weight"))}
    above = {
        name.rpartition(".lora_")[0]
        for name, shape in halves.items()
        if (shape[0] > math.prod(shape[1:]) if "lora_A" in name else shape[1] > shape[0])
    }
    if not above:
        return []
    return [
        PlanProblem(
            severity="warning",
            where="[adapter] rank",
            message=f"the rank is above the width of {len(above)} of {len(halves) // 2} layers, "
            f"such as {min(above)}: the rest of it does nothing there",
            fix="choose a lower rank, or a lower one for those by block_ranks",
        )
    ]


def _hand_off_problems(trained: Mapping[str, tuple[int, ...]]) -> list[PlanProblem]:
    """A warning about an adapter that InvokeAI could not tell the base of.

    It looks at the keys and values of cross-attention, else at how deep the blocks are (6.14).
    """
    telling = re.compile(r"\.attn2\.to_[kv]\.|\.transformer_blocks\.([2-9]|\d\d)\.")
    if any(telling.search(name) for name in trained):
        return []
    return [
        PlanProblem(
            severity="warning",
            where="[adapter] target",
            message="InvokeAI will not install the adapter: it tells the base model by "
            "cross-attention or by deep blocks, and none is adapted",
            fix='choose a target with attention, such as "attention", if it is to be used there',
        )
    ]


def _caption_problems(data: DataSection, sees: Sequence[Entry]) -> list[PlanProblem]:
    """A warning where captions have no parts that could be shuffled or dropped."""
    if data.caption_variants == 1 or any("," in entry.row.text for entry in sees):
        return []
    return [
        PlanProblem(
            severity="warning",
            where="[data] caption_shuffle, caption_tag_dropout",
            message="no caption has a comma, so all its variants are alike",
            fix="separate the parts of captions by commas, or leave the keys out",
        )
    ]


def _new_word_problems(new_tokens: Sequence[str], sees: Sequence[Entry]) -> list[PlanProblem]:
    """A warning about new words that no caption has: their meaning would not be trained."""
    texts = {entry.row.text.casefold() for entry in sees}
    unused = [word for word in new_tokens if not any(word.casefold() in text for text in texts)]
    if not unused:
        return []
    return [
        PlanProblem(
            severity="warning",
            where="[adapter] new_tokens",
            message=f"no caption has {', '.join(unused)}, so nothing is learned for it",
            fix="write it into the captions, or leave it out",
        )
    ]


def _encoder_problems(suite: Suite | None, base: BaseFiles | None) -> list[PlanProblem]:
    """A warning where the bundled encoder, which knows drawn scenes alone, judges another base."""
    if suite is None or suite.encoder.name not in BUNDLED or (base and base.origin == "bundled"):
        return []
    return [
        PlanProblem(
            severity="warning",
            where="[score] suite: [encoder] name",
            message=f'"{suite.encoder.name}", the bundled encoder, knows its own drawn scenes '
            "only: its similarities mean little for other images",
            fix=f'name = "{PHOTO_ENCODER}"',
        )
    ]


def _data(data: LoadedData, sees: list[Entry], resolution: int) -> PlanData:
    train, holdout = len(train_rows(data)), len(holdout_rows(data))
    return PlanData(
        images=train + holdout,
        train=train,
        holdout=holdout,
        groups=len(data.groups),
        buckets=bucket_report(sees),
        resolution=resolution,
        fingerprint=data.fingerprint,
        trigger=data.trigger,
    )


def _training(
    recipe: Recipe, sees: list[Entry], checkpoints: Sequence[int], done_steps: int
) -> PlanTraining:
    train, adapter = recipe.train, recipe.adapter
    sizes = [entry.bucket for entry in sees for _ in range(entry.row.repeats)]
    accumulation = train.gradient_accumulation_steps
    batches = train.steps * accumulation
    fewest, most = batch_sizes(sizes, train.batch_size)
    root = math.sqrt(adapter.rank) if adapter.rslora else adapter.rank
    return PlanTraining(
        steps=train.steps,
        epochs=round(batches / batches_per_epoch(sizes, train.batch_size), 2),
        images_per_epoch=len(sizes),
        images_per_step=most * accumulation,
        fewest_images=fewest * accumulation,
        checkpoints=tuple(checkpoints),
        adapter_scale=adapter.base_alpha / root,
        done_steps=done_steps,
    )


def _scored_images(suite: Suite, checkpoints: int) -> int:
    """Of the base and every checkpoint at every strength; of two for a confirmation."""
    screened = (1 + checkpoints * len(suite.strengths)) * len(sample_names(suite))
    fresh = suite.confirmation
    return screened + (2 * len(sample_names(fresh)) if fresh else 0)


def _outputs(run: Run, steps: Sequence[int], previews: bool, suite: Suite | None) -> list[Path]:
    outputs = [run.recipe_file, run.facts_file, run.log_file]
    outputs += [run.checkpoint_dir(step) for step in steps]
    if previews:
        outputs.append(run.previews_dir)
    if suite:
        suites = [suite, suite.confirmation] if suite.confirmation else [suite]
        outputs += [run.samples_dir(suite_hash(each), "") for each in suites]
        outputs += [run.scores_file, run.summary_file]
        outputs += [run.report_file, run.picture_file]
    return outputs

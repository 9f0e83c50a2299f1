"""A checked job: recipe, base, data, suite and run folder fit together; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.checked import LoadedData, holdout_rows, order_hash
from styletune.data.entries import entries
from styletune.data.inspection.store import kept_facts
from styletune.data.load import load_data
from styletune.errors import BadInput, NotFound
from styletune.files import file_sha256
from styletune.job.base import expected_data, find_planned_base, token_counter
from styletune.job.job import Job, StartFile
from styletune.job.refusals import (
    check_new_tokens,
    check_objective,
    check_run_folder,
    check_text_lengths,
)
from styletune.models.family import SizePx
from styletune.planning.workload import Step, Workload, side_key
from styletune.recipe import LoadedRecipe, Recipe, first_training_hash, training_hash
from styletune.recipe.training_sections import PredictionType, TrainSection
from styletune.runs import Run
from styletune.runs.documents import read_facts
from styletune.sampling.prompts import check_prompts, prompt_with_trigger
from styletune.scoring.suite import Suite, load_suite
from styletune.training.identity import Identity, short_hash, with_start

if TYPE_CHECKING:
    from styletune.models.base import BaseFiles

# Encoded images and captions, shared by all runs; a name that no recipe can have.
CACHE_FOLDER = ".cache"


def prepare(
    loaded: LoadedRecipe,
    *,
    runs_dir: Path,
    run_dir: Path | None,
    planning: bool = False,
    show_progress: bool = True,
) -> Job:
    """Check recipe, base, data, suite and run folder against each other.

    With ``planning`` a Hub model that is not on this machine is assumed to have the default
    family's shapes and only noted, so that a plan can be made before gigabytes are downloaded.

    Raises:
        BadInput, NotFound: something cannot be used; nothing has been written.
        Conflict: the run folder belongs to another recipe, data set or base, or is not a run.
    """
    recipe = loaded.recipe
    start_from = _start_from(loaded)
    suite = load_suite(loaded.path(recipe.score.suite)) if recipe.score else None
    base, missing = find_planned_base(loaded)
    if missing is not None and not planning:
        raise missing
    expected = expected_data(recipe, base, missing)
    with kept_facts() as store:
        data = load_data(
            recipe.data, loaded.file.parent, expected, store=store, show_progress=show_progress
        )
    place = runs_dir / loaded.name
    run, identity = _run(run_dir, place, _identities(recipe, start_from, data, base))
    if recipe.train.validation_every and not holdout_rows(data):
        raise BadInput(
            "no image is held out to measure it on",
            where="[train] validation_every",
            fix="set data.holdout, or leave validation_every out",
        )
    if missing is None:
        check_run_folder(run, identity, recipe)
    prediction_type = _prediction_type(recipe.train, None if missing else base)
    texts = _texts(recipe, suite, data.trigger)
    check_prompts(texts, where=str(loaded.file))
    if missing is None:
        check_objective(recipe.train, recipe.dreambooth, prediction_type, base)
        check_new_tokens(recipe.adapter, base)
        check_text_lengths(texts, token_counter(base), where=str(loaded.file))
    if suite and recipe.score:
        from styletune.encoders.find import check_clip
        from styletune.sampling.shots import check_scheduler

        if suite.sampler.scheduler is not None:
            check_scheduler(suite.sampler.scheduler, f"{recipe.score.suite}: [sampler] scheduler")
        check_clip(suite.encoder.name, loaded.path(recipe.score.suite).parent)
    return Job(
        loaded,
        base,
        data,
        suite,
        run,
        expected.resolution,
        cache_dir=runs_dir / CACHE_FOLDER,
        start_from=start_from,
        identity=identity,
        prediction_type=prediction_type,
        workload=_workload(recipe, data),
        missing_base=missing,
    )


def _start_from(loaded: LoadedRecipe) -> StartFile | None:
    """The adapter file that training starts from. Raises NotFound."""
    start_from = loaded.recipe.adapter.start_from
    if not start_from:
        return None
    file = loaded.path(start_from)
    if not file.is_file():
        raise NotFound(
            f"no file {file}",
            where="[adapter] start_from",
            fix="give an adapter's .safetensors file, relative to the recipe",
        )
    return StartFile(file, file_sha256(file))


def _identities(
    recipe: Recipe, start_from: StartFile | None, data: LoadedData, base: BaseFiles
) -> tuple[Identity, Identity]:
    """Hashes of all that decides the adapter, taken once: a file may change during a run.

    The second is what runs of the first version were named by.
    """
    order = order_hash(data)
    start = start_from.sha256 if start_from else None

    def identity(own: str) -> Identity:
        return Identity(with_start(own, start), data.fingerprint, order, base.hash)

    return identity(training_hash(recipe)), identity(first_training_hash(recipe))


def _run(run_dir: Path | None, place: Path, identities: Sequence[Identity]) -> tuple[Run, Identity]:
    """The run's folder and its identity: an earlier one's if there is a run of it.

    The folder is named by what decides the result, so a changed recipe or image starts a new run.
    """
    runs = [
        Run(
            run_dir
            or place / short_hash(i.training_hash, i.data_fingerprint, i.data_order, i.base_hash)
        )
        for i in identities
    ]
    for run, identity in zip(runs, identities, strict=True):
        if run.facts_file.is_file() and read_facts(run).training_hash == identity.training_hash:
            return run, identity
    return runs[0], identities[0]


def _prediction_type(train: TrainSection, base: BaseFiles | None) -> PredictionType:
    """What the adapted UNet predicts; without a base, what the recipe says, else noise."""
    from styletune.models.load import scheduler_config
    from styletune.models.schedule import resolve_prediction_type

    if base is None:
        return "epsilon" if train.prediction_type == "auto" else train.prediction_type
    own = str(scheduler_config(base).get("prediction_type", "epsilon"))
    return resolve_prediction_type(train.prediction_type, own, train.zero_terminal_snr)


def _workload(recipe: Recipe, data: LoadedData) -> Workload:
    """What the plan of memory is made from."""
    train_entries = entries(data)
    counts = Counter(e.bucket for e in train_entries for _ in range(e.row.repeats))
    wanted = recipe.train.batch_size

    def pixels(size: SizePx) -> int:
        return size[0] * size[1] * min(wanted, counts[size])

    # The largest batch that there is: a bucket may hold fewer images than a batch.
    largest = max(counts, key=pixels)
    train = recipe.train.model_copy(update={"batch_size": min(wanted, counts[largest])})
    captions = len({entry.row.text for entry in train_entries}) * recipe.data.caption_variants
    return Workload(
        Step(*largest, recipe.base, recipe.adapter, recipe.dreambooth, train),
        recipe.optimizer,
        recipe.preview,
        recipe.score,
        images=len(train_entries),
        captions=captions,
        side_key=side_key(recipe.data, largest),
    )


def _texts(recipe: Recipe, suite: Suite | None, trigger: str) -> dict[str, str]:
    """Everything that images are generated from, by a name for errors."""
    texts = {f"preview prompt {i + 1}": p for i, p in enumerate(recipe.preview.prompts)}
    if recipe.dreambooth.class_prompt is not None:
        texts["dreambooth class_prompt"] = recipe.dreambooth.class_prompt
    if suite is not None:
        fresh = suite.confirmation
        for name, asked in (("suite prompt", suite), ("suite [confirm] prompt", fresh)):
            if asked is not None:
                prompts = [prompt_with_trigger(text, trigger) for text in asked.texts]
                texts |= {f"{name} {i}": prompt for i, prompt in enumerate(prompts, start=1)}
        texts["suite negative_prompt"] = suite.sampler.negative_prompt
    return texts

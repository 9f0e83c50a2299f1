"""A checked job: recipe, base, data, suite and run folder fit together; nothing is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.data.check import CheckSettings
from styletune.data.entries import entries
from styletune.data.inspection.store import close_store, default_store_path, open_store
from styletune.data.load import LoadedData, holdout_rows, load_data, order_hash
from styletune.data.sources.open import resolve_sources
from styletune.errors import BadInput, Conflict, NotFound
from styletune.files import file_sha256, read_json
from styletune.models.families import DEFAULT_FAMILY
from styletune.planning.preflight import setup_of
from styletune.recipe import (
    LoadedRecipe,
    Recipe,
    read_toml,
    training_hash,
    training_keys,
)
from styletune.runs import Run
from styletune.scoring.suite import MIN_REFERENCES, Suite, load_suite

if TYPE_CHECKING:
    from styletune.models.load import BaseFiles
    from styletune.planning.memory import Setup
    from styletune.training.checkpoint import Identity

# Encoded images and captions, shared by all runs; a name that no recipe can have.
CACHE_FOLDER = ".cache"
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
    cache_dir: Path
    missing_base: NotFound | None = None

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def training_hash(self) -> str:
        """The recipe's, and the content of the adapter it goes on from, if there is one."""
        start = self.start_from
        own = training_hash(self.recipe)
        return own if start is None else _sha256(own, file_sha256(start))

    @property
    def start_from(self) -> Path | None:
        """The adapter file that training goes on from."""
        given = self.recipe.adapter.start_from
        return self.loaded.path(given) if given else None

    @property
    def identity(self) -> Identity:
        from styletune.training.checkpoint import Identity

        return Identity(
            self.training_hash, self.data.fingerprint, order_hash(self.data), self.base.hash
        )

    @property
    def trigger(self) -> str:
        return self.data.trigger


def prepare(
    loaded: LoadedRecipe,
    *,
    runs_dir: Path,
    run_dir: Path | None,
    planning: bool = False,
    show_progress: bool = True,
) -> Job:
    """Check recipe, base, data, suite and run folder against each other.

    With ``planning`` a Hub model that is not on this machine is taken for a stock one and only
    noted, so that a plan can be made before gigabytes are fetched.

    Raises:
        BadInput, NotFound: something cannot be used; nothing has been written.
        Conflict: the run folder belongs to another recipe, data set or base, or is not a run.
    """
    recipe = loaded.recipe
    start_from = recipe.adapter.start_from
    if start_from and not loaded.path(start_from).is_file():
        raise NotFound(
            f"no file {loaded.path(start_from)}",
            where="[adapter] start_from",
            fix="give an adapter's .safetensors file, relative to the recipe",
        )
    suite = load_suite(loaded.path(recipe.score.suite)) if recipe.score else None
    base, missing = find_planned_base(loaded)
    if missing is not None and not planning:
        raise missing
    resolution = recipe.data.resolution or base.resolution
    settings = check_settings(loaded, resolution)
    store = open_store(default_store_path())
    try:
        data = load_data(
            resolve_sources(recipe.data.path, recipe.data.sources, loaded.file.parent),
            settings,
            store=store,
            flip=recipe.data.flip,
            tokens=None if missing else token_counter(base),
            relative_to=loaded.file.parent,
            show_progress=show_progress,
        )
    finally:
        close_store(store)
    # The folder is named by what decides the result, so a changed recipe or image starts anew.
    unnamed = Job(
        loaded, base, data, suite, Run(runs_dir), resolution, runs_dir / CACHE_FOLDER, missing
    )
    run_id = short_hash(unnamed.training_hash, data.fingerprint, order_hash(data), base.hash)
    job = replace(unnamed, run=Run(run_dir or runs_dir / loaded.name / run_id))
    if recipe.train.validation_every and not holdout_rows(data):
        raise BadInput(
            "no image is held out to measure it on",
            where="[train] validation_every",
            fix="set data.holdout, or leave validation_every out",
        )
    if missing is None:
        _check_run_folder(job)
        _check_objective(job)
        _check_texts(job)
    if suite:
        from styletune.encoders.find import find_clip

        find_clip(suite.encoder.name, suite_folder(job))
    return job


def _check_objective(job: Job) -> None:
    """Refuse what the base's noise schedule cannot do."""
    from styletune.models.load import scheduler_config
    from styletune.models.schedule import resolve_prediction_type

    train, schedule = job.recipe.train, scheduler_config(job.base)
    base = str(schedule.get("prediction_type", "epsilon"))
    predicts = resolve_prediction_type(train.prediction_type, base, train.zero_terminal_snr)
    if job.recipe.dreambooth.prior == "prediction" and predicts != base:
        raise BadInput(
            f"the base predicts {base} and the adapted model is to predict {predicts}: the one "
            "cannot be the other's target",
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


def check_settings(loaded: LoadedRecipe, resolution: int) -> CheckSettings:
    """How the recipe's data are judged."""
    recipe, data = loaded.recipe, loaded.recipe.data
    return CheckSettings(
        resolution=resolution,
        extra_resolutions=data.extra_resolutions,
        buckets=data.buckets,
        bucket_step=data.bucket_step,
        max_aspect=data.max_aspect,
        default_caption=data.default_caption,
        background=data.background,
        holdout=data.holdout,
        folds=data.folds,
        fold=data.fold,
        allow=data.allow,
        require_rights=data.require_rights,
        opt_out_override=data.opt_out_override,
        encoder=data.encoder,
        known_tokens=recipe.adapter.new_tokens,
        mask=data.mask,
        mask_path=loaded.path(data.mask_path) if data.mask_path else None,
        min_holdout=MIN_REFERENCES if recipe.score else 0,
    )


def token_counter(base: BaseFiles) -> Callable[[str], int]:
    """How many tokens the base's CLIP makes of a text, with start and end."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base.tokenizers[0])
    return lambda text: len(tokenizer(text).input_ids)


def find_planned_base(loaded: LoadedRecipe) -> tuple[BaseFiles, NotFound | None]:
    """The recipe's base; a stand-in, and why, for a Hub model that is not on this machine.

    Raises:
        BadInput, NotFound: the base cannot be used, or a local one is not there.
    """
    from styletune.models.load import find_base

    section = loaded.recipe.base
    try:
        return find_base(section.model, section.revision, loaded.file.parent, section.vae), None
    except NotFound as error:
        if section.model.count("/") != 1 or section.model[0] in "./~":
            raise
        return _unseen_base(loaded.recipe), error


def _unseen_base(recipe: Recipe) -> BaseFiles:
    """What a plan takes a model for that is not on this machine."""
    from styletune.models.load import BaseFiles

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


def suite_folder(job: Job) -> Path:
    assert job.recipe.score is not None
    return job.loaded.path(job.recipe.score.suite).parent


def _check_texts(job: Job) -> None:
    """Refuse every prompt of which CLIP would not see the end."""
    count, limit = token_counter(job.base), job.base.family.max_tokens
    texts = {f"preview prompt {i + 1}": p for i, p in enumerate(job.recipe.preview.prompts)}
    if job.suite:
        prompts = [prompt_with_trigger(p, job.trigger) for p in job.suite.prompts]
        texts |= {f"suite prompt {i + 1}": p for i, p in enumerate(prompts)}
        texts["suite negative_prompt"] = job.suite.sampler.negative_prompt
    if job.recipe.adapter.new_tokens:
        _check_new_tokens(job)
    counts = {k: count(t) for k, t in texts.items()}
    long = [f"{k} ({n} tokens)" for k, n in counts.items() if n > limit]
    if long:
        more = f" and {len(long) - 5} more" if len(long) > 5 else ""
        raise BadInput(
            f"longer than CLIP's {limit} tokens: {', '.join(long[:5])}{more}",
            where=str(job.loaded.file),
            fix="shorten them; what comes after would be cut off",
        )


def _check_new_tokens(job: Job) -> None:
    """Refuse new words that a tokenizer knows already or tears apart."""
    from transformers import CLIPTokenizer

    from styletune.adapters.tokens import teach_tokenizer

    for folder in job.base.tokenizers:
        teach_tokenizer(CLIPTokenizer.from_pretrained(folder), job.recipe.adapter.new_tokens)


def prompt_with_trigger(prompt: str, trigger: str) -> str:
    """The words that are generated from; every column gets the same."""
    return f"{trigger}, {prompt}" if trigger and trigger not in prompt else prompt


def _sha256(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def short_hash(*parts: str) -> str:
    """Ten hex digits that stand for all parts."""
    return _sha256(*parts)[:10]


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
        (facts.get("data", {}).get("order"), identity.data_order, "order of the images"),
        (facts.get("base", {}).get("hash"), identity.base_hash, "base model"),
    ):
        if found != wanted:
            details = _recipe_changes(job) if label == "recipe" else ""
            raise Conflict(
                f"holds a run of another {label} ({str(found)[:12]}, this is {wanted[:12]})"
                + details,
                where=str(run.dir),
                fix=FIX_RUN_DIR,
            )


def _recipe_changes(job: Job) -> str:
    """Which keys differ from the recipe in the run folder, in words; empty when it is not there."""
    if not job.run.recipe_file.is_file():
        return ""
    there = _flat(read_toml(job.run.recipe_file))
    here = _flat(job.recipe.model_dump(mode="json", exclude_none=True))
    known = _flat(job.recipe.model_dump(mode="json"))
    decides = set(_flat(training_keys(job.recipe)))
    changed = [
        f"{key} was {there.get(key)!r}, is {here.get(key)!r}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and (key in decides or key not in known)
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


def job_setup(job: Job) -> Setup:
    """What the preflight estimates."""
    seen = entries(job.data)
    largest = max((entry.bucket for entry in seen), key=lambda size: size[0] * size[1])
    captions = len({entry.row.text for entry in seen}) * job.recipe.data.caption_variants
    return setup_of(job.recipe, largest, len(seen), captions)

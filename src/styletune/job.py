"""The main job: plan -> train -> score -> publish, each stage resumable and skipped when done.

Stages hand each other files in the run folder; ``prepare`` refuses bad input before any of
them, and before torch is imported where that is possible.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from styletune import __version__
from styletune.data.load import LoadedData, Row, holdout_rows, load_data, read_square, train_rows
from styletune.errors import BadInput, CheckFailed, Conflict, NotFound
from styletune.recipe import LoadedRecipe, PublishSection, Recipe, recipe_hash, training_hash
from styletune.runs import Run, file_sha256, make_dir, read_json, write_json, write_text
from styletune.scoring.suite import MIN_REFERENCES, Suite, load_suite, prompt_id, suite_hash

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionXLPipeline

    from styletune.sdxl.load import BaseFiles
    from styletune.training.cache import Example
    from styletune.training.checkpoint import Identity

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "numpy")
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


# -- plan -----------------------------------------------------------------------------------------


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
    run_id = _short(training_hash(recipe), data.fingerprint, base.hash)
    run = Run(run_dir or runs_dir / loaded.name / run_id)
    job = Job(loaded, base, data, suite, run, resolution)
    _check_run_folder(job)
    _check_texts(job)
    if suite:
        from styletune.encoders.find import find_clip

        find_clip(suite.encoder.name, _suite_folder(job))
    return job


def _suite_folder(job: Job) -> Path:
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


def _short(*parts: str) -> str:
    import hashlib

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


# -- train ----------------------------------------------------------------------------------------


def train(job: Job) -> bool:
    """Train to the last step; False when that had been done already.

    Raises as ``train_adapter`` and ``build_cache``.
    """
    recipe = job.recipe
    if max(job.run.checkpoint_steps(), default=0) >= recipe.train.steps:
        return False
    import torch

    from styletune.sdxl.adapter import target_modules
    from styletune.sdxl.load import load_pipeline
    from styletune.training.cache import build_cache
    from styletune.training.loop import (
        AdapterSettings,
        LoopSettings,
        make_accelerator,
        train_adapter,
    )

    accelerator = make_accelerator(recipe.train.mixed_precision, recipe.train.tracker, job.run)
    device = str(accelerator.device)
    pipe = load_pipeline(job.base, _dtype(recipe.train.mixed_precision), device)
    if pipe.scheduler.config.prediction_type != "epsilon":
        raise BadInput(
            f"the base predicts {pipe.scheduler.config.prediction_type}, only epsilon is supported",
            where="[base] model",
        )
    modules = target_modules(pipe.unet, recipe.adapter.target)
    begin_run(job)
    rows = train_rows(job.data)
    cache = build_cache(
        pipe, _examples(rows, job.resolution, job.data.background), len(rows), device
    )
    previews = _preview_drawer(job, pipe)
    _offload(pipe)
    if recipe.train.tracker != "none":
        try:
            accelerator.init_trackers(
                recipe.train.tracker_project,
                config=recipe.model_dump(mode="json"),
                init_kwargs={"wandb": {"name": job.loaded.name, "dir": str(job.run.dir)}},
            )
        except Exception as error:
            raise BadInput(
                f"{recipe.train.tracker} does not start: {error}",
                where="[train] tracker",
                fix="wandb login, or WANDB_MODE=offline",
            ) from error
    train_adapter(
        unet=pipe.unet,
        alphas_cumprod=pipe.scheduler.alphas_cumprod.to(torch.float32),
        scaling_factor=pipe.vae.config.scaling_factor,
        cache=cache,
        file_names=[r.file_name for r in rows],
        adapter=AdapterSettings(
            modules, recipe.adapter.rank, recipe.adapter.alpha or float(recipe.adapter.rank)
        ),
        settings=LoopSettings(
            steps=recipe.train.steps,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            snr_gamma=recipe.train.snr_gamma,
            caption_dropout=recipe.train.caption_dropout,
            learning_rate=recipe.optimizer.learning_rate,
            weight_decay=recipe.optimizer.weight_decay,
            schedule=recipe.optimizer.schedule,
            warmup_steps=recipe.optimizer.warmup_steps,
            max_grad_norm=recipe.optimizer.max_grad_norm,
            checkpoint_every=recipe.train.checkpoint_every,
            log_every=recipe.train.log_every,
        ),
        identity=job.identity,
        run=job.run,
        accelerator=accelerator,
        on_checkpoint=previews,
    )
    accelerator.end_training()
    return True


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
        "data": _data_facts(job),
        "versions": _versions(),
        "platform": platform.platform(),
        "device": _device(),
    }
    # The facts come first: a folder that has them is a run, whatever is missing from it.
    write_json(run.facts_file, facts)
    write_text(run.recipe_file, _recipe_text(job.recipe))


def _recipe_text(recipe: Recipe) -> str:
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _data_facts(job: Job) -> dict[str, Any]:
    card = job.data.card
    return {
        "fingerprint": job.data.fingerprint,
        "train": [r.file_name for r in train_rows(job.data)],
        "holdout": [r.file_name for r in holdout_rows(job.data)],
        "trigger": job.trigger,
        "holder": card.holder if card else None,
        "license": card.license if card else None,
        "source": card.source if card else None,
        "consent": card.consent if card else None,
        "palette": list(card.palette) if card else [],
        "warnings": [asdict(w) for w in job.data.warnings],
    }


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"styletune": __version__, "python": platform.python_version(), **found}


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(mixed_precision: str) -> torch.dtype:
    import torch

    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]


def _examples(rows: Sequence[Row], resolution: int, background: str | None) -> Iterator[Example]:
    from styletune.training.cache import Example

    for row in rows:
        crop = read_square(row, resolution, background)
        yield Example(
            row.file_name, row.text, crop.pixels, crop.original_size, crop.crops_coords_top_left,
            crop.target_size,
        )  # fmt: skip


def _offload(pipe: StableDiffusionXLPipeline) -> None:
    """What the loop does not need leaves the card; a step needs the memory more."""
    for module in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.to("cpu")


def _preview_drawer(job: Job, pipe: StableDiffusionXLPipeline) -> Callable[[int], None]:
    from styletune.sampling.sample import Sampler, Shot, draw_shots

    preview = job.recipe.preview
    sampler = Sampler(preview.steps, 5.0, "", job.resolution)

    def draw(step: int) -> None:
        if not preview.prompts:
            return
        device = pipe.unet.device
        pipe.unet.eval()
        pipe.to(device)
        shots = [
            Shot(prompt, preview.seed + i, job.run.previews_dir / f"step-{step:06d}-{i:02d}.png")
            for i, prompt in enumerate(preview.prompts)
        ]
        origin = {**_origin(job), "adapter": job.loaded.name, "step": step, "strength": 1.0}
        draw_shots(pipe, shots, sampler, origin, batch_size=4, title=f"preview {step}")
        _offload(pipe)

    return draw


def _origin(job: Job) -> dict[str, object]:
    from styletune.registry.card import public_base

    return {
        "base_model": public_base(job.base.model),
        "base_hash": job.base.hash,
        "training_hash": job.identity.recipe_hash,
        "styletune": __version__,
    }


# -- score ----------------------------------------------------------------------------------------


def score(job: Job) -> tuple[dict[str, Any], bool]:
    """Sample, measure, choose, gate and report; (summary, False) when it was current already.

    Raises:
        BadInput: the recipe has no [score].
        NotFound: there is no checkpoint yet.
    """
    suite, section, run = job.suite, job.recipe.score, job.run
    if suite is None or section is None:
        raise BadInput("the recipe has no [score]", where=str(job.loaded.file), fix="add one")
    steps = run.checkpoint_steps()
    if not steps:
        raise NotFound("no checkpoint to score", where=str(run.dir), fix="styletune train first")
    from styletune.training.checkpoint import check_receipt

    for done in steps:
        check_receipt(run, done, job.identity)
    inputs = _score_inputs(job)
    outputs = (run.summary_file, run.scores_file, run.report_file, run.picture_file)
    if all(f.is_file() for f in outputs):
        summary: dict[str, Any] = read_json(run.summary_file)
        if summary.get("inputs") == inputs:
            return summary, False
    from styletune.encoders.clip import encode_images, encode_texts, load_clip
    from styletune.scoring.report import write_report
    from styletune.scoring.score import Column, score_columns, write_scores

    encoder = load_clip(suite.encoder.name, _suite_folder(job), _device())
    references = _write_references(job, run.samples_dir(suite_hash(suite), "references"))
    columns = []
    for name, step, files in _sample_columns(job, suite, steps, section.batch_size):
        features = encode_images(encoder, files, title=f"encode {name}")
        columns.append(Column(name, step, 0.0 if step is None else 1.0, files, features))
    reference_features = encode_images(encoder, references, title="references")
    scores = score_columns(
        suite=suite,
        columns=columns,
        text_features=encode_texts(encoder, suite.prompts),
        references=references,
        reference_features=reference_features,
        encoder_id=encoder.id,
    )
    scores.summary["inputs"] = inputs
    facts = {**read_json(run.facts_file), "data": _data_facts(job)}
    write_report(
        run.report_file,
        title=job.loaded.name,
        suite=suite,
        scores=scores,
        columns=columns,
        references=references,
        brand_palette=facts["data"]["palette"],
        facts=_report_facts(facts),
    )
    _draw_picture(job, suite, columns, references, scores.summary["chosen"]["checkpoint"])
    # Last, because a summary says that the report beside it is of the same scores.
    write_scores(scores, run.scores_file, run.summary_file)
    return scores.summary, True


def _score_inputs(job: Job) -> dict[str, Any]:
    """Everything that a score depends on; another value of it makes a summary stale."""
    assert job.suite is not None
    run = job.run
    return {
        "suite": job.suite.model_dump(mode="json"),
        "base": job.base.hash,
        "data": job.data.fingerprint,
        "trigger": job.trigger,
        "palette": _data_facts(job)["palette"],
        "adapters": {str(s): file_sha256(run.adapter_file(s)) for s in run.checkpoint_steps()},
        "styletune": __version__,
    }


def _report_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """The provenance footer."""
    data, base = facts["data"], facts["base"]
    return {
        "recipe": f"{facts['recipe']} {facts['recipe_hash'][:12]}",
        "base model": f"{base['model']} {base['hash'][:12]}",
        "data": f"{len(data['train'])} images trained on, {len(data['holdout'])} held out, "
        f"{data['fingerprint'][:12]}",
        "licence of the images": data["license"] or "not stated",
        "holder": data["holder"] or "not stated",
        "seed": str(facts["seed"]),
        "versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
        "device": facts["device"],
    }


def _write_references(job: Job, folder: Path) -> list[Path]:
    """Held-out images through the same decode and crop as training, as PNG."""
    from PIL import Image

    from styletune.runs import atomic_write

    files = []
    for i, row in enumerate(holdout_rows(job.data)):
        file = folder / f"{i:04d}-{row.pixel_hash[:12]}.png"
        if not file.is_file():
            crop = read_square(row, job.resolution, job.data.background)
            with atomic_write(file) as stream:
                Image.fromarray(crop.pixels).save(stream, format="PNG")
        files.append(file)
    return files


def prompt_with_trigger(prompt: str, trigger: str) -> str:
    """The words that are generated from; every column gets the same."""
    return f"{trigger}, {prompt}" if trigger and trigger not in prompt else prompt


def _sample_columns(
    job: Job, suite: Suite, steps: Sequence[int], batch_size: int
) -> Iterator[tuple[str, int | None, list[Path]]]:
    """The base's images, then every checkpoint's, with the same prompts and seeds."""
    from styletune.sampling.sample import Sampler, Shot, draw_shots
    from styletune.sdxl.adapter import load_adapter, merged
    from styletune.sdxl.load import load_pipeline

    pipe = load_pipeline(job.base, _dtype(job.recipe.train.mixed_precision), _device())
    sampler = Sampler(
        suite.sampler.steps, suite.sampler.guidance_scale, suite.sampler.negative_prompt,
        job.resolution,
    )  # fmt: skip

    def shots(column: str) -> list[Shot]:
        folder = job.run.samples_dir(suite_hash(suite), column)
        return [
            Shot(prompt_with_trigger(p, job.trigger), s, folder / f"{prompt_id(i)}-{s}.png")
            for i, p in enumerate(suite.prompts)
            for s in suite.seeds
        ]

    base_origin = {**_origin(job), "adapter": None, "strength": 0.0}
    draw_shots(pipe, shots("base"), sampler, base_origin, batch_size=batch_size, title="base")
    yield "base", None, [s.file for s in shots("base")]
    for step in steps:
        name = f"step-{step:06d}"
        tensors, spec = load_adapter(job.run.adapter_file(step))
        origin = {
            **_origin(job), "adapter": job.loaded.name, "step": step, "strength": 1.0,
            "adapter_sha256": file_sha256(job.run.adapter_file(step)),
        }  # fmt: skip
        with merged(pipe.unet, tensors, spec, 1.0):
            draw_shots(pipe, shots(name), sampler, origin, batch_size=batch_size, title=name)
        yield name, step, [s.file for s in shots(name)]


def _draw_picture(
    job: Job, suite: Suite, columns: Sequence[Any], references: Sequence[Path], chosen: str
) -> None:
    """``picture.png``: base, chosen checkpoint and held-out references, one prompt a column."""
    from styletune.scoring.figures import draw_grid

    every = len(suite.seeds)
    by_name = {c.name: c.images[::every][:8] for c in columns}
    rows = [
        ("base model", by_name["base"]),
        (f"{job.loaded.name}, {chosen}", by_name[chosen]),
        ("held-out references", list(references[:8])),
    ]
    draw_grid(job.run.picture_file, rows)


def gate_passed(summary: Mapping[str, Any]) -> bool:
    """Whether the chosen checkpoint passed all gates."""
    return all(g["verdict"] == "pass" for g in summary["gates"])


# -- publish --------------------------------------------------------------------------------------


def publish(job: Job, registry: str, who: str) -> dict[str, str]:
    """Publish the chosen checkpoint; (name, version, digest).

    Raises:
        BadInput: the recipe has no [publish].
        NotFound: it has not been scored.
        CheckFailed: it did not pass its gates.
        Conflict: that version exists.
    """
    section, run = job.recipe.publish, job.run
    if section is None:
        raise BadInput("the recipe has no [publish]", where=str(job.loaded.file), fix="add one")
    if not run.summary_file.is_file():
        raise NotFound("not scored yet", where=str(run.dir), fix="styletune score first")
    summary = read_json(run.summary_file)
    if job.suite is None or summary.get("inputs") != _score_inputs(job):
        raise CheckFailed(
            "the scores are of another suite, trigger or set of checkpoints",
            where=str(run.summary_file),
            fix="styletune score first",
        )
    refuse_unless_passed(summary, run.report_file)
    from styletune.registry.card import public_base
    from styletune.registry.manifest import AdapterEntry, BaseEntry, GateEntry
    from styletune.registry.store import open_store
    from styletune.registry.versions import publish_version

    step = int(summary["chosen"]["checkpoint"].removeprefix("step-"))
    files, rank, alpha = _package(job, section, summary, step)
    published = publish_version(
        open_store(registry, create=True),
        name=section.name,
        version=section.version,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        description=section.description,
        license=section.license,
        base=BaseEntry(
            model=public_base(job.base.model),
            hash=job.base.hash,
            revision=job.base.revision,
            resolution=job.resolution,
        ),
        adapter=AdapterEntry(
            strength=summary["chosen"]["strength"], rank=rank, alpha=alpha, trigger=job.trigger
        ),
        recipe_hash=recipe_hash(job.recipe),
        data_fingerprint=job.data.fingerprint,
        gates=[GateEntry(**{k: g[k] for k in GateEntry.model_fields}) for g in summary["gates"]],
        files=files,
        who=who,
        why=f"chosen by {job.loaded.name}: {summary['chosen']['reason']}",
    )
    return {"name": published.name, "version": published.version, "digest": published.digest}


def refuse_unless_passed(summary: Mapping[str, Any], report: Path) -> None:
    """Raise CheckFailed that names every gate the chosen checkpoint did not pass."""
    failed = [g for g in summary["gates"] if g["verdict"] != "pass"]
    if failed:
        lines = "; ".join(f"{g['name']} {g['verdict']}: {g['explanation']}" for g in failed)
        raise CheckFailed(f"the gate refuses {summary['chosen']['checkpoint']}: {lines}",
                          where=str(report), fix="look at the report; train longer, lower the "
                          "learning rate, or add images")  # fmt: skip


def _package(
    job: Job, section: PublishSection, summary: Mapping[str, Any], step: int
) -> tuple[dict[str, bytes], int, float]:
    from styletune.registry.card import public_base
    from styletune.registry.package import DIFFUSERS_WEIGHTS, package_files, webui_stem
    from styletune.sampling.sample import read_settings
    from styletune.sdxl.adapter import load_adapter
    from styletune.sdxl.export import check_exports, diffusers_file, kohya_file, kohya_header

    run, suite = job.run, job.suite
    assert suite is not None
    tensors, spec = load_adapter(run.adapter_file(step))
    stem = webui_stem(section.name, section.version)
    header = kohya_header(
        title=f"{section.name} {section.version}", output_name=stem, spec=spec,
        base_model=public_base(job.base.model), resolution=job.resolution,
        license_id=section.license, description=section.description, trigger=job.trigger,
        strength=summary["chosen"]["strength"],
    )  # fmt: skip
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, header)
    check_exports(tensors, spec, diffusers, kohya)
    folder = run.samples_dir(suite_hash(suite), summary["chosen"]["checkpoint"])
    shown = [
        folder / f"{prompt_id(i)}-{suite.seeds[0]}.png" for i in range(min(8, len(suite.prompts)))
    ]
    prompts = [{"file": f.name, **(read_settings(f) or {})} for f in shown]
    facts = {**read_json(run.facts_file), "data": _data_facts(job)}
    facts["recipe_hash"] = recipe_hash(job.recipe)
    files = package_files(
        name=section.name,
        version=section.version,
        description=section.description,
        license=section.license,
        holder=facts["data"]["holder"] or "not stated",
        trigger=job.trigger,
        weights={DIFFUSERS_WEIGHTS: diffusers, f"webui/{stem}.safetensors": kohya},
        summary={k: v for k, v in summary.items() if k != "inputs"},
        report_html=run.report_file.read_bytes(),
        run_facts=facts,
        recipe_text=_public_recipe(job.recipe),
        previews={f.name: f.read_bytes() for f in shown},
        prompts=prompts,
    )
    return files, spec.rank, spec.alpha


def _public_recipe(recipe: Recipe) -> str:
    """The recipe as others may see it: folders are reduced to their names."""
    from styletune.registry.card import public_base

    data = recipe.data.model_copy(update={"path": Path(recipe.data.path).name})
    base = recipe.base.model_copy(update={"model": public_base(recipe.base.model)})
    return _recipe_text(recipe.model_copy(update={"data": data, "base": base}))


# -- the whole job, and what follows it -----------------------------------------------------------


def run_job(job: Job, *, registry: str | None, who: str) -> dict[str, Any]:
    """Plan is done: train, score, and publish when a registry is given and the gate passes.

    Returns the ``run --json`` document: run_dir, chosen, gate, published, seconds; and the
    summary.
    """
    seconds: dict[str, float] = {}

    def timed(stage: str, started: float) -> None:
        seconds[stage] = round(time.monotonic() - started, 1)

    started = time.monotonic()
    train(job)
    timed("train", started)
    summary: dict[str, Any] | None = None
    if job.suite is not None:
        started = time.monotonic()
        summary, _ = score(job)
        timed("score", started)
    published = None
    if registry is not None and (summary is None or gate_passed(summary)):
        started = time.monotonic()
        published = publish(job, registry, who)
        timed("publish", started)
    return {
        "run_dir": str(job.run.dir),
        "chosen": summary["chosen"] if summary else None,
        "gate": ("pass" if gate_passed(summary) else "fail") if summary else None,
        "published": published,
        "seconds": seconds,
        "summary": summary,
    }


def check_publishable(job: Job, registry: str) -> None:
    """Refuse before training what could not be published after it.

    Raises:
        BadInput: the recipe has no [publish] or no [score].
        Conflict: that version is published already, and this run is not finished.
    """
    for name, section in (("publish", job.recipe.publish), ("score", job.recipe.score)):
        if section is None:
            raise BadInput(f"the recipe has no [{name}]", where=str(job.loaded.file), fix="add one")
    from styletune.registry.store import open_store
    from styletune.registry.versions import list_versions

    section = job.recipe.publish
    finished = max(job.run.checkpoint_steps(), default=0) >= job.recipe.train.steps
    try:
        store = open_store(registry, create=False)
    except NotFound:
        return  # it is made when something is published
    if not finished and section and section.version in list_versions(store, section.name):
        raise Conflict(
            f"{section.name} {section.version} is published already",
            where="[publish] version",
            fix="raise it, or leave out --publish",
        )


def generate(
    *, registry: str, spec_text: str, pulled_dir: Path, out_dir: Path, prompts: Sequence[str],
    seeds: Sequence[int], strength: float | None, steps: int, guidance_scale: float,
    base_model: str | None, batch_size: int,
) -> list[Path]:  # fmt: skip
    """Pull a version, load its published file as any consumer would, and draw images with it.

    A file's name holds a hash of its settings, so other settings never overwrite it.

    Raises:
        NotFound, IntegrityError: of the registry, or of the base model.
        Conflict: the base model on this machine is not the one it was trained on.
    """
    from styletune.registry.package import DIFFUSERS_WEIGHTS
    from styletune.registry.pull import pull
    from styletune.registry.resolve import parse_spec
    from styletune.registry.store import open_store

    pulled = pull(open_store(registry, create=False), parse_spec(spec_text), pulled_dir)
    manifest = pulled.manifest
    from styletune.sampling.sample import Sampler, Shot, draw_shots
    from styletune.sdxl.load import find_base, load_pipeline

    base = find_base(base_model or manifest.base.model, manifest.base.revision, Path.cwd())
    if base.hash != manifest.base.hash:
        raise Conflict(
            f"was trained on other weights than {base.model} ({manifest.base.hash[:12]}, "
            f"here are {base.hash[:12]})",
            where=f"{manifest.name}@{manifest.version}",
            fix="give the right base model with --base",
        )
    pipe = load_pipeline(base, _dtype("bf16" if _device() == "cuda" else "no"), _device())
    weights = pulled.dir / DIFFUSERS_WEIGHTS
    pipe.load_lora_weights(str(weights.parent), weight_name=weights.name, adapter_name="style")
    value = manifest.adapter.strength if strength is None else strength
    pipe.set_adapters("style", value)
    origin = {
        "base_model": manifest.base.model, "base_hash": base.hash, "adapter": manifest.name,
        "version": manifest.version, "digest": pulled.digest, "strength": value,
        "license": manifest.license, "styletune": __version__,
    }  # fmt: skip
    sampler = Sampler(steps, guidance_scale, "", manifest.base.resolution or base.resolution)
    stem = f"{manifest.name}-{manifest.version}"
    shots = []
    for prompt in prompts:
        words = prompt_with_trigger(prompt, manifest.adapter.trigger)
        mark = _short(pulled.digest, words, f"{value:g}", str(sampler))[:8]
        shots += [Shot(words, s, out_dir / f"{stem}-{mark}-{s}.png") for s in seeds]
    draw_shots(pipe, shots, sampler, origin, batch_size=batch_size, title="generate")
    return [s.file for s in shots]

"""The publishing stage: from a scored run that passed to an immutable version."""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from styletune.data.findings import said
from styletune.data.licenses import license_problem
from styletune.data.load import train_rows
from styletune.data.rights import LICENSE_FIX, holder_names, publishable_problem
from styletune.errors import BadInput, CheckFailed, Conflict, NotFound, RecipeError
from styletune.files import read_json
from styletune.job.facts import data_facts, recipe_text
from styletune.job.prepare import Job
from styletune.job.score import refuse_unless_passed, score_inputs
from styletune.models.names import base_words, public_base
from styletune.models.schedule import Prediction, resolve_prediction_type
from styletune.recipe import PublishSection, Recipe, recipe_hash
from styletune.scoring.suite import prompt_id, suite_hash

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel
    from torch import Tensor

    from styletune.adapters.file import AdapterSpec


def check_publishable(job: Job, registry: str) -> None:
    """Refuse before training what could not be published after it.

    Raises:
        BadInput: the recipe has no [publish] or no [score].
        Conflict: that version is published already, and this run is not finished.
    """
    for name, section in (("publish", job.recipe.publish), ("score", job.recipe.score)):
        if section is None:
            raise BadInput(f"the recipe has no [{name}]", where=str(job.loaded.file), fix="add one")
    _require_rights(job)
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


def _require_rights(job: Job) -> None:
    """Refuse to hand over what nobody is known to have allowed.

    Raises:
        CheckFailed: an image lacks rights, or its licence allows no adaptations.
        RecipeError: the adapter's own licence is none.
    """
    section, checked = job.recipe.publish, job.data.checked
    assert section is not None
    if wrong := license_problem(section.license):
        raise RecipeError(wrong, where="[publish] license", fix=LICENSE_FIX)
    fault = publishable_problem([i for i in checked.items if i.file_name in checked.facts])
    if fault is not None:
        raise CheckFailed(f"cannot be published: {said(fault)}", where="rights", fix=fault.fix)


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
    if job.suite is None or summary.get("inputs") != score_inputs(job):
        raise CheckFailed(
            "the scores are of another suite, trigger or set of checkpoints",
            where=str(run.summary_file),
            fix="styletune score first",
        )
    refuse_unless_passed(summary, run.report_file)
    _require_rights(job)
    from styletune.registry.manifest import AdapterEntry, BaseEntry, GateEntry
    from styletune.registry.store import open_store
    from styletune.registry.versions import publish_version

    step = int(summary["chosen"]["checkpoint"].removeprefix("step-"))
    package = build_package(job, section, summary, step)
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
            vae=public_base(job.recipe.base.vae) if job.recipe.base.vae else None,
        ),
        adapter=AdapterEntry(
            strength=summary["chosen"]["strength"],
            rank=package.spec.rank,
            alpha=package.spec.alpha,
            trigger=job.trigger,
            tokens=package.spec.tokens,
            prediction_type=package.prediction_type,
            zero_terminal_snr=job.recipe.train.zero_terminal_snr,
        ),
        recipe_hash=recipe_hash(job.recipe),
        data_fingerprint=job.data.fingerprint,
        gates=[GateEntry(**{k: g[k] for k in GateEntry.model_fields}) for g in summary["gates"]],
        files=package.files,
        who=who,
        why=f"chosen by {job.loaded.name}: {summary['chosen']['reason']}",
    )
    return {"name": published.name, "version": published.version, "digest": published.digest}


@dataclass(frozen=True, slots=True)
class Package:
    """A version's files, and what its weights mean."""

    files: dict[str, bytes]
    spec: AdapterSpec
    prediction_type: Prediction


def build_package(
    job: Job, section: PublishSection, summary: Mapping[str, Any], step: int
) -> Package:
    """The files of a version, both exports compared with what was trained.

    The same run gives the same bytes: the date of publishing stands in the manifest alone.
    """
    from styletune.adapters.export import (
        check_exports,
        diffusers_file,
        embeddings_file,
        kohya_file,
    )
    from styletune.adapters.file import load_adapter
    from styletune.adapters.header import FileLabels, TrainedOn, kohya_header
    from styletune.registry.package import (
        DIFFUSERS_EMBEDDINGS,
        DIFFUSERS_WEIGHTS,
        package_files,
        webui_stem,
    )
    from styletune.sampling.png import read_settings

    run, suite = job.run, job.suite
    assert suite is not None
    tensors, spec = load_adapter(run.adapter_file(step))
    if section.plain_lora_rank is not None:
        tensors, spec = _plain(job, tensors, spec, section.plain_lora_rank)
    prediction = _prediction_type(job)
    folder = run.samples_dir(suite_hash(suite), summary["chosen"]["checkpoint"])
    shown = [
        folder / f"{prompt_id(i)}-{suite.seeds[0]}.png" for i in range(min(8, len(suite.prompts)))
    ]
    stem = webui_stem(section.name, section.version)
    labels = FileLabels(
        title=f"{section.name} {section.version}",
        output_name=stem,
        license=section.license,
        description=section.description,
        trigger=job.trigger,
        author=holder_names(data_facts(job)["rights"]),
        tags=f"style, {section.name}",
        thumbnail=_thumbnail(shown[0]),
    )
    base, family = public_base(job.base.model), job.base.family
    trained_on = TrainedOn(
        base_model=base,
        words=base_words(base, family),
        resolution=job.resolution,
        prediction_type=prediction,
        num_train_images=len(train_rows(job.data)),
    )
    header = kohya_header(spec, summary["chosen"]["strength"], labels, trained_on)
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, header, family)
    check_exports(tensors, spec, diffusers, kohya, family)
    weights = {DIFFUSERS_WEIGHTS: diffusers, f"webui/{stem}.safetensors": kohya}
    if spec.tokens:
        weights[DIFFUSERS_EMBEDDINGS] = embeddings_file(tensors, family)
    prompts = [{"file": f.name, **(read_settings(f) or {})} for f in shown]
    facts = {**read_json(run.facts_file), "data": data_facts(job)}
    facts["recipe_hash"] = recipe_hash(job.recipe)
    files = package_files(
        name=section.name,
        version=section.version,
        description=section.description,
        license=section.license,
        holder=holder_names(facts["data"]["rights"]) or "not stated",
        trigger=job.trigger,
        weights=weights,
        summary={k: v for k, v in summary.items() if k != "inputs"},
        report_html=run.report_file.read_bytes(),
        run_facts=facts,
        recipe_text=_public_recipe(job.recipe),
        previews={f.name: f.read_bytes() for f in shown},
        prompts=prompts,
        tokens=spec.tokens,
    )
    return Package(files, spec, prediction)


def _thumbnail(file: Path) -> str:
    """The picture at 256 px as JPEG in base64, without its settings, some 20 kB."""
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((256, 256))
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()


# More than this share of an update lost in the conversion is another adapter than was scored.
MAX_PLAIN_ERROR = 0.05


def _plain(
    job: Job, tensors: dict[str, Tensor], spec: AdapterSpec, rank: int
) -> tuple[dict[str, Tensor], AdapterSpec]:
    """The nearest plain LoRA. Raises CheckFailed when it is not near."""
    import torch

    from styletune.adapters.export import to_plain_lora
    from styletune.sampling.session import base_weight, open_pipeline

    with open_pipeline(job.base, torch.float32, "cpu") as pipe:
        plain, plain_spec, error = to_plain_lora(
            tensors, spec, rank, lambda module: base_weight(pipe, module)
        )
    if error > MAX_PLAIN_ERROR:
        raise CheckFailed(
            f"a plain LoRA of rank {rank} misses {error:.0%} of the {spec.kind} update; "
            f"{MAX_PLAIN_ERROR:.0%} is the most",
            where="[publish] plain_lora_rank",
            fix="raise it",
        )
    return plain, plain_spec


def _prediction_type(job: Job) -> Prediction:
    """What the adapted UNet predicts, from the recipe or the base's scheduler."""
    from styletune.models.load import scheduler_config

    train = job.recipe.train
    base = str(scheduler_config(job.base).get("prediction_type", "epsilon"))
    return resolve_prediction_type(train.prediction_type, base, train.zero_terminal_snr)


def _public_recipe(recipe: Recipe) -> str:
    """The recipe as others may see it: folders are reduced to their names."""

    def public(place: str | None) -> str | None:
        return public_base(place.removeprefix("local-dir:")) if place else None

    data, sources = recipe.data, recipe.data.sources
    updates: dict[str, BaseModel | None] = {
        "data": data.model_copy(
            update={
                "path": public(data.path),
                "mask_path": public(data.mask_path),
                "encoder": public(data.encoder),
                "sources": tuple(s.model_copy(update={"path": public(s.path)}) for s in sources),
            }
        ),
        "base": recipe.base.model_copy(
            update={"model": public(recipe.base.model), "vae": public(recipe.base.vae)}
        ),
        "adapter": recipe.adapter.model_copy(
            update={"start_from": public(recipe.adapter.start_from)}
        ),
    }
    if recipe.score:
        updates["score"] = recipe.score.model_copy(update={"suite": public(recipe.score.suite)})
    return recipe_text(recipe.model_copy(update=updates))

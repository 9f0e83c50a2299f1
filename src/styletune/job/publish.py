"""The publishing stage: from a scored run that passed to an immutable version."""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.findings import finding_line
from styletune.data.licenses import license_problem
from styletune.data.rights import LICENSE_FIX, publishable_problem
from styletune.errors import BadInput, CheckFailed, Conflict, NotFound, RecipeError
from styletune.files import require_writable
from styletune.job.facts import data_facts, is_scored_as, public_recipe, score_inputs
from styletune.job.job import Job
from styletune.job.trainable import check_resumable
from styletune.models.base import BaseFiles
from styletune.models.names import base_words
from styletune.recipe import LoadedRecipe, PublishSection, recipe_hash
from styletune.runs import Run
from styletune.runs.documents import read_facts
from styletune.runs.summary import Summary, read_summary, refuse_unless_passed
from styletune.scoring.suite import Suite, sample_names, suite_hash

if TYPE_CHECKING:
    from torch import Tensor

    from styletune.adapters.file import AdapterSpec
    from styletune.data.checked import Checked
    from styletune.models.family import Family
    from styletune.registry.release import Preview, Release
    from styletune.registry.versions import Published

MAX_PREVIEWS = 8


def check_publishable(
    loaded: LoadedRecipe, checked: Checked, registry: str, *, finished: bool
) -> None:
    """Refuse before training what could not be published after it.

    Args:
        loaded: the recipe.
        checked: its images.
        registry: folder or bucket URL.
        finished: the run has been trained already.

    Raises:
        BadInput: the recipe has no [publish] or no [score].
        CheckFailed: an image lacks rights, or its license allows no adaptations.
        Conflict: that version is published already, and this run is not finished.
        OutputError: the registry's folder cannot be written.
    """
    section = loaded.recipe.publish
    for name, value in (("publish", section), ("score", loaded.recipe.score)):
        if value is None:
            raise BadInput(f"the recipe has no [{name}]", where=str(loaded.file), fix="add one")
    assert section is not None
    _require_rights(section, checked)
    from styletune.registry.store import open_store
    from styletune.registry.versions import list_versions

    if "://" not in registry:
        require_writable(Path(registry).expanduser(), "choose another --registry")
    try:
        store = open_store(registry, create=False)
    except NotFound:
        return  # publishing makes it
    if not finished and section.version in list_versions(store, section.name):
        raise Conflict(
            f"{section.name} {section.version} is published already",
            where="[publish] version",
            fix="raise it, or leave out --publish",
        )


def _require_rights(section: PublishSection, checked: Checked) -> None:
    """Refuse to hand over what nobody is known to have allowed.

    Raises:
        CheckFailed: an image lacks rights, or its license allows no adaptations.
        RecipeError: the adapter's own license is none.
    """
    if wrong := license_problem(section.license):
        raise RecipeError(wrong, where="[publish] license", fix=LICENSE_FIX)
    fault = publishable_problem([i for i in checked.items if i.file_name in checked.facts])
    if fault is not None:
        raise CheckFailed(
            f"cannot be published: {finding_line(fault)}", where="rights", fix=fault.fix
        )


def publish(job: Job, registry: str, who: str) -> Published:
    """Publish the chosen checkpoint.

    Raises:
        BadInput: the recipe has no [publish].
        NotFound: it has not been scored.
        CheckFailed: it did not pass its gates.
        Conflict: that version exists.
        IntegrityError: a checkpoint is damaged.
    """
    section, run = _publish_section(job.loaded), job.run
    if not run.summary_file.is_file():
        raise NotFound("not scored yet", where=str(run.dir), fix="styletune score first")
    check_resumable(run, job.identity)
    summary = read_summary(run)
    suite = job.suite
    if suite is None or not is_scored_as(
        summary, score_inputs(run, suite, job.base.hash, job.data)
    ):
        raise CheckFailed(
            "the scores are of another suite, trigger or set of checkpoints",
            where=str(run.summary_file),
            fix="styletune score first",
        )
    refuse_unless_passed(summary, run.report_file)
    _require_rights(section, job.data.checked)
    from styletune.registry.store import open_store
    from styletune.registry.versions import publish_version

    packed = package(job, summary)
    return publish_version(
        open_store(registry, create=True),
        packed.release,
        packed.files,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        who=who,
        why=f"chosen by {job.loaded.name}: {summary.chosen.reason}",
    )


@dataclass(frozen=True, slots=True)
class Package:
    """A version's files, what it declares, and what its weights mean."""

    files: dict[str, bytes]
    release: Release
    spec: AdapterSpec


def package(job: Job, summary: Summary) -> Package:
    """The files of a version, both exports compared with what was trained; gates are not asked.

    The same run gives the same bytes: the date of publishing stands in the manifest alone.

    Raises:
        BadInput, NotFound: no [publish], no suite, or no checkpoint of a step is chosen.
        CheckFailed: the nearest plain LoRA is not near.
        IntegrityError: an export holds another update than was trained.
    """
    from styletune.adapters.file import load_adapter
    from styletune.registry.manifest import AdapterEntry, BaseEntry, GateEntry
    from styletune.registry.package import Evidence, package_files
    from styletune.registry.release import Release

    recipe, section, base = job.recipe, _publish_section(job.loaded), job.base
    run, suite, step = job.run, job.suite, summary.chosen.step
    if suite is None or step is None:
        raise NotFound("no checkpoint is chosen", where=str(run.dir), fix="styletune score first")
    tensors, spec = load_adapter(run.adapter_file(step))
    if section.plain_lora_rank is not None:
        tensors, spec = _plain(base, tensors, spec, section.plain_lora_rank)
    data = data_facts(job.data, recipe.data.opt_out_override)
    release = Release(
        name=section.name,
        version=section.version,
        description=section.description,
        license=section.license,
        holder=data.rights.holder_names(),
        base=BaseEntry(
            model=base.public_name,
            hash=base.hash,
            revision=base.revision,
            resolution=job.resolution,
            vae=base.vae.public_name if base.vae else None,
        ),
        adapter=AdapterEntry(
            strength=summary.chosen.strength,
            rank=spec.rank,
            alpha=spec.alpha,
            trigger=job.trigger,
            tokens=spec.tokens,
            prediction_type=job.prediction_type,
            zero_terminal_snr=recipe.train.zero_terminal_snr,
        ),
        recipe_hash=recipe_hash(recipe),
        data_fingerprint=job.data.fingerprint,
        gates=tuple(
            GateEntry.model_validate(gate.model_dump(exclude={"explanation"}))
            for gate in summary.gates
        ),
    )
    previews = _previews(run, summary, suite.confirmation or suite)
    evidence = Evidence(
        family=base.family,
        facts=read_facts(run).model_copy(update={"data": data}),
        summary=summary,
        recipe_text=public_recipe(recipe, base, job.data),
        report_html=run.report_file.read_bytes(),
    )
    picture = previews[0].content
    weights = _weights(release, tensors, spec, base.family, len(data.train), picture)
    return Package(package_files(release, evidence, weights, previews), release, spec)


def _publish_section(loaded: LoadedRecipe) -> PublishSection:
    """The recipe's [publish]. Raises BadInput."""
    section = loaded.recipe.publish
    if section is None:
        raise BadInput("the recipe has no [publish]", where=str(loaded.file), fix="add one")
    return section


def _weights(
    release: Release,
    tensors: dict[str, Tensor],
    spec: AdapterSpec,
    family: Family,
    num_train_images: int,
    picture: bytes,
) -> dict[str, bytes]:
    """Both exports, read back and compared, and the embeddings of new words."""
    from styletune.adapters.export import (
        check_exports,
        diffusers_file,
        embeddings_file,
        kohya_file,
    )
    from styletune.adapters.header import FileLabels, TrainedOn, kohya_header
    from styletune.registry.package import DIFFUSERS_EMBEDDINGS, DIFFUSERS_WEIGHTS

    labels = FileLabels(
        title=f"{release.name} {release.version}",
        output_name=release.stem,
        license=release.license,
        description=release.description,
        trigger=release.adapter.trigger,
        author=release.holder,
        tags=f"style, {release.name}",
        thumbnail=_thumbnail(picture),
    )
    trained_on = TrainedOn(
        base_model=release.base.model,
        words=base_words(release.base.model, family),
        resolution=release.base.resolution or 0,
        prediction_type=release.adapter.prediction_type,
        num_train_images=num_train_images,
    )
    header = kohya_header(spec, release.adapter.strength, labels, trained_on)
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, header, family)
    check_exports(tensors, spec, diffusers, kohya, family)
    weights = {DIFFUSERS_WEIGHTS: diffusers, f"webui/{release.stem}.safetensors": kohya}
    if spec.tokens:
        weights[DIFFUSERS_EMBEDDINGS] = embeddings_file(tensors, family)
    return weights


def _previews(run: Run, summary: Summary, suite: Suite) -> list[Preview]:
    """The first prompts' images, with the first seed, and the settings embedded in them."""
    from styletune.registry.release import Preview
    from styletune.sampling.png import read_settings

    chosen = summary.chosen
    folder = run.samples_dir(suite_hash(suite), chosen.checkpoint, chosen.strength)
    files = [folder / name for name in sample_names(suite)[:: len(suite.seeds)][:MAX_PREVIEWS]]
    return [Preview(read_settings(f) or {}, f.name, f.read_bytes()) for f in files]


def _thumbnail(picture: bytes) -> str:
    """The picture at 256 px as JPEG in base64, without its settings, some 20 kB."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        small = image.convert("RGB")
    small.thumbnail((256, 256))
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()


# More than this share of an update lost in the conversion is another adapter than was scored.
MAX_PLAIN_ERROR = 0.05


def _plain(
    base: BaseFiles, tensors: dict[str, Tensor], spec: AdapterSpec, rank: int
) -> tuple[dict[str, Tensor], AdapterSpec]:
    """The nearest plain LoRA. Raises CheckFailed when it is not near."""
    import torch

    from styletune.adapters.export import to_plain_lora
    from styletune.adapters.updates import NEEDS_BASE
    from styletune.sampling.session import base_weight, open_pipeline

    with contextlib.ExitStack() as loaded:
        weight_of = None
        # The other kinds' updates do not depend on the base, which takes 14 GB for SDXL.
        if spec.kind in NEEDS_BASE:
            pipe = loaded.enter_context(open_pipeline(base, torch.float32, "cpu"))
            weight_of = partial(base_weight, pipe)
        plain, plain_spec, error = to_plain_lora(tensors, spec, rank, weight_of)
    if error > MAX_PLAIN_ERROR:
        raise CheckFailed(
            f"a plain LoRA of rank {rank} misses {error:.0%} of the {spec.kind} update; "
            f"{MAX_PLAIN_ERROR:.0%} is the most",
            where="[publish] plain_lora_rank",
            fix="raise it",
        )
    return plain, plain_spec

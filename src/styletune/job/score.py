"""The scoring stage: sample base and checkpoints, measure, choose, gate, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.data.checked import LoadedData, holdout_rows
from styletune.data.read import read_square
from styletune.errors import BadInput, NotFound
from styletune.files import file_sha256
from styletune.job.facts import data_facts, origin_facts, score_inputs
from styletune.job.job import Job
from styletune.job.trainable import check_resumable
from styletune.places import device_name
from styletune.planning.preflight import configs_of, require_room
from styletune.runs import Run
from styletune.runs.documents import DataFacts, read_facts, write_facts
from styletune.runs.scores import write_scores
from styletune.runs.summary import (
    Summary,
    read_summary,
    write_summary,
)
from styletune.sampling.prompts import prompt_with_trigger
from styletune.scoring.suite import Suite, prompt_id, suite_hash

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from styletune.sampling.session import TrainedAs
    from styletune.sampling.shots import Sampler, TextShot
    from styletune.scoring.score import Scores


@dataclass(frozen=True, slots=True)
class Sampled:
    """A column of the scores before its images are drawn; the base has no ``step`` and no file."""

    name: str
    step: int | None
    adapter: Path | None
    shots: tuple[TextShot, ...]
    origin: Mapping[str, object]


def score(job: Job) -> Summary:
    """Sample, measure, choose, gate and report; what is current is not done again.

    Raises:
        BadInput: the recipe has no [score].
        NotFound: there is no checkpoint yet.
        Conflict, IntegrityError: as ``check_resumable``.
    """
    suite, section, run = job.suite, job.recipe.score, job.run
    if suite is None or section is None:
        raise BadInput("the recipe has no [score]", where=str(job.loaded.file), fix="add one")
    steps = run.checkpoint_steps()
    if not steps:
        raise NotFound("no checkpoint to score", where=str(run.dir), fix="styletune train first")
    check_resumable(run, job.identity)
    inputs = score_inputs(run, suite, job.base.hash, job.data)
    if run.summary_file.is_file() and run.scores_file.is_file():
        summary = read_summary(run)
        if summary.inputs == inputs:
            _write_pages(run)
            return summary
    require_room(replace(job.workload, trains=False), configs_of(job.base))
    from styletune.sampling.session import DTYPES, TrainedAs, open_pipeline
    from styletune.sampling.shots import Sampler, square_shot

    prompts = [prompt_with_trigger(prompt, job.trigger) for prompt in suite.prompts]
    base_origin = origin_facts(job.base, job.identity.training_hash)

    def column(step: int | None) -> Sampled:
        name = "base" if step is None else f"step-{step:06d}"
        folder = run.samples_dir(suite_hash(suite), name)
        shots = tuple(
            square_shot(prompt, seed, folder / f"{prompt_id(i)}-{seed}.png", job.resolution)
            for i, prompt in enumerate(prompts)
            for seed in suite.seeds
        )
        if step is None:
            return Sampled(
                name, None, None, shots, {**base_origin, "adapter": None, "strength": 0.0}
            )
        file = run.adapter_file(step)
        trained = {"adapter": job.loaded.name, "step": step, "strength": 1.0}
        origin = {**base_origin, **trained, "adapter_sha256": file_sha256(file)}
        return Sampled(name, step, file, shots, origin)

    train, adapter = job.recipe.train, job.recipe.adapter
    tokens = adapter.new_tokens, adapter.new_tokens_init
    trained_as = TrainedAs(job.prediction_type, train.zero_terminal_snr, *tokens)
    references = _write_references(job.data, run.references_dir(suite_hash(suite)), job.resolution)
    columns = [column(step) for step in (None, *steps)]
    # All images first: the base model and the encoder are never in memory together.
    sampler = Sampler(
        suite.sampler.steps, suite.sampler.guidance_scale, suite.sampler.negative_prompt
    )
    with open_pipeline(job.base, DTYPES[train.mixed_precision], device_name()) as pipe:
        _draw(pipe, columns, sampler, trained_as, section.batch_size)
    scores = _measure(suite, job.loaded.path(section.suite).parent, columns, references)
    summary = scores.summary.model_copy(update={"inputs": inputs})
    # A page is of the summary beside it: the old ones go before it is replaced.
    run.report_file.unlink(missing_ok=True)
    run.picture_file.unlink(missing_ok=True)
    _refresh_facts(run, data_facts(job.data, job.recipe.data.opt_out_override))
    write_scores(run, scores.rows)
    write_summary(run, summary)
    _write_pages(run)
    return summary


def _measure(
    suite: Suite, folder: Path, columns: Sequence[Sampled], references: Sequence[Path]
) -> Scores:
    """Encode every column's images and compare them with the references.

    ``folder`` is the suite's, which its encoder's name may be relative to.
    """
    from styletune.encoders.clip import encode_images, encode_texts, load_clip
    from styletune.scoring.score import Column, score_columns

    encoder = load_clip(suite.encoder.name, folder, device_name())
    encoded = []
    for column in columns:
        files = [shot.file for shot in column.shots]
        features = encode_images(encoder, files, title=f"encode {column.name}")
        strength = 0.0 if column.step is None else 1.0
        encoded.append(Column(column.name, column.step, strength, files, features))
    return score_columns(
        suite=suite,
        columns=encoded,
        text_features=encode_texts(encoder, suite.prompts),
        references=references,
        reference_features=encode_images(encoder, references, title="references"),
        encoder_id=encoder.id,
    )


def _refresh_facts(run: Run, data: DataFacts) -> None:
    """Rights and palette may be declared anew after training; the report shows today's."""
    facts = read_facts(run)
    if facts.data != data:
        write_facts(run, facts.model_copy(update={"data": data}))


def _write_pages(run: Run) -> None:
    """Write the report and the picture where they are missing."""
    from styletune.scoring.report import write_picture, write_report

    if not run.report_file.is_file():
        write_report(run)
    if not run.picture_file.is_file():
        write_picture(run)


def _write_references(data: LoadedData, folder: Path, resolution: int) -> list[Path]:
    """Held-out images through the same decode and crop as training, as PNG."""
    from PIL import Image

    from styletune.files import atomic_write

    files = []
    for i, row in enumerate(holdout_rows(data)):
        file = folder / f"{i:04d}-{row.pixel_hash[:12]}.png"
        if not file.is_file():
            crop = read_square(row, resolution)
            with atomic_write(file) as stream:
                Image.fromarray(crop.pixels).save(stream, format="PNG")
        files.append(file)
    return files


def _draw(
    pipe: DiffusionPipeline,
    columns: Sequence[Sampled],
    sampler: Sampler,
    trained_as: TrainedAs,
    batch_size: int,
) -> None:
    """The base's images, then every checkpoint's, with the same prompts and seeds."""
    from styletune.adapters.file import load_adapter
    from styletune.sampling.images import generate_images
    from styletune.sampling.session import make_ready, merged_adapter

    base, *checkpoints = columns

    def draw(column: Sampled) -> None:
        generate_images(
            pipe,
            column.shots,
            sampler,
            column.origin,
            batch_size=batch_size,
            title=column.name,
        )

    draw(base)
    make_ready(pipe, trained_as)
    for column in checkpoints:
        assert column.adapter is not None
        tensors, spec = load_adapter(column.adapter)
        with merged_adapter(pipe, tensors, spec, 1.0):
            draw(column)

"""The scoring stage: sample base and checkpoints, measure, choose, gate, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from styletune.data.checked import LoadedData, holdout_rows, train_rows
from styletune.data.inspection.features import ToEncode
from styletune.data.inspection.store import kept_facts
from styletune.data.read import read_square
from styletune.data.rows import Row
from styletune.errors import BadInput, NotFound
from styletune.files import atomic_write, file_sha256
from styletune.job.facts import data_facts, is_scored_as, origin_facts, score_inputs
from styletune.job.features import picture_of_file, picture_of_row, picture_views
from styletune.job.job import Job
from styletune.job.trainable import check_resumable
from styletune.models.base import BaseFiles
from styletune.places import device_name
from styletune.planning.preflight import configs_of, require_room
from styletune.runs import Run
from styletune.runs.documents import DataFacts, read_facts, write_facts
from styletune.runs.folder import BASE_COLUMN, checkpoint_name, column_label
from styletune.runs.scores import write_scores
from styletune.runs.summary import (
    NearestImage,
    Summary,
    read_summary,
    write_summary,
)
from styletune.sampling.prompts import prompt_with_trigger
from styletune.scoring.suite import Suite, prompt_id, suite_hash

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from styletune.sampling.session import TrainedAs
    from styletune.sampling.shots import TextShot
    from styletune.scoring.score import NearPair, Scores


@dataclass(frozen=True, slots=True)
class Sampled:
    """A column of the scores before its images are drawn.

    The base has no ``step``, no file and the strength 0.
    """

    name: str
    step: int | None
    strength: float
    adapter: Path | None
    shots: tuple[TextShot, ...]
    origin: Mapping[str, object]

    @property
    def label(self) -> str:
        """For people: ``step 200 at strength 0.8``."""
        return column_label(self.name, self.step, self.strength)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What all columns of a run have in common; ``references`` are PNG files."""

    run: Run
    base: BaseFiles
    name: str
    base_origin: Mapping[str, object]
    trigger: str
    side_px: int
    precision: Literal["bf16", "fp16", "no"]
    batch_size: int
    trained_as: TrainedAs
    suite_dir: Path
    references: Sequence[Path]
    training: Sequence[ToEncode]


def score(job: Job) -> Summary:
    """Sample, measure, choose, confirm, gate and report; what is current is not done again.

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
        if is_scored_as(summary, inputs):
            _write_pages(run)
            return summary
    require_room(replace(job.workload, trains=False), configs_of(job.base))
    from styletune.sampling.session import TrainedAs

    train, adapter = job.recipe.train, job.recipe.adapter
    tokens = adapter.new_tokens, adapter.new_tokens_init
    references = run.references_dir(suite_hash(suite))
    setting = _Setting(
        run=run,
        base=job.base,
        name=job.loaded.name,
        base_origin=origin_facts(job.base, job.identity.training_hash),
        trigger=job.trigger,
        side_px=job.resolution,
        precision=train.mixed_precision,
        batch_size=section.batch_size,
        trained_as=TrainedAs(job.prediction_type, train.zero_terminal_snr, *tokens),
        suite_dir=job.loaded.path(section.suite).parent,
        references=_write_references(job.data, references, job.resolution),
        training=[picture_of_row(row, job.resolution) for row in train_rows(job.data)],
    )
    every = [(step, strength) for step in steps for strength in suite.strengths]
    scores = _scored(setting, suite, every, "p")
    if suite.confirmation is not None:
        from styletune.scoring.score import with_confirmation

        chosen = scores.summary.chosen
        assert chosen.step is not None
        finalist = [(chosen.step, chosen.strength)]
        scores = with_confirmation(scores, _scored(setting, suite.confirmation, finalist, "c"))
    nearest = _write_nearest(
        scores.nearest, train_rows(job.data), run.training_dir(suite_hash(suite)), job.resolution
    )
    summary = scores.summary.model_copy(update={"inputs": inputs, "nearest": nearest})
    # A page is of the summary beside it: the old ones go before it is replaced.
    run.report_file.unlink(missing_ok=True)
    run.picture_file.unlink(missing_ok=True)
    _refresh_facts(run, data_facts(job.data, job.recipe.data.opt_out_override))
    write_scores(run, scores.rows)
    write_summary(run, summary)
    _write_pages(run)
    return summary


def _scored(
    setting: _Setting, suite: Suite, candidates: Sequence[tuple[int, float]], prompt_letter: str
) -> Scores:
    """Draw what is missing of the base and the candidates (step, strength), and measure it.

    All images first: the base model and the encoder are never in memory together.
    """
    from styletune.sampling.session import DTYPES, open_pipeline

    columns = _columns(setting, suite, candidates)
    with open_pipeline(setting.base, DTYPES[setting.precision], device_name()) as pipe:
        _draw(pipe, columns, suite, setting.trained_as, setting.batch_size)
    return _measure(setting, suite, columns, prompt_letter)


def _columns(
    setting: _Setting, suite: Suite, candidates: Sequence[tuple[int, float]]
) -> list[Sampled]:
    """The base's column and the candidates'."""
    run, of_suite, origin = setting.run, suite_hash(suite), setting.base_origin
    shots = _shots(setting, suite, run.samples_dir(of_suite, BASE_COLUMN))
    nothing = {**origin, "adapter": None, "strength": 0.0}
    columns = [Sampled(BASE_COLUMN, None, 0.0, None, shots, nothing)]
    for step, strength in candidates:
        file, name = run.adapter_file(step), checkpoint_name(step)
        shots = _shots(setting, suite, run.samples_dir(of_suite, name, strength))
        trained = {"adapter": setting.name, "step": step, "strength": strength}
        facts = {**origin, **trained, "adapter_sha256": file_sha256(file)}
        columns.append(Sampled(name, step, strength, file, shots, facts))
    return columns


def _shots(setting: _Setting, suite: Suite, folder: Path) -> tuple[TextShot, ...]:
    """A column's images, prompts-major, with the trigger in front of each prompt."""
    from styletune.sampling.shots import TextShot

    side, scheduler = setting.side_px, suite.sampler.scheduler
    prompts = [prompt_with_trigger(text, setting.trigger) for text in suite.texts]
    return tuple(
        TextShot(prompt, seed, folder / f"{prompt_id(i)}-{seed}.png", side, side, scheduler)
        for i, prompt in enumerate(prompts)
        for seed in suite.seeds
    )


def _measure(
    setting: _Setting, suite: Suite, columns: Sequence[Sampled], prompt_letter: str
) -> Scores:
    """Encode every column's images and compare them with references and training images."""
    from styletune.encoders.clip import encode_texts, load_clip
    from styletune.scoring.score import Column, score_columns

    encoder = load_clip(suite.encoder.name, setting.suite_dir, device_name())
    with kept_facts() as store:
        encoded = []
        for column in columns:
            files = [shot.file for shot in column.shots]
            pictures = [picture_of_file(file) for file in files]
            seen = picture_views(encoder, pictures, store, f"encode {column.label}")
            encoded.append(Column(column.name, column.step, column.strength, files, seen))
        references = [picture_of_file(file) for file in setting.references]
        return score_columns(
            suite=suite,
            columns=encoded,
            text_features=encode_texts(encoder, suite.texts),
            references=setting.references,
            reference_views=picture_views(encoder, references, store, "references"),
            training_views=picture_views(encoder, setting.training, store, "training images"),
            encoder_id=encoder.id,
            prompt_letter=prompt_letter,
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


def _write_nearest(
    pairs: Sequence[NearPair], training: Sequence[Row], folder: Path, resolution: int
) -> tuple[NearestImage, ...]:
    """The pairs with the training images' names; their squares go into the run folder, as PNG."""
    found = []
    for pair in pairs:
        row = training[pair.training]
        _write_square(row, folder / f"{row.pixel_hash[:12]}.png", resolution)
        found.append(
            NearestImage(
                prompt_id=pair.prompt_id,
                seed=pair.seed,
                training=row.file_name,
                pixels=row.pixel_hash,
                similarity=pair.similarity,
                is_suspect=pair.is_suspect,
            )
        )
    return tuple(found)


def _write_references(data: LoadedData, folder: Path, resolution: int) -> list[Path]:
    """Held-out images through the same decode and crop as training, as PNG."""
    files = []
    for i, row in enumerate(holdout_rows(data)):
        files.append(folder / f"{i:04d}-{row.pixel_hash[:12]}.png")
        _write_square(row, files[-1], resolution)
    return files


def _write_square(row: Row, file: Path, resolution: int) -> None:
    """An image's central square as PNG, unless it is there."""
    from PIL import Image

    if not file.is_file():
        crop = read_square(row, resolution)
        with atomic_write(file) as stream:
            Image.fromarray(crop.pixels).save(stream, format="PNG")


def _draw(
    pipe: DiffusionPipeline,
    columns: Sequence[Sampled],
    suite: Suite,
    trained_as: TrainedAs,
    batch_size: int,
) -> None:
    """The base's images, then every candidate's, with the same prompts and seeds."""
    from styletune.adapters.file import load_adapter
    from styletune.sampling.images import generate_images
    from styletune.sampling.session import make_ready, merged_adapter
    from styletune.sampling.shots import Sampler

    asked = suite.sampler
    sampler = Sampler(asked.steps, asked.guidance_scale, asked.negative_prompt)

    def draw(column: Sampled) -> None:
        generate_images(
            pipe,
            column.shots,
            sampler,
            column.origin,
            batch_size=batch_size,
            title=column.label,
        )

    base, *candidates = columns
    draw(base)
    make_ready(pipe, trained_as)
    for column in candidates:
        assert column.adapter is not None
        tensors, spec = load_adapter(column.adapter)
        with merged_adapter(pipe, tensors, spec, column.strength):
            draw(column)

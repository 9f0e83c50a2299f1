"""The scoring stage: sample base and checkpoints, measure, choose, gate, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from styletune import __version__
from styletune.data.load import LoadedData, holdout_rows, read_square
from styletune.errors import BadInput, CheckFailed, NotFound
from styletune.files import file_sha256
from styletune.job.facts import data_facts, origin_facts
from styletune.job.job import Job
from styletune.places import device_name
from styletune.planning.preflight import configs_of, require_room
from styletune.recipe.sections import ScoreSection
from styletune.runs import Run
from styletune.runs.documents import DataFacts, read_facts, write_facts
from styletune.runs.scores import write_scores
from styletune.runs.summary import (
    ScoreInputs,
    Summary,
    missed_gates,
    read_summary,
    write_summary,
)
from styletune.sampling.prompts import prompt_with_trigger
from styletune.scoring.suite import Suite, prompt_id, suite_hash

if TYPE_CHECKING:
    from styletune.scoring.score import Scores


def score(job: Job) -> Summary:
    """Sample, measure, choose, gate and report; what is current is not done again.

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

    for step in steps:
        check_receipt(run, step, job.identity)
    inputs = score_inputs(job)
    if run.summary_file.is_file() and run.scores_file.is_file():
        summary = read_summary(run)
        if summary.inputs == inputs:
            _write_pages(run)
            return summary
    require_room(replace(job.workload, trains=False), configs_of(job.base))
    scores = _measure(job, suite, section, steps)
    summary = scores.summary.model_copy(update={"inputs": inputs})
    # A page is of the summary beside it: the old ones go before it is replaced.
    run.report_file.unlink(missing_ok=True)
    run.picture_file.unlink(missing_ok=True)
    _refresh_facts(run, data_facts(job.data, job.recipe.data.opt_out_override))
    write_scores(run, scores.rows)
    write_summary(run, summary)
    _write_pages(run)
    return summary


def score_inputs(job: Job) -> ScoreInputs:
    """Everything that a score depends on; another value of it makes a summary stale."""
    assert job.suite is not None
    run = job.run
    return ScoreInputs(
        suite=job.suite.model_dump(mode="json"),
        base=job.base.hash,
        data=job.data.fingerprint,
        trigger=job.trigger,
        palette=tuple(job.data.checked.palette.declared),
        adapters={
            str(step): file_sha256(run.adapter_file(step)) for step in run.checkpoint_steps()
        },
        styletune=__version__,
    )


def _measure(job: Job, suite: Suite, section: ScoreSection, steps: Sequence[int]) -> Scores:
    """Draw every column's images, encode them and compare them with the references."""
    from styletune.encoders.clip import encode_images, encode_texts, load_clip
    from styletune.scoring.score import Column, score_columns

    references = _write_references(
        job.data, job.run.references_dir(suite_hash(suite)), job.resolution
    )
    # All images first: the base model and the encoder are never in memory together.
    drawn = list(_sample_columns(job, suite, steps, section.batch_size))
    encoder = load_clip(suite.encoder.name, job.loaded.path(section.suite).parent, device_name())
    columns = []
    for name, step, files in drawn:
        features = encode_images(encoder, files, title=f"encode {name}")
        columns.append(Column(name, step, 0.0 if step is None else 1.0, files, features))
    return score_columns(
        suite=suite,
        columns=columns,
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


def _sample_columns(
    job: Job, suite: Suite, steps: Sequence[int], batch_size: int
) -> Iterator[tuple[str, int | None, list[Path]]]:
    """The base's images, then every checkpoint's, with the same prompts and seeds."""
    from styletune.adapters.file import load_adapter
    from styletune.sampling.images import generate_images
    from styletune.sampling.session import (
        DTYPES,
        TrainedAs,
        make_ready,
        merged_adapter,
        open_pipeline,
    )
    from styletune.sampling.shots import Sampler, TextShot, square_shot

    settings, train, section = suite.sampler, job.recipe.train, job.recipe.adapter
    sampler = Sampler(settings.steps, settings.guidance_scale, settings.negative_prompt)

    def shots(column: str) -> list[TextShot]:
        folder = job.run.samples_dir(suite_hash(suite), column)
        return [
            square_shot(
                prompt_with_trigger(p, job.trigger),
                s,
                folder / f"{prompt_id(i)}-{s}.png",
                job.resolution,
            )
            for i, p in enumerate(suite.prompts)
            for s in suite.seeds
        ]

    with open_pipeline(job.base, DTYPES[train.mixed_precision], device_name()) as pipe:
        origin = {**origin_facts(job), "adapter": None, "strength": 0.0}
        generate_images(pipe, shots("base"), sampler, origin, batch_size=batch_size, title="base")
        yield "base", None, [s.file for s in shots("base")]
        tokens = section.new_tokens, section.new_tokens_init
        make_ready(pipe, TrainedAs(job.prediction_type, train.zero_terminal_snr, *tokens))
        for step in steps:
            name, file = f"step-{step:06d}", job.run.adapter_file(step)
            origin = {
                **origin_facts(job),
                "adapter": job.loaded.name,
                "step": step,
                "strength": 1.0,
                "adapter_sha256": file_sha256(file),
            }
            tensors, spec = load_adapter(file)
            with merged_adapter(pipe, tensors, spec, 1.0):
                generate_images(
                    pipe, shots(name), sampler, origin, batch_size=batch_size, title=name
                )
            yield name, step, [s.file for s in shots(name)]


def refuse_unless_passed(summary: Summary, report: Path) -> None:
    """Raise CheckFailed that names every gate the chosen checkpoint did not pass."""
    missed = missed_gates(summary.gates)
    if missed:
        lines = "; ".join(f"{gate.name} {gate.verdict}: {gate.explanation}" for gate in missed)
        raise CheckFailed(
            f"the gate refuses {summary.chosen.checkpoint}: {lines}",
            where=str(report),
            fix="look at the report; train longer, lower the learning rate, or add images",
        )

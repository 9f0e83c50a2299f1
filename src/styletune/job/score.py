"""The scoring stage: sample base and checkpoints, measure, choose, gate, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from styletune import __version__
from styletune.data.load import holdout_rows, read_square
from styletune.errors import BadInput, CheckFailed, NotFound
from styletune.files import file_sha256, read_json
from styletune.job.facts import data_facts, origin_facts
from styletune.job.prepare import Job, job_setup, prompt_with_trigger, suite_folder
from styletune.models.names import public_base
from styletune.places import device_name
from styletune.planning.preflight import configs_of, require_room
from styletune.scoring.suite import Suite, prompt_id, suite_hash


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
    inputs = score_inputs(job)
    outputs = (run.summary_file, run.scores_file, run.report_file, run.picture_file)
    if all(f.is_file() for f in outputs):
        summary: dict[str, Any] = read_json(run.summary_file)
        if summary.get("inputs") == inputs:
            return summary, False
    require_room(replace(job_setup(job), trains=False), configs_of(job.base))
    from styletune.encoders.clip import encode_images, encode_texts, load_clip
    from styletune.scoring.report import write_report
    from styletune.scoring.score import Column, score_columns, write_scores

    references = _write_references(job, run.samples_dir(suite_hash(suite), "references"))
    # All images first: the base model and the encoder are never in memory together.
    drawn = list(_sample_columns(job, suite, steps, section.batch_size))
    encoder = load_clip(suite.encoder.name, suite_folder(job), device_name())
    columns = []
    for name, step, files in drawn:
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
    facts = {**read_json(run.facts_file), "data": data_facts(job)}
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


def score_inputs(job: Job) -> dict[str, Any]:
    """Everything that a score depends on; another value of it makes a summary stale."""
    assert job.suite is not None
    run = job.run
    return {
        "suite": job.suite.model_dump(mode="json"),
        "base": job.base.hash,
        "data": job.data.fingerprint,
        "trigger": job.trigger,
        "palette": data_facts(job)["palette"],
        "adapters": {str(s): file_sha256(run.adapter_file(s)) for s in run.checkpoint_steps()},
        "styletune": __version__,
    }


def _report_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """The provenance footer; the report is published, so it names no folders of this machine."""
    data, base = facts["data"], facts["base"]
    return {
        "recipe": f"{facts['recipe']} {facts['recipe_hash'][:12]}",
        "base model": f"{public_base(base['model'])} {base['hash'][:12]}",
        "data": f"{len(data['train'])} images trained on, {len(data['holdout'])} held out, "
        f"{data['fingerprint'][:12]}",
        "licence of the images": _declared(data, "license"),
        "holder": _declared(data, "holder"),
        "seed": str(facts["seed"]),
        "versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
        "device": facts["device"],
    }


def _declared(data: Mapping[str, Any], key: str) -> str:
    """Every value declared of the images, most images first."""
    values = dict.fromkeys(entry[key] for entry in data["rights"]["declared"])
    return ", ".join(value or "not stated" for value in values)


def _write_references(job: Job, folder: Path) -> list[Path]:
    """Held-out images through the same decode and crop as training, as PNG."""
    from PIL import Image

    from styletune.files import atomic_write

    files = []
    for i, row in enumerate(holdout_rows(job.data)):
        file = folder / f"{i:04d}-{row.pixel_hash[:12]}.png"
        if not file.is_file():
            crop = read_square(row, job.resolution)
            with atomic_write(file) as stream:
                Image.fromarray(crop.pixels).save(stream, format="PNG")
        files.append(file)
    return files


def _sample_columns(
    job: Job, suite: Suite, steps: Sequence[int], batch_size: int
) -> Iterator[tuple[str, int | None, list[Path]]]:
    """The base's images, then every checkpoint's, with the same prompts and seeds."""
    from styletune.adapters.file import load_adapter
    from styletune.models.schedule import resolve_prediction_type
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
        prediction = resolve_prediction_type(
            train.prediction_type, pipe.scheduler.config.prediction_type, train.zero_terminal_snr
        )
        tokens = section.new_tokens, section.new_tokens_init
        make_ready(pipe, TrainedAs(prediction, train.zero_terminal_snr, *tokens))
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


def refuse_unless_passed(summary: Mapping[str, Any], report: Path) -> None:
    """Raise CheckFailed that names every gate the chosen checkpoint did not pass."""
    failed = [g for g in summary["gates"] if g["verdict"] != "pass"]
    if failed:
        lines = "; ".join(f"{g['name']} {g['verdict']}: {g['explanation']}" for g in failed)
        raise CheckFailed(
            f"the gate refuses {summary['chosen']['checkpoint']}: {lines}",
            where=str(report),
            fix="look at the report; train longer, lower the learning rate, or add images",
        )

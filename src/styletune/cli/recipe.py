"""Commands on a recipe: plan, train, score, publish, run."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from styletune.cli.shared import (
    clip,
    first_process,
    prepare_job,
    print_json,
    recipe_options,
    registry_option,
    say,
)
from styletune.errors import CheckFailed

if TYPE_CHECKING:
    from styletune.job.job import Job


@click.command("plan")
@click.option("--gpu", "gpu_name", help='Plan for this card, such as "RTX 3060"; else this one.')
@recipe_options
def plan_command(
    recipe: Path,
    runs_dir: Path,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    gpu_name: str | None,
    as_json: bool,
) -> None:
    """Check a recipe and print what would happen; writes nothing. Exit 1 or 3 if it cannot run."""
    from styletune.planning.gpus import find_gpu

    gpu = find_gpu(gpu_name) if gpu_name else None
    job = prepare_job(recipe, runs_dir, run_dir, overrides, planning=True)
    from styletune.job.plan import plan
    from styletune.planning.preflight import present_gpu

    document = plan(job, gpu or present_gpu())
    if as_json:
        print_json(document)
    else:
        _print_plan(job, document, recipe)
    if job.missing_base is not None:
        raise SystemExit(job.missing_base.exit_code)
    if any(p["severity"] == "error" for p in document["problems"]):
        raise SystemExit(1)


def _print_plan(job: Job, document: dict[str, Any], recipe: Path) -> None:
    import tomli_w

    data, train = document["data"], document["train"]
    click.echo(tomli_w.dumps(job.recipe.model_dump(mode="json", exclude_none=True)))
    click.echo(f"recipe   {job.loaded.name}  {document['recipe_hash'][:12]}")
    click.echo(f"base     {document['base']['model']}  {document['base']['hash'][:12]}")
    click.echo(
        f"data     {data['images']} images: {data['train']} to train on, {data['holdout']} held "
        f"out; {data['groups']} groups of duplicates; {data['fingerprint'][:12]}"
    )
    click.echo(
        f"train    {train['steps']} steps of {train['images_per_step']} images = "
        f"{train['epochs']:g} epochs of {train['images_per_epoch']} at {job.resolution} px; "
        f"adapter scale {train['adapter_scale']:g}; {len(train['checkpoints'])} checkpoints"
    )
    memory, compute = document["memory"], document["compute"]
    parts = sorted(memory["parts"].items(), key=lambda item: -item[1])
    click.echo(
        f"memory   {memory['peak_bytes'] / 2**30:.1f} GiB at the peak ({memory['phase']}): "
        + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts if size > 2**20)
    )
    floor = (
        f"; at least {compute['floor_s'] / 60:.1f} min on {compute['gpu']}, which never does more "
        f"than {compute['images_per_s']:g} images/s"
        if compute["floor_s"] is not None
        else ""
    )
    click.echo(f"compute  {compute['step_flops'] / 1e12:.3g} TFLOP a step{floor}")
    if train["done_steps"]:
        click.echo(f"         {train['done_steps']} steps are done already and will be kept")
    if document["score"]:
        click.echo(f"score    {document['score']['images']} images are generated and measured")
    for problem in document["problems"]:
        click.echo(f"\n{problem['severity']}: {problem['where']}\n  {clip(problem['message'])}")
        click.echo(f"  fix: {problem['fix']}")
    click.echo("\nwould be written:")
    for output in document["outputs"]:
        click.echo(f"  {output}")
    refused = any(p["severity"] == "error" for p in document["problems"])
    click.echo(f"\nnext: {'mend the errors above' if refused else f'styletune run {recipe}'}")


@click.command("train")
@recipe_options
def train_command(
    recipe: Path, runs_dir: Path, run_dir: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Train the adapter, or go on where it was interrupted."""
    job = prepare_job(recipe, runs_dir, run_dir, overrides, many_processes=True)
    from styletune.job.train import train

    trained = train(job)
    if not first_process():
        return
    steps = job.run.checkpoint_steps()
    if as_json:
        print_json({"run_dir": str(job.run.dir), "checkpoints": steps, "trained": trained})
        return
    click.echo(f"{'trained' if trained else 'trained already'}: {job.run.dir}")
    click.echo(f"checkpoints: {', '.join(map(str, steps))}\nnext: styletune score {recipe}")


@click.command("score")
@recipe_options
def score_command(
    recipe: Path, runs_dir: Path, run_dir: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Sample, measure and gate every checkpoint, and choose one. Exit 1 if none passes."""
    job = prepare_job(recipe, runs_dir, run_dir, overrides)
    from styletune.job.score import gate_passed, score

    summary, _ = score(job)
    if as_json:
        print_json(summary)
    else:
        _print_scores(summary)
        click.echo(f"\nreport   {job.run.report_file}")
        if gate_passed(summary):
            click.echo(f"next: open the report; then styletune publish {recipe}")
    _exit_by_gate(summary, job.run.report_file)


@click.command("publish")
@registry_option
@recipe_options
def publish_command(
    recipe: Path,
    runs_dir: Path,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    registry: str,
    as_json: bool,
) -> None:
    """Publish the chosen checkpoint as an immutable version."""
    job = prepare_job(recipe, runs_dir, run_dir, overrides)
    from styletune.job.publish import publish

    published = publish(job, registry, _who())
    if as_json:
        print_json(published)
        return
    _print_published(published, registry)


@click.command("run")
@click.option("--publish", "publishes", is_flag=True, help="Also publish what passes the gate.")
@registry_option
@recipe_options
def run_command(
    recipe: Path,
    runs_dir: Path,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    registry: str,
    publishes: bool,
    as_json: bool,
) -> None:
    """The whole job: check, train, score, choose, gate, and publish if asked."""
    job = prepare_job(recipe, runs_dir, run_dir, overrides)
    from styletune.job.publish import check_publishable
    from styletune.job.run import run_job

    if publishes:
        check_publishable(job, registry)
    done = run_job(job, registry=registry if publishes else None, who=_who())
    summary = done.pop("summary")
    if as_json:
        print_json(done)
    else:
        if summary:
            _print_scores(summary)
        stages = ", ".join(f"{stage} {s:g} s" for stage, s in done["seconds"].items())
        click.echo(f"\ntime     {stages}")
        if summary:
            click.echo(f"report   {job.run.report_file}\npicture  {job.run.picture_file}")
        if done["published"]:
            _print_published(done["published"], registry)
        elif summary and done["gate"] == "pass":
            click.echo(f"next: open the report; then styletune publish {recipe}")
    if summary:
        _exit_by_gate(summary, job.run.report_file)


def _exit_by_gate(summary: dict[str, Any], report: Path) -> None:
    """Exit 1 on a refusal; the document or table has been printed, so the reason is for stderr."""
    from styletune.job.score import refuse_unless_passed

    try:
        refuse_unless_passed(summary, report)
    except CheckFailed as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in many containers
        return "unknown"


def _print_published(published: dict[str, str], registry: str) -> None:
    name, version = published["name"], published["version"]
    click.echo(f"published {name} {version}  {published['digest'][:12]}  in {registry}")
    click.echo(
        f"next: styletune generate {name}@^{version.split('.')[0]} "
        f'--prompt "a city at sunset" --seeds 101-104 --registry {registry}'
    )


METRIC_COLUMNS = (
    ("clip_image", "style (CLIP-I)", ".3f"),
    ("clip_text", "prompt (CLIP-T)", ".3f"),
    ("palette", "palette ΔE", ".1f"),
    ("kid", "KID", ".4f"),
    ("fid", "FID", ".3f"),
)


def _print_scores(summary: dict[str, Any]) -> None:
    """The short table: base, every checkpoint, the references themselves; then the gates."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("checkpoint", no_wrap=True)
    for _, label, _ in METRIC_COLUMNS:
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("gate")
    chosen = summary["chosen"]["checkpoint"]
    anchors = summary["anchors"]
    rows = [("base model", anchors["base"], summary["base"]["passed"])]
    rows += [(e["checkpoint"], e["metrics"], e["passed"]) for e in summary["checkpoints"]]
    for label, metrics, passed in rows:
        mark = " ← chosen" if label == chosen else ""
        table.add_row(label + mark, *_cells(metrics), "pass" if passed else "refused")
    table.add_row("held-out images", *_cells(anchors["real"]), "")
    console = Console(width=110 if not sys.stdout.isatty() else None)
    console.print(table)
    console.print(f"chosen   {chosen}: {summary['chosen']['reason']}", markup=False)
    for gate in summary["gates"]:
        console.print(
            f"gate     {gate['name']}: {gate['verdict']}: {gate['explanation']}", markup=False
        )


def _cells(metrics: dict[str, Any]) -> list[str]:
    values = [metrics.get(key, {}).get("value") for key, _, _ in METRIC_COLUMNS]
    return [
        "–" if value is None else format(value, form)
        for value, (_, _, form) in zip(values, METRIC_COLUMNS, strict=True)
    ]

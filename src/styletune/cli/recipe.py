"""Commands on a recipe: plan, train, score, publish, run."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from styletune import api
from styletune.cli.shared import (
    Target,
    clip,
    computes,
    print_json,
    recipe_options,
    registry_option,
    registry_words,
    say,
)
from styletune.errors import CheckFailed, NotFound
from styletune.runs.metrics import IMAGE_METRICS, SCALE_METRICS, Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from styletune.job.run import RunResult
    from styletune.recipe import LoadedRecipe
    from styletune.registry.versions import Published
    from styletune.runs import Run
    from styletune.runs.answers import Plan, PlanCompute, PlanMemory, PlanTraining
    from styletune.runs.summary import Metrics, Summary


@click.command("plan")
@click.option("--gpu", help='Plan for this card, such as "RTX 3060"; else this one.')
@click.option("--publish", "publishes", is_flag=True, help="Also check what publishing needs.")
@registry_option
@recipe_options
def plan_command(
    target: Target, gpu: str | None, publishes: bool, registry: str, as_json: bool
) -> None:
    """Check a recipe and print what would happen; writes nothing. Exit 1 or 3 if it cannot run.

    After exit 0, run with the same options does not refuse what has not changed since.
    """
    loaded = _load(target)
    try:
        planned = api.plan(
            loaded,
            runs_dir=target.runs_dir,
            run_dir=target.run_dir,
            gpu=gpu,
            registry=registry if publishes else None,
        )
    except NotFound:
        # "Does it fit my card?" is asked before the images are there.
        if not as_json and not _has_data(loaded):
            needs = api.plan_without_data(loaded, gpu=gpu)
            click.echo("without the images, at full square batches:")
            _print_needs(needs.memory, needs.compute)
            if needs.problem:
                click.echo(f"\nerror: {needs.problem.message}\n  fix: {needs.problem.fix}")
        raise
    if as_json:
        print_json(planned.as_json())
    else:
        _print_plan(planned, loaded)
        publish = ["--publish", *registry_words(registry)] if publishes else []
        step = "fix the errors above" if planned.refused else target.command("run", *publish)
        click.echo(f"\nnext: {step}")
    if planned.base_is_missing:
        raise SystemExit(NotFound.exit_code)
    if planned.refused:
        raise SystemExit(CheckFailed.exit_code)


def _has_data(loaded: LoadedRecipe) -> bool:
    paths = [loaded.recipe.data.path, *(source.path for source in loaded.recipe.data.sources)]
    return all(loaded.path(path).exists() for path in paths if path)


def _print_plan(plan: Plan, loaded: LoadedRecipe) -> None:
    import tomli_w

    data, train = plan.data, plan.train
    click.echo(tomli_w.dumps(loaded.recipe.model_dump(mode="json", exclude_none=True)))
    click.echo(f"recipe   {loaded.name}  {plan.recipe_hash[:12]}")
    click.echo(f"base     {plan.base.model}  {plan.base.hash[:12]}")
    click.echo(
        f"data     {data.images} images: {data.train} to train on, {data.holdout} held "
        f"out; {data.groups} groups of duplicates; {data.fingerprint[:12]}"
    )
    click.echo(
        f"train    {train.steps} steps of {_span(train)} = "
        f"{train.epochs:g} epochs of {train.images_per_epoch} at {data.resolution} px; "
        f"adapter scale {train.adapter_scale:g}; {len(train.checkpoints)} checkpoints"
    )
    _print_needs(plan.memory, plan.compute)
    if train.done_steps:
        click.echo(f"         {train.done_steps} steps are done already and will be kept")
    if plan.score:
        click.echo(f"score    {plan.score.images} images are generated and measured")
    for problem in plan.problems:
        click.echo(f"\n{problem.severity}: {problem.where}\n  {clip(problem.message)}")
        click.echo(f"  fix: {problem.fix}")
    click.echo("\nwould be written:")
    for output in plan.outputs:
        click.echo(f"  {output}")


def _span(train: PlanTraining) -> str:
    few, most = train.fewest_images, train.images_per_step
    words = f"{most} image" + "s" * (most != 1)
    return words if few == most else f"{few} to {words}"


def _print_needs(memory: PlanMemory, compute: PlanCompute) -> None:
    parts = sorted(memory.parts.items(), key=lambda item: -item[1])
    click.echo(
        f"memory   {memory.peak_bytes / 2**30:.1f} GiB at the peak ({memory.phase}): "
        + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts if size > 2**20)
    )
    floor = (
        f"; at least {compute.floor_s / 60:.1f} min on {compute.gpu}, which never does more "
        f"than {compute.images_per_s:g} images/s"
        if compute.floor_s is not None
        else ""
    )
    click.echo(f"compute  {compute.step_flops / 1e12:.3g} TFLOP per step{floor}")


@click.command("train")
@recipe_options
@computes
def train_command(target: Target, as_json: bool) -> None:
    """Train the adapter, or resume where it was interrupted."""
    loaded = _load(target)
    trained = api.train(loaded, runs_dir=target.runs_dir, run_dir=target.run_dir)
    if not api.first_process():
        return
    run, steps = trained.run, trained.run.checkpoint_steps()
    if as_json:
        print_json({"run_dir": str(run.dir), "checkpoints": steps, "trained": trained.did_train})
        return
    click.echo(f"{'trained' if trained.did_train else 'trained already'}: {run.dir}")
    click.echo(f"checkpoints: {', '.join(map(str, steps))}")
    if loaded.recipe.score:
        click.echo(f"next: {target.command('score')}")
    else:
        click.echo(f"adapter: {run.adapter_file(steps[-1])}")


@click.command("score")
@recipe_options
@computes
def score_command(target: Target, as_json: bool) -> None:
    """Sample, measure and gate every checkpoint, and choose one. Exit 1 if none passes."""
    loaded = _load(target)
    scored = api.score(loaded, runs_dir=target.runs_dir, run_dir=target.run_dir)
    if as_json:
        print_json(scored.summary.as_json())
    else:
        _print_scores(scored.summary)
        click.echo(f"\nreport   {scored.run.report_file}")
        if scored.summary.chosen.passed:
            _print_publish_step(scored.run, scored.summary, loaded, target)
    _exit_by_gate(scored)


@click.command("publish")
@registry_option
@recipe_options
@computes
def publish_command(target: Target, registry: str, as_json: bool) -> None:
    """Publish the chosen checkpoint as an immutable version."""
    published = api.publish(
        _load(target), registry=registry, runs_dir=target.runs_dir, run_dir=target.run_dir
    )
    if as_json:
        print_json(asdict(published))
        return
    _print_published(published, registry)


@click.command("run")
@click.option("--publish", "publishes", is_flag=True, help="Also publish what passes the gate.")
@registry_option
@recipe_options
@computes
def run_command(target: Target, registry: str, publishes: bool, as_json: bool) -> None:
    """The whole job: check, train, score, choose, gate, and publish if asked."""
    loaded = _load(target)
    result = api.run(
        loaded,
        registry=registry if publishes else None,
        runs_dir=target.runs_dir,
        run_dir=target.run_dir,
    )
    if as_json:
        print_json(result.as_json())
    else:
        _print_run(result, loaded, target, registry)
    if result.summary:
        _exit_by_gate(api.Scored(result.run, result.summary))


def _print_run(result: RunResult, loaded: LoadedRecipe, target: Target, registry: str) -> None:
    summary, run = result.summary, result.run
    if summary:
        _print_scores(summary)
    stages = ", ".join(f"{stage} {seconds:g} s" for stage, seconds in result.seconds.items())
    click.echo(f"\ntime     {stages}")
    if summary:
        click.echo(f"report   {run.report_file}\npicture  {run.picture_file}")
    if result.published:
        _print_published(result.published, registry)
    elif summary is None:
        click.echo(f"run      {run.dir}\nadapter  {run.adapter_file(run.checkpoint_steps()[-1])}")
    elif summary.chosen.passed:
        _print_publish_step(run, summary, loaded, target)


def _print_publish_step(run: Run, summary: Summary, loaded: LoadedRecipe, target: Target) -> None:
    """What comes after a passed gate: a look, and publishing where the recipe has [publish]."""
    if loaded.recipe.publish:
        click.echo(f"look at the report, then\nnext: {target.command('publish')}")
    elif summary.chosen.step is not None:
        click.echo(f"adapter  {run.adapter_file(summary.chosen.step)}")


def _exit_by_gate(scored: api.Scored) -> None:
    """Exit 1 on a refusal; the document or table has been printed, so the reason is for stderr."""
    try:
        scored.require_passed()
    except CheckFailed as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


def _print_published(published: Published, registry: str) -> None:
    name, version = published.name, published.version
    click.echo(f"published {name} {version}  {published.digest[:12]}  in {registry}")
    # A prerelease only answers to its own number.
    spec = f"{name}@{version}" if "-" in version else f"{name}@^{version.split('.')[0]}"
    prompt = ["--prompt", "a city at sunset", "--seeds", "101-104"]
    words = ["styletune", "generate", spec, *prompt, *registry_words(registry)]
    click.echo(f"next: {shlex.join(words)}")


def _print_scores(summary: Summary) -> None:
    """The short table: base, every checkpoint, the references themselves; then the gates.

    On the scales of 0 to 100; in raw numbers where an earlier version scored the run.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("checkpoint", no_wrap=True)
    shown = SCALE_METRICS if summary.is_scaled else IMAGE_METRICS
    for metric in shown:
        table.add_column(metric.short_label, justify="right", no_wrap=True)
    table.add_column("gate")
    chosen, anchors = summary.chosen, summary.anchors
    rows = [("base model", anchors.base, summary.base.passed)]
    rows += [(scores.label, scores.metrics, scores.passed) for scores in summary.checkpoints]
    for label, metrics, passed in rows:
        mark = " ← chosen" if label == chosen.label else ""
        table.add_row(label + mark, *_cells(metrics, shown), "pass" if passed else "refused")
    if summary.confirmed is not None:
        verdict = "pass" if chosen.passed else "refused"
        cells = _cells(summary.confirmed.metrics, shown)
        table.add_row("the chosen, confirmed", *cells, verdict)
    table.add_row("held-out images", *_cells(anchors.real, shown), "")
    console = Console(width=110 if not sys.stdout.isatty() else None)
    console.print(table)
    console.print(f"chosen   {chosen.label}: {chosen.reason}", markup=False)
    for near in summary.nearest or ():
        if near.is_suspect:
            text = f"{near.prompt_id}-{near.seed} is nearest to {near.training}"
            console.print(f"suspect  {text} (cosine {near.similarity:.3f})", markup=False)
    for gate in summary.gates:
        console.print(f"gate     {gate.name}: {gate.verdict}: {gate.explanation}", markup=False)


def _cells(metrics: Metrics, shown: Sequence[Metric]) -> list[str]:
    """Values; those on a scale with their interval, where they have one."""
    cells = []
    for metric in shown:
        measured = metrics.get(metric.name)
        if measured is None or measured.value is None:
            cells.append("–")
            continue
        cell = f"{round(measured.value, metric.digits) + 0.0:.{metric.digits}f}"  # no "-0"
        low, high = measured.low, measured.high
        if metric.on_scale and low is not None and high is not None and low < high:
            cell += f" ({low:.0f} to {high:.0f})"
        cells.append(cell)
    return cells


def _load(target: Target) -> LoadedRecipe:
    """The recipe with its overrides. Raises as ``styletune.load_recipe``."""
    return api.load_recipe(target.recipe, target.overrides)

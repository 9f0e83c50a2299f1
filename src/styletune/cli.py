"""The command line: parse, call one function, print. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from styletune import __version__
from styletune.errors import BadInput, CheckFailed, NotFound, StyletuneError

if TYPE_CHECKING:
    from styletune.job.prepare import Job

EXIT_CODES = (
    "Exit codes: 0 done, 1 check or gate failed, 2 bad input, 3 not found, 4 integrity, 5 conflict."
)
Command = Callable[..., None]


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="styletune")
def cli() -> None:
    """Turn a brand's visual style into a versioned, measured SDXL LoRA."""


def _recipe_options(command: Command) -> Command:
    """What every command on a recipe takes."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
        click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                     help="Override one key of the recipe; may be repeated."),
        click.option("--run-dir", type=click.Path(path_type=Path), help="This run's own folder."),
        click.option("--runs-dir", type=click.Path(path_type=Path), default=Path("runs"),
                     show_default=True, help="Folder of all runs."),
        click.argument("recipe", type=click.Path(path_type=Path)),
    ):  # fmt: skip
        command = option(command)
    return command


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(
        command
    )


def _registry_option(command: Command) -> Command:
    return click.option(
        "--registry", default="registry", show_default=True, envvar="STYLETUNE_REGISTRY",
        help="Folder or bucket URL of the registry.",
    )(command)  # fmt: skip


def _first_process() -> bool:
    """Whether this is the only process, or the first that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


def _prepare(
    recipe: Path, runs_dir: Path, run_dir: Path | None, overrides: Sequence[str],
    many_processes: bool = False, planning: bool = False,
) -> Job:  # fmt: skip
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not many_processes:
        raise BadInput(
            "only training runs in several processes",
            where="accelerate launch",
            fix=f"accelerate launch -m styletune train {recipe}; then styletune run {recipe}",
        )
    from styletune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)  # before the heavy imports
    from styletune.job.prepare import prepare

    job = prepare(loaded, runs_dir=runs_dir, run_dir=run_dir, planning=planning)
    for warning in job.data.warnings if _first_process() else ():
        _say(f"warning: {warning.code}: {_clip(warning.message, 160)}")
    return job


def _say(text: str = "") -> None:
    click.echo(text, err=True)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))


@cli.command("plan")
@click.option("--gpu", "gpu_name", help='Plan for this card, such as "RTX 3060"; else this one.')
@_recipe_options
def plan_command(recipe: Path, runs_dir: Path, run_dir: Path | None, overrides: tuple[str, ...],
                 gpu_name: str | None, as_json: bool) -> None:  # fmt: skip
    """Check a recipe and print what would happen; writes nothing. Exit 1 or 3 if it cannot run."""
    from styletune.training.flops import find_gpu

    gpu = find_gpu(gpu_name) if gpu_name else None
    job = _prepare(recipe, runs_dir, run_dir, overrides, planning=True)
    from styletune.job.preflight import present_gpu
    from styletune.job.prepare import plan

    document = plan(job, gpu or present_gpu())
    if as_json:
        _print_json(document)
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
        f"{train['epochs']:g} epochs at {job.resolution} px; adapter scale "
        f"{train['adapter_scale']:g}; {len(train['checkpoints'])} checkpoints"
    )
    memory, compute = document["memory"], document["compute"]
    parts = sorted(memory["parts"].items(), key=lambda item: -item[1])
    click.echo(
        f"memory   {memory['peak_bytes'] / 2**30:.1f} GiB at the peak ({memory['phase']}): "
        + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts if size > 2**20)
    )
    floor = (
        f"; at least {compute['floor_s'] / 60:.1f} min on {compute['gpu']}, which never does more "
        f"than {compute['images_per_s']:g} images/s" if compute["gpu"] else ""
    )  # fmt: skip
    click.echo(f"compute  {compute['step_flops'] / 1e12:.3g} TFLOP a step{floor}")
    if train["done_steps"]:
        click.echo(f"         {train['done_steps']} steps are done already and will be kept")
    if document["score"]:
        click.echo(f"score    {document['score']['images']} images are generated and measured")
    for problem in document["problems"]:
        click.echo(f"\n{problem['severity']}: {problem['where']}\n  {_clip(problem['message'])}")
        click.echo(f"  fix: {problem['fix']}")
    click.echo("\nwould be written:")
    for output in document["outputs"]:
        click.echo(f"  {output}")
    click.echo(f"\nnext: styletune run {recipe}")


def _clip(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@cli.command("train")
@_recipe_options
def train_command(recipe: Path, runs_dir: Path, run_dir: Path | None, overrides: tuple[str, ...],
                  as_json: bool) -> None:  # fmt: skip
    """Train the adapter, or go on where it was interrupted."""
    job = _prepare(recipe, runs_dir, run_dir, overrides, many_processes=True)
    from styletune.job.train import train

    trained = train(job)
    if not _first_process():
        return
    steps = job.run.checkpoint_steps()
    if as_json:
        _print_json({"run_dir": str(job.run.dir), "checkpoints": steps, "trained": trained})
        return
    click.echo(f"{'trained' if trained else 'trained already'}: {job.run.dir}")
    click.echo(f"checkpoints: {', '.join(map(str, steps))}\nnext: styletune score {recipe}")


@cli.command("score")
@_recipe_options
def score_command(recipe: Path, runs_dir: Path, run_dir: Path | None, overrides: tuple[str, ...],
                  as_json: bool) -> None:  # fmt: skip
    """Sample, measure and gate every checkpoint, and choose one. Exit 1 if none passes."""
    job = _prepare(recipe, runs_dir, run_dir, overrides)
    from styletune.job.score import gate_passed, score

    summary, _ = score(job)
    if as_json:
        _print_json(summary)
    else:
        _print_scores(summary)
        click.echo(f"\nreport   {job.run.report_file}")
        if gate_passed(summary):
            click.echo(f"next: open the report; then styletune publish {recipe}")
    _exit_by_gate(summary, job.run.report_file)


@cli.command("publish")
@_registry_option
@_recipe_options
def publish_command(recipe: Path, runs_dir: Path, run_dir: Path | None,
                    overrides: tuple[str, ...], registry: str, as_json: bool) -> None:  # fmt: skip
    """Publish the chosen checkpoint as an immutable version."""
    job = _prepare(recipe, runs_dir, run_dir, overrides)
    from styletune.job.publish import publish

    published = publish(job, registry, _who())
    if as_json:
        _print_json(published)
        return
    _print_published(published, registry)


@cli.command("run")
@click.option("--publish", "publishes", is_flag=True, help="Also publish what passes the gate.")
@_registry_option
@_recipe_options
def run_command(recipe: Path, runs_dir: Path, run_dir: Path | None, overrides: tuple[str, ...],
                registry: str, publishes: bool, as_json: bool) -> None:  # fmt: skip
    """The whole job: check, train, score, choose, gate, and publish if asked."""
    job = _prepare(recipe, runs_dir, run_dir, overrides)
    from styletune.job.publish import check_publishable
    from styletune.job.run import run_job

    if publishes:
        check_publishable(job, registry)
    done = run_job(job, registry=registry if publishes else None, who=_who())
    summary = done.pop("summary")
    if as_json:
        _print_json(done)
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
        _say(f"error: {error}")
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


@cli.command("pull")
@click.argument("spec")
@_registry_option
@click.option("--to", "dest", type=click.Path(path_type=Path), default=Path("pulled"),
              show_default=True, help="Folder to pull into.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def pull_command(spec: str, registry: str, dest: Path, as_json: bool) -> None:
    """Fetch a version (horizon, horizon@^1, horizon@1.0.0); every checksum is verified."""
    from styletune.registry.pull import pull
    from styletune.registry.resolve import parse_spec
    from styletune.registry.store import open_store

    pulled = pull(open_store(registry, create=False), parse_spec(spec), dest)
    manifest = pulled.manifest
    document = {
        "name": manifest.name, "version": manifest.version, "digest": pulled.digest,
        "dir": str(pulled.dir),
    }  # fmt: skip
    if as_json:
        _print_json(document)
        return
    click.echo(f"{manifest.name} {manifest.version}  {pulled.digest[:12]}  verified")
    click.echo(f"  {pulled.dir}\nread {pulled.dir / 'README.md'} for how to use it")


@cli.command("generate")
@click.argument("spec")
@click.option("--prompt", "prompts", multiple=True, help="What to draw; may be repeated.")
@click.option("--prompts", "prompts_file", type=click.Path(path_type=Path),
              help="Text file, one prompt a line.")  # fmt: skip
@click.option("--seeds", default="1", show_default=True, help="Such as 7, 101-110 or 1,5,9.")
@click.option("--strength", type=click.FloatRange(-2, 2), help="The published one if left out.")
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True)
@click.option("--base", "base_model", help="The base model, if it lies elsewhere here.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=4, show_default=True)
@click.option("--guidance-scale", type=click.FloatRange(1, 50), default=5.0, show_default=True)
@_registry_option
@click.option("--pulled", type=click.Path(path_type=Path), default=Path("pulled"),
              show_default=True, help="Folder to pull into.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("generated"),
              show_default=True, help="Folder for the images.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def generate_command(
    spec: str, prompts: tuple[str, ...], prompts_file: Path | None, seeds: str,
    strength: float | None, steps: int, guidance_scale: float, base_model: str | None,
    batch_size: int, registry: str, pulled: Path, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Draw images with a published version; each names its adapter, version and digest."""
    words = [*prompts, *_read_prompts(prompts_file)]
    if not words:
        raise BadInput("no prompt", fix='--prompt "a city at sunset" or --prompts FILE')
    numbers = parse_seeds(seeds)
    from styletune.job.generate import generate

    files = generate(
        registry=registry, spec_text=spec, pulled_dir=pulled, out_dir=out, prompts=words,
        seeds=numbers, strength=strength, steps=steps, guidance_scale=guidance_scale,
        base_model=base_model, batch_size=batch_size,
    )  # fmt: skip
    if as_json:
        _print_json({"images": [str(f) for f in files]})
        return
    click.echo(f"{len(files)} images in {out}")


def _read_prompts(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFound("no such file", where=str(file), fix="one prompt a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot be read: {error}", where=str(file)) from None
    return [line.strip() for line in lines if line.strip()]


def parse_seeds(text: str) -> list[int]:
    """``7``, ``101-110``, ``1,5,9`` or a mixture -> seeds in order, each once."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise BadInput(f'"{text}" are not seeds', where="--seeds", fix="7, 101-110 or 1,5,9")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first or last - first >= 10_000 or last >= 2**32:
            raise BadInput(f'"{part}" is not a range of seeds', where="--seeds", fix="101-110")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


@cli.group("registry")
def registry_group() -> None:
    """Look into a registry."""


@registry_group.command("list")
@_registry_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def registry_list_command(registry: str, as_json: bool) -> None:
    """Names and versions."""
    from styletune.registry.store import open_store
    from styletune.registry.versions import list_names, list_versions

    store = open_store(registry, create=False)
    found = {name: [str(v) for v in list_versions(store, name)] for name in list_names(store)}
    if as_json:
        _print_json(found)
        return
    for name, versions in found.items():
        click.echo(f"{name}  {', '.join(versions)}")


@registry_group.command("show")
@click.argument("spec")
@_registry_option
@_json_option
def registry_show_command(spec: str, registry: str, as_json: bool) -> None:  # noqa: ARG001
    """The manifest of a version, as JSON."""
    from styletune.registry.resolve import parse_spec, resolve
    from styletune.registry.store import open_store

    manifest, digest = resolve(open_store(registry, create=False), parse_spec(spec))
    _print_json({"digest": digest, "manifest": manifest.model_dump(mode="json")})


@cli.group("recipe")
def recipe_group() -> None:
    """About recipes themselves."""


@recipe_group.command("schema")
@_json_option
def recipe_schema_command(as_json: bool) -> None:  # noqa: ARG001
    """JSON Schema of a recipe, for editors."""
    from styletune.recipe import recipe_schema

    _print_json(recipe_schema())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; user errors never show a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    wants_json = "--json" in given
    # No model is ever fetched behind the user's back; errors name the command that does it.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # bitsandbytes names an optional kernel package at every start, whether it is used or not.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # A terminated run stops like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cli.main(args=given, standalone_mode=False)
    except StyletuneError as error:
        if wants_json:
            _print_json(error.as_json())
        else:
            _say(f"error: {error}")
        sys.exit(error.exit_code)
    except click.UsageError as error:
        if wants_json:
            _print_json(BadInput(error.format_message(), fix="styletune --help").as_json())
        else:
            error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("\nstopped; nothing is half-written. Give the same command again to go on.")
        sys.exit(130)
    except RuntimeError as error:
        # By name, because torch is not to be imported for it.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        short = BadInput(
            f"the device has too little memory: {str(error).splitlines()[0]}",
            fix="lower train.batch_size, score.batch_size or data.resolution, or set "
            'train.mixed_precision = "bf16"',
        )
        if wants_json:
            _print_json(short.as_json())
        else:
            _say(f"error: {short}")
        sys.exit(short.exit_code)

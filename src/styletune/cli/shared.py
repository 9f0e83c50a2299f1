"""What all commands share: their options, and where their output goes.

Results go to stdout, the rest to stderr.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from styletune.errors import BadInput

if TYPE_CHECKING:
    from styletune.job.prepare import Job

Command = Callable[..., None]


def recipe_options(command: Command) -> Command:
    """Add what every command on a recipe takes: RECIPE, --set, --run-dir, --runs-dir, --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Override one key of the recipe; may be repeated.",
        ),
        click.option("--run-dir", type=click.Path(path_type=Path), help="This run's own folder."),
        click.option(
            "--runs-dir",
            type=click.Path(path_type=Path),
            default=Path("runs"),
            show_default=True,
            help="Folder of all runs.",
        ),
        click.argument("recipe", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


def json_option(command: Command) -> Command:
    """Add ``--json`` to a command, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(
        command
    )


def registry_option(command: Command) -> Command:
    """Add ``--registry``, a folder or bucket URL that the environment may set."""
    return click.option(
        "--registry",
        default="registry",
        show_default=True,
        envvar="STYLETUNE_REGISTRY",
        help="Folder or bucket URL of the registry.",
    )(command)


def first_process() -> bool:
    """Whether this is the only process, or the first that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


def prepare_job(
    recipe: Path,
    runs_dir: Path,
    run_dir: Path | None,
    overrides: Sequence[str],
    many_processes: bool = False,
    planning: bool = False,
) -> Job:
    """Read and check a recipe; the first process prints its warnings on stderr.

    ``many_processes`` says that the command may run under ``accelerate launch``. Raises BadInput
    otherwise, and whatever ``prepare`` raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not many_processes:
        raise BadInput(
            "only training runs in several processes",
            where="accelerate launch",
            fix=f"accelerate launch -m styletune train {recipe}; then styletune run {recipe}",
        )
    from styletune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)  # before the heavy imports
    from styletune.job.prepare import prepare

    job = prepare(
        loaded, runs_dir=runs_dir, run_dir=run_dir, planning=planning, show_progress=first_process()
    )
    if first_process():
        if job.data.note:
            say(f"note: {job.data.note}")
        for warning in job.data.warnings:
            say(f"warning: {warning.code}: {clip(warning.message, 160)}")
    return job


def say(text: str = "") -> None:
    """Print a line for people, on stderr."""
    click.echo(text, err=True)


def print_json(document: Any) -> None:
    """Print a result on stdout. Raises ValueError for NaN, which JSON has not."""
    click.echo(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))


def clip(text: str, limit: int = 400) -> str:
    """A text cut to ``limit`` characters, with an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"

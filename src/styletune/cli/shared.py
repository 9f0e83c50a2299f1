"""What all commands share: their options, and where their output goes.

Results go to stdout, the rest to stderr.
"""

from __future__ import annotations

import functools
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from styletune.places import share_cores
from styletune.text import visible

Command = Callable[..., None]
RUNS_DIR, REGISTRY = Path("runs"), "registry"


def registry_words(registry: str) -> list[str]:
    """The option that names a registry, for a command to type."""
    return ["--registry", registry] if registry != REGISTRY else []


def gathered(argument: str, kind: type[Any]) -> Callable[[Command], Command]:
    """Pass the options that are named like a dataclass's fields as one ``argument``."""
    names = [field.name for field in fields(kind)]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**options: object) -> None:
            values = {name: options.pop(name) for name in names}
            command(**options, **{argument: kind(**values)})

        return run

    return decorate


@dataclass(frozen=True, slots=True)
class Target:
    """What a command on a recipe works on: the recipe's file, and the place of its run."""

    recipe: Path
    overrides: tuple[str, ...]
    runs_dir: Path
    run_dir: Path | None

    def command(self, verb: str, *more: str) -> str:
        """A command on the same recipe and run, as it can be typed: quoted, with the options."""
        words = ["styletune", verb, str(self.recipe)]
        for override in self.overrides:
            words += ["--set", override]
        if self.runs_dir != RUNS_DIR:
            words += ["--runs-dir", str(self.runs_dir)]
        if self.run_dir is not None:
            words += ["--run-dir", str(self.run_dir)]
        return shlex.join([*words, *more])


def recipe_options(command: Command) -> Command:
    """What every command on a recipe takes: ``target`` and ``as_json``."""
    command = gathered("target", Target)(command)
    for option in (
        json_option,
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
            default=RUNS_DIR,
            show_default=True,
            help="Folder of all runs.",
        ),
        click.argument("recipe", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


def computes(command: Command) -> Command:
    """Mark a command that runs models: torch's threads are prepared before it is imported."""

    @functools.wraps(command)
    def run(**options: object) -> None:
        share_cores()
        command(**options)

    return run


class FiniteRange(click.FloatRange):
    """A range of numbers; NaN, which compares with none, is outside of it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Raises UsageError."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def json_option(command: Command) -> Command:
    """Add ``--json`` to a command, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(
        command
    )


def registry_option(command: Command) -> Command:
    """Add ``--registry``, a folder or bucket URL that the environment may set."""
    return click.option(
        "--registry",
        default=REGISTRY,
        show_default=True,
        envvar="STYLETUNE_REGISTRY",
        help="Folder or bucket URL of the registry.",
    )(command)


def say(text: str = "") -> None:
    """Print a line for people, on stderr."""
    click.echo(visible(text), err=True)


def print_json(document: Any) -> None:
    """Print a result on stdout. Raises ValueError for NaN, which JSON has not."""
    click.echo(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))


def clip(text: str, limit: int = 400) -> str:
    """A text for a terminal, cut to ``limit`` characters, with an ellipsis for what was cut."""
    text = visible(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"

"""The command line: parse, call one function, print."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from styletune import __version__, api
from styletune.cli.data import data_group, init_command
from styletune.cli.published import generate_command, pull_command, registry_group
from styletune.cli.recipe import (
    plan_command,
    publish_command,
    run_command,
    score_command,
    train_command,
)
from styletune.cli.shared import json_option, print_json, say
from styletune.errors import BadInput, StyletuneError

EXIT_CODES = (
    "Exit codes: 0 done, 1 check or gate failed, 2 bad input, 3 not found, 4 integrity, 5 conflict."
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="styletune")
def cli() -> None:
    """Turn a brand's visual style into a versioned, measured SDXL LoRA."""


@cli.group("recipe")
def recipe_group() -> None:
    """About recipes themselves."""


@recipe_group.command("schema")
@json_option
def recipe_schema_command(as_json: bool) -> None:  # noqa: ARG001
    """JSON Schema of a recipe, for editors."""
    print_json(api.recipe_schema())


for _command in (
    init_command,
    data_group,
    plan_command,
    train_command,
    score_command,
    publish_command,
    run_command,
    pull_command,
    generate_command,
    registry_group,
):
    cli.add_command(_command)


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
        _fail(error, wants_json)
    except click.UsageError as error:
        if wants_json:
            print_json(BadInput(error.format_message(), fix="styletune --help").as_json())
        else:
            error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        say("\nstopped; nothing is half-written. The same command goes on from what is done.")
        sys.exit(130)
    except OSError as error:
        # A name that no file can have, a folder without permission, a broken disk.
        place = str(error.filename or "")
        _fail(BadInput(error.strerror or str(error), where=place), wants_json)
    except RuntimeError as error:
        # By name, because torch is not to be imported for it.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        short = BadInput(
            f"the device has too little memory: {str(error).splitlines()[0]}",
            fix="lower train.batch_size, score.batch_size or data.resolution, or set "
            'train.mixed_precision = "bf16"',
        )
        _fail(short, wants_json)


def _fail(error: StyletuneError, wants_json: bool) -> NoReturn:
    """Print what is wrong and exit with its code."""
    if wants_json:
        print_json(error.as_json())
    else:
        say(f"error: {error}")
    sys.exit(error.exit_code)

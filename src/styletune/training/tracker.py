"""The tracker that a run also logs to: whether it is installed, and can start without a person."""

from __future__ import annotations

import configparser
import netrc
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.errors import BadInput
from styletune.recipe.training_sections import TrainSection

if TYPE_CHECKING:
    from accelerate import Accelerator

_WHERE = "[train] tracker"


def library_of(train: TrainSection) -> str | None:
    """The tracker as Accelerate names it; None for none."""
    return None if train.tracker == "none" else train.tracker


def check_machine(train: TrainSection) -> None:
    """Refuse a precision or a tracker that this machine does not have. Raises BadInput."""
    _check_tracker(train)
    if train.mixed_precision == "fp16":
        import torch

        if not torch.cuda.is_available():
            raise BadInput(
                "fp16 needs a GPU", where="[train] mixed_precision", fix='choose "no" or "bf16"'
            )


def _check_tracker(train: TrainSection) -> None:
    """Refuse a tracker that is not installed, or that would ask for a key and wait.

    Raises:
        BadInput: says what to install or set.
    """
    if library_of(train) is None:
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise BadInput(
            "wandb is not installed", where=_WHERE, fix='pip install "styletune[wandb]"'
        ) from None
    if not _wandb_is_offline() and not _wandb_has_key():
        raise BadInput(
            "wandb has no API key, and nobody may be there to type one",
            where=_WHERE,
            fix="wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline",
        )


def start_tracker(
    train: TrainSection,
    accelerator: Accelerator,
    config: Mapping[str, Any],
    run: Mapping[str, str],
) -> None:
    """Start the section's tracker, if any.

    Args:
        train: its ``tracker`` and ``tracker_project``.
        accelerator: made with it.
        config: the settings that it shows.
        run: its name, and the folder that it may write to.

    Raises:
        BadInput: it does not start.
    """
    library = library_of(train)
    if library is None:
        return
    try:
        accelerator.init_trackers(
            train.tracker_project, config=dict(config), init_kwargs={library: dict(run)}
        )
    except Exception as error:
        raise BadInput(
            f"{library} does not start: {error}",
            where=_WHERE,
            fix="wandb login, or WANDB_MODE=offline",
        ) from error


def _wandb_is_offline() -> bool:
    offline = ("offline", "disabled", "dryrun")
    if mode := os.environ.get("WANDB_MODE"):
        return mode in offline
    # "wandb offline" writes the first of them.
    settings = configparser.ConfigParser(default_section="default")
    settings.read([Path("wandb/settings"), Path("~/.config/wandb/settings").expanduser()])
    return settings.defaults().get("mode") in offline


def _wandb_has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    address = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return logins.authenticators(host) is not None

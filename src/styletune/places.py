"""What a machine offers: the user's cache folder, a device, and errors of its file systems."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_REASONS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "a folder is where a file should be",
    errno.EEXIST: "a file is where a folder should be",
}


def user_cache_dir() -> Path | None:
    """``$STYLETUNE_CACHE``, else ``$XDG_CACHE_HOME/styletune``, else ``~/.cache/styletune``.

    A leading ``~`` is the home folder also where no shell has expanded it. None for a user
    without a home. The folder need not exist.
    """
    try:
        if own := os.environ.get("STYLETUNE_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "styletune"
    except RuntimeError:
        return None


def describe_write_error(number: int | None) -> str | None:
    """Why writing failed, in words, from an ``errno``; None for an unknown one."""
    return _REASONS.get(number or 0)


def device_name() -> str:
    """Where models run on this machine: "cuda" with a usable card, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

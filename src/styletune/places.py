"""What a machine offers: the user's cache folder, a device, and errors of its file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

_CPU_TIMES = Path("/proc/stat")  # of all cores: user, nice, system, idle, iowait, …
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


def resolve_place(text: str, folder: Path) -> Path:
    """The absolute path that a settings file means: relative to ``folder``, ``~`` is the home.

    Links are not followed: in the Hub's cache a link has the name and its target is a hash.
    """
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # no such user: a folder may be called that
        path = path.expanduser()
    return Path(os.path.abspath(folder / path))  # noqa: PTH100


def describe_write_error(number: int | None) -> str | None:
    """Why writing failed, in words, from an ``errno``; None for an unknown one."""
    return _REASONS.get(number or 0)


def device_name() -> str:
    """Where models run on this machine: "cuda" with a usable card, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def share_cores() -> None:
    """Prepare torch's threads for a machine on which other processes are busy.

    OpenMP's threads spin while they wait for each other. On an idle machine that is fastest; beside
    a busy process a step takes several times as long, because the thread that has work does
    not get a core. So they sleep instead where another process keeps a core busy now, which gives
    the same numbers. Always sleeping would halve the speed of small models on virtual machines.
    Processes that were started together share the cores.

    Takes effect only before torch is imported; what the user has set stays.
    """
    variables = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    if not any(name in os.environ for name in variables) and _busy_cores() > 0.5:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _busy_cores(seconds: float = 0.1) -> float:
    """How many cores other processes keep busy; 0 where the system does not tell."""

    def ticks() -> tuple[int, int]:
        fields = [int(word) for word in _CPU_TIMES.read_text().split("\n", 1)[0].split()[1:]]
        return sum(fields[:8]), fields[3] + fields[4]

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total_after, idle_after = ticks()
    except (OSError, ValueError, IndexError):
        return 0.0
    passed = total_after - total
    share = 1 - (idle_after - idle) / passed if passed > 0 else 0.0
    return share * (os.cpu_count() or 1)

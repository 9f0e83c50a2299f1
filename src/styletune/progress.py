"""The one display of long work: a bar with an ETA on a terminal, plain lines elsewhere.

Everything goes to stderr, so that stdout stays free for results.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 10.0

Advance = Callable[[int, str], None]

# One console: a preview's bar inside the training bar must know about it.
_CONSOLE = Console(stderr=True)


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Advance]:
    """Show work of ``total`` units, ``done`` of which were there already.

    ``shown=False`` is for all but the first of several processes. Yields ``advance(units, note)``;
    the note is a short text such as "loss 0.12".
    """
    if not shown:
        yield _nothing
        return
    if not _CONSOLE.is_terminal:
        yield _plain_lines(title, total, done)
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_CONSOLE) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(units: int, note: str) -> None:
            bar.advance(task, units)
            if note:
                bar.update(task, note=note)

        yield advance


def notify(text: str) -> None:
    """A line for the user about work that goes on, such as a warning."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _nothing(units: int, note: str) -> None:
    """Progress that nobody sees."""


def _plain_lines(title: str, total: int, done: int) -> Advance:
    start, count, last = time.monotonic(), done, 0.0

    def advance(units: int, note: str) -> None:
        nonlocal count, last
        count += units
        now = time.monotonic()
        if now - last < LINE_EVERY_S and count < total:
            return
        last = now
        speed = (count - done) / max(now - start, 1e-9)
        left_s = (total - count) / speed if speed > 0 else 0.0
        rate = "" if "/s" in note else f"{speed:.1f}/s"
        message = f"{title}: {count}/{total} {note} {rate}, {left_s:.0f} s left"
        print(" ".join(message.split()).replace(" ,", ","), file=sys.stderr, flush=True)  # noqa: T201

    return advance

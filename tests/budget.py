"""How long each test file took, and whether one of them took more than its share."""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = 20
# A file may take long on a slow machine, or be most of a short session, but not both.
LONGEST_S = 120.0
LARGEST_SHARE = 1 / 3
FEWEST_FILES = 10


def slowest_files(seconds: Mapping[str, float]) -> list[str]:
    """The slowest files with their seconds, the slowest first."""
    slowest = sorted(seconds, key=lambda file: -seconds[file])[:SHOWN]
    return [f"{seconds[file]:7.1f} s  {file}" for file in slowest]


def over_budget(seconds: Mapping[str, float]) -> list[str]:
    """Files of more than two minutes that took more than a third of the whole session.

    A session of a few files is somebody at work on them, and has no budget.
    """
    if len(seconds) < FEWEST_FILES:
        return []
    limit = max(LONGEST_S, LARGEST_SHARE * sum(seconds.values()))
    return [
        f"{file} took {taken:.0f} s of {sum(seconds.values()):.0f} s: split it, share what it sets "
        "up, or mark a test slow"
        for file, taken in seconds.items()
        if taken > limit
    ]

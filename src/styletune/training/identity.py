"""What a run and its checkpoints belong to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """SHA-256 sums (hex) of everything that decides an adapter.

    ``training_hash`` is of the recipe's keys that decide the adapter, and of the adapter that
    training starts from; files have it as ``recipe_hash``.
    """

    training_hash: str
    data_fingerprint: str
    data_order: str
    base_hash: str


def hash_of(*parts: str) -> str:
    """SHA-256 (hex) of all parts."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def with_start(recipe_hash: str, start_sha256: str | None) -> str:
    """The hash of a recipe and of the adapter that training starts from, if any."""
    return recipe_hash if start_sha256 is None else hash_of(recipe_hash, start_sha256)


def short_hash(*parts: str) -> str:
    """Ten hex digits that stand for all parts, for names of files and folders."""
    return hash_of(*parts)[:10]

"""What a run and its checkpoints belong to."""

from __future__ import annotations

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

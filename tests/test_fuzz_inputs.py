"""A small share of the mutants of ``scripts/fuzz_inputs.py``."""

from __future__ import annotations

import fuzz_inputs


def test_mutants_are_accepted_or_refused() -> None:
    """No other exception, none above 2 s or 500 MiB."""
    tried, faults = fuzz_inputs.run(seed=1, count=700, most_seconds=60)
    assert faults == []
    assert tried == 700


def test_mutants_are_the_same_again() -> None:
    """A seed names its mutant; most differ from what they were made from."""
    first = list(fuzz_inputs.mutants(3, 70))
    assert first == list(fuzz_inputs.mutants(3, 70))
    assert sum(c != fuzz_inputs.LOADERS[k][0] for k, _, c in first) > 60

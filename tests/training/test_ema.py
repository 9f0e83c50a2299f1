"""The moving average of what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from styletune.training.ema import ema_decay_at, ema_start, ema_swap, ema_update


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": nn.Parameter(torch.randn(3, 4, generator=generator)),
        "b": nn.Parameter(torch.randn(5, generator=generator)),
    }


def test_average_in_closed_form() -> None:
    """After n steps of +1 the average is the sum of values times their remaining weights."""
    named = parameters()
    start = {n: p.detach().clone() for n, p in named.items()}
    shadow = ema_start(named)
    decays = [min(0.6, (1 + s) / (10 + s)) for s in range(20)]
    for step in range(20):
        with torch.no_grad():
            for parameter in named.values():
                parameter.add_(1)
        ema_update(shadow, named, 0.6, step)
    behind, weight = 0.0, 1.0
    for step in reversed(range(20)):
        behind += weight * (1 - decays[step]) * (step + 1)
        weight *= decays[step]
    for name in named:
        assert torch.allclose(shadow[name], start[name] + behind, atol=1e-4)


def test_decay_warms_up() -> None:
    """The decay starts at 1/10, grows, and stays at the one asked for."""
    decays = [ema_decay_at(0.99, s) for s in range(2000)]
    assert decays[0] == pytest.approx(0.1)
    assert decays == sorted(decays)
    assert decays[-1] == 0.99


def test_early_average_forgets_the_start() -> None:
    """The first update takes nine tenths of the new weights, however long the memory asked for."""
    named = {"a": nn.Parameter(torch.zeros(2))}
    shadow = ema_start(named)
    with torch.no_grad():
        named["a"].add_(1)
    ema_update(shadow, named, 0.999, 0)
    assert torch.allclose(shadow["a"], torch.full((2,), 0.9))


def test_start_is_a_copy() -> None:
    """Training goes on without moving the average, which is float32 whatever is trained."""
    named = {"a": nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}
    shadow = ema_start(named)
    with torch.no_grad():
        named["a"].add_(1)
    assert torch.equal(shadow["a"], torch.ones(2))
    assert shadow["a"].dtype == torch.float32
    assert not shadow["a"].requires_grad
    ema_update(shadow, named, 0.9, 1000)
    assert torch.allclose(shadow["a"], torch.full((2,), 1.1))


def test_swap_gives_the_live_weights_back_bit_for_bit() -> None:
    """Inside are the averages, afterwards the live values, also when something fails inside."""
    named = parameters()
    live = {n: p.detach().clone() for n, p in named.items()}
    shadow = {n: t + 1 / 3 for n, t in ema_start(named).items()}

    def look() -> None:
        with ema_swap(shadow, named):
            assert all(torch.equal(p, shadow[n]) for n, p in named.items())
            raise RuntimeError("stopped while looking")

    with pytest.raises(RuntimeError, match="looking"):
        look()
    assert all(torch.equal(p, live[n]) for n, p in named.items())
    assert all(p.requires_grad for p in named.values())

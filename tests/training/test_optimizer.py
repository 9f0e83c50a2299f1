"""Optimizers, groups and rates, against outside implementations and closed forms."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from styletune.errors import BadInput
from styletune.recipe import Recipe
from styletune.recipe.training_sections import OptimizerSection
from styletune.training.groups import ParameterGroup, split_lora_plus
from styletune.training.optimizer import (
    learning_rate_at,
    make_optimizer,
    set_rates,
    to_eval,
    to_train,
)

STEPS = 100
NAMES = [
    "adamw",
    "adamw8bit",
    "paged-adamw8bit",
    "adafactor",
    "prodigy",
    "schedule-free-adamw",
    "lion",
]


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    """A LoRA pair: A is random and 8-bit's size, B is 0, as adapters begin."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "block.lora_A.weight": nn.Parameter(torch.randn(64, 80, generator=generator)),
        "block.lora_B.weight": nn.Parameter(torch.zeros(6, 64)),
    }


def set_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    for i, parameter in enumerate(named.values()):
        generator = torch.Generator().manual_seed(1000 * step + i)
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def settings(name: str = "adamw", **keys: float | str) -> OptimizerSection:
    """A section with a large rate and decay."""
    rate = 1.0 if name == "prodigy" else 0.01
    given = {"name": name, "learning_rate": rate, "weight_decay": 0.1, **keys}
    return OptimizerSection.model_validate(given)


def set_step(
    optimizer: torch.optim.Optimizer, step: int, section: OptimizerSection, steps: int = STEPS
) -> float:
    """Set the rates of a step, as the loop does."""
    rate = learning_rate_at(step, section, steps)
    set_rates(optimizer, rate)
    return rate


def moved(chosen: OptimizerSection, steps: int = 1, factor: float = 1.0) -> dict[str, nn.Parameter]:
    """The parameters after some steps."""
    named = parameters()
    optimizer = make_optimizer([ParameterGroup("unet", named, factor)], chosen)
    for step in range(steps):
        set_gradients(named, step)
        set_step(optimizer, step, chosen)
        optimizer.step()
    return named


def test_adamw_matches_torch_unfused() -> None:
    """Three steps land where torch's plain implementation lands."""
    ours = moved(settings(), steps=3)
    theirs = parameters()
    oracle = torch.optim.AdamW(theirs.values(), lr=0.01, weight_decay=0.1, foreach=False)
    for step in range(3):
        set_gradients(theirs, step)
        oracle.step()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6)


@pytest.mark.parametrize("name", ["adamw8bit", "paged-adamw8bit"])
def test_8bit_adamw_stays_near_adamw_and_is_8bit(name: str) -> None:
    """Large moments are one byte each, small ones 32 bits, and the path is AdamW's."""
    named = parameters()
    chosen = settings(name)
    optimizer = make_optimizer([ParameterGroup("unet", named, 1.0)], chosen)
    for step in range(5):
        set_gradients(named, step)
        set_step(optimizer, step, chosen)
        optimizer.step()
    large, small = named.values()
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[small]["state1"].dtype == torch.float32
    exact = moved(settings(), steps=5)
    for key, start in parameters().items():
        step_size = (exact[key] - start).abs().mean()
        assert (named[key] - exact[key]).abs().mean() < 0.1 * step_size
    assert torch.allclose(small, exact["block.lora_B.weight"], atol=1e-5)


def test_lion_moves_by_the_sign() -> None:
    """The first step is rate times the gradient's sign, after decoupled decay."""
    after = moved(settings("lion"))
    before = parameters()
    set_gradients(before, 0)
    for name, start in before.items():
        assert start.grad is not None
        wanted = start * (1 - 0.01 * 0.1) - 0.01 * start.grad.sign()
        assert torch.allclose(after[name], wanted, atol=1e-6)


def test_lion_blends_momentum_with_the_gradient() -> None:
    """The second step is the sign of beta1 · m + (1 − beta1) · g, m decaying with beta2."""
    chosen = settings("lion", beta1=0.5, beta2=0.9, weight_decay=0.0)
    one, two, start = moved(chosen, 1), moved(chosen, 2), parameters()
    set_gradients(start, 0)
    first = {n: p.grad.clone() for n, p in start.items() if p.grad is not None}
    set_gradients(start, 1)
    for name, parameter in start.items():
        assert parameter.grad is not None
        blend = 0.5 * (0.1 * first[name]) + 0.5 * parameter.grad
        assert torch.allclose(two[name], one[name] - 0.01 * blend.sign(), atol=1e-6)


def test_adafactor_first_step_in_closed_form() -> None:
    """The rank-one second moment, clipped to RMS 1, times the given rate (arXiv 1804.04235)."""
    after = moved(settings("adafactor"))
    before = parameters()
    set_gradients(before, 0)
    for name, start in before.items():
        assert start.grad is not None
        square = start.grad.double().square() + 1e-30
        estimate = torch.outer(square.mean(1), square.mean(0)) / square.mean()
        update = start.grad.double() / estimate.sqrt()
        update /= max(1.0, update.square().mean().sqrt().item())
        wanted = start * (1 - 0.01 * 0.1) - 0.01 * update
        assert torch.allclose(after[name].double(), wanted, atol=1e-5)


def test_adafactor_state_is_factored() -> None:
    """The second moment of a matrix takes one row and one column."""
    named = parameters()
    optimizer = make_optimizer([ParameterGroup("unet", named, 1.0)], settings("adafactor"))
    set_gradients(named, 0)
    optimizer.step()
    state = optimizer.state[named["block.lora_A.weight"]]
    tensors = [v.numel() for v in state.values() if isinstance(v, torch.Tensor)]
    assert sorted(tensors) == [1, 64, 80]


def test_prodigy_finds_a_rate_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Its estimate d grows from 1e-6 to a size that solves the problem."""
    goal = torch.randn(64, 80, generator=torch.Generator().manual_seed(5))
    named = {"weight": nn.Parameter(torch.zeros(64, 80))}
    chosen = settings("prodigy", learning_rate=1.0, weight_decay=0.001)
    optimizer = make_optimizer([ParameterGroup("unet", named, 1.0)], chosen)
    estimates, losses = [], []
    for step in range(110):
        loss = (named["weight"] - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        set_step(optimizer, step, chosen)
        optimizer.step()
        estimates.append(optimizer.param_groups[0]["d"])
        losses.append(loss.item())
    assert estimates == sorted(estimates)
    assert estimates[-1] > 1000 * estimates[0]
    assert losses[-1] < 0.1 * losses[0]
    assert capsys.readouterr().out == ""


def test_prodigy_schedule_scales_its_step() -> None:
    """Half the multiplier is half the first step."""
    whole = moved(settings("prodigy", learning_rate=1.0, weight_decay=0.0))
    half = moved(settings("prodigy", learning_rate=0.5, weight_decay=0.0))
    b = "block.lora_B.weight"
    assert torch.allclose(whole[b], 2 * half[b], rtol=1e-4)
    assert whole[b].abs().max() > 0


def test_schedule_free_average_is_the_mean_of_its_iterates() -> None:
    """With a constant rate, evaluation weights are the average of z over all steps."""
    named = parameters()
    chosen = settings("schedule-free-adamw", weight_decay=0.0)
    optimizer = make_optimizer([ParameterGroup("unet", named, 1.0)], chosen)
    iterates = []
    for step in range(6):
        set_gradients(named, step)
        set_step(optimizer, step, chosen)
        optimizer.step()
        iterates.append({n: optimizer.state[p]["z"].clone() for n, p in named.items()})
    live = {n: p.detach().clone() for n, p in named.items()}
    to_eval(optimizer)
    for name, parameter in named.items():
        mean = torch.stack([z[name] for z in iterates]).mean(dim=0)
        assert torch.allclose(parameter, mean, atol=1e-5)
        assert not torch.equal(parameter, live[name])
    to_train(optimizer)
    for name, parameter in named.items():
        assert torch.allclose(parameter, live[name], atol=1e-5)


def test_schedule_free_warm_up_is_its_own() -> None:
    """Rates set from outside do what the library's warm-up does."""
    from schedulefree import AdamWScheduleFree

    ours = moved(settings("schedule-free-adamw", warmup_steps=4), steps=7)
    theirs = parameters()
    oracle = AdamWScheduleFree(theirs.values(), lr=0.01, weight_decay=0.1, warmup_steps=4)
    oracle.train()
    for step in range(7):
        set_gradients(theirs, step)
        oracle.step()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "schedule-free-adamw"])
def test_modes_change_nothing_elsewhere(name: str) -> None:
    """Only schedule-free has two sets of weights; switching is a no-op for the others."""
    named = parameters()
    chosen = settings(name)
    optimizer = make_optimizer([ParameterGroup("unet", named, 1.0)], chosen)
    set_gradients(named, 0)
    optimizer.step()
    before = copy.deepcopy(named)
    to_eval(optimizer)
    to_train(optimizer)
    assert all(torch.equal(before[n], named[n]) for n in named)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    """A small regression is learned, by prodigy after it has found its rate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 300), nn.Tanh(), nn.Linear(300, 16))
    inputs, goal = torch.randn(32, 16), torch.randn(32, 16)
    named = dict(model.named_parameters())
    chosen = settings(name, learning_rate=1.0 if name == "prodigy" else 0.003, weight_decay=0.01)
    optimizer = make_optimizer([ParameterGroup("unet", named, 1.0)], chosen)
    losses = []
    for step in range(120 if name == "prodigy" else 40):
        loss = (model(inputs) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        set_step(optimizer, step, chosen)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_rate_factor_scales_a_group() -> None:
    """A factor of 0.5 halves the first step, 0 freezes."""
    start = parameters()
    whole = moved(settings(weight_decay=0.0))
    half = moved(settings(weight_decay=0.0), factor=0.5)
    none = moved(settings(weight_decay=0.0), factor=0.0)
    for name in start:
        step = whole[name] - start[name]
        assert torch.allclose(half[name] - start[name], step / 2, atol=1e-6)
        assert torch.equal(none[name], start[name])


def test_lora_plus_multiplies_the_step_of_b() -> None:
    """With a ratio of 2 B moves twice as far and A as before (arXiv 2402.12354)."""
    start = parameters()
    plain = moved(settings(weight_decay=0.0))
    plus = moved(settings(weight_decay=0.0, lora_plus_ratio=2.0))
    a, b = start
    assert torch.equal(plus[a], plain[a])
    assert torch.allclose(plus[b], 2 * plain[b], atol=1e-6)
    assert plain[b].abs().max() > 0


def test_lora_plus_splits_by_name() -> None:
    """No parameter is lost or doubled; the factors multiply."""
    named = parameters() | {"block.magnitude": nn.Parameter(torch.ones(3))}
    rest, faster = split_lora_plus(ParameterGroup("unet", named, 0.5), 16)
    assert list(faster.parameters) == ["block.lora_B.weight"]
    assert faster.rate_factor == 8
    assert list(rest.parameters) == ["block.lora_A.weight", "block.magnitude"]
    assert rest.rate_factor == 0.5
    assert split_lora_plus(ParameterGroup("unet", named, 0.5), 1) == [
        ParameterGroup("unet", named, 0.5)
    ]


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"optimizer": {"lora_plus_ratio": 4.0}, "adapter": {"kind": "loha"}}, "lora and dora"),
        (
            {"optimizer": {"name": "prodigy", "learning_rate": 1.0, "lora_plus_ratio": 4.0}},
            "one learning rate",
        ),
        ({"optimizer": {"name": "adafactor", "beta1": 0.5}}, "no moments"),
        ({"optimizer": {"name": "adam"}}, "'adamw', 'adamw8bit'"),
        ({"optimizer": {"schedule": "cosin"}}, "'constant', 'linear'"),
    ],
)
def test_settings_without_a_use_are_refused(
    sections: dict[str, dict[str, object]], word: str
) -> None:
    """A setting that would silently do nothing is an error of the recipe."""
    with pytest.raises(ValidationError, match=word):
        Recipe.model_validate({"data": {"path": "images"}, **sections})


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_rate_zero_is_frozen(name: str) -> None:
    """Neither steps nor weight decay move it, and the others learn as if it were not there."""
    chosen = settings(name, learning_rate=1.0 if name == "prodigy" else 0.01)
    both, alone = parameters(), {"weight": parameters()["block.lora_A.weight"]}
    a, b = both.values()
    groups = [ParameterGroup("unet", {"a": a}, 1.0), ParameterGroup("text", {"b": b}, 0.0)]
    with torch.no_grad():
        b.add_(1)
    pair = make_optimizer(groups, chosen)
    single = make_optimizer([ParameterGroup("unet", alone, 1.0)], chosen)
    for step in range(5):
        set_gradients(both, step)
        set_gradients(alone, step)
        set_step(pair, step, chosen)
        set_step(single, step, chosen)
        pair.step()
        single.step()
    assert torch.equal(b, torch.ones_like(b))
    assert torch.equal(a, alone["weight"])
    assert not torch.equal(a, parameters()["block.lora_A.weight"])


@pytest.mark.parametrize(
    ("name", "package"),
    [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt"), ("lion", "bitsandbytes")],
)
def test_missing_library_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its library an optimizer is refused with what to install."""
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=package) as caught:
        make_optimizer([ParameterGroup("unet", parameters(), 1.0)], settings(name))
    assert f"pip install {package}" in caught.value.fix


@pytest.mark.parametrize("warmup_steps", [0, 7])
@pytest.mark.parametrize(
    ("schedule", "library", "options"),
    [
        ("constant", "constant_with_warmup", {}),
        ("linear", "linear", {}),
        ("cosine", "cosine", {}),
        ("polynomial", "polynomial", {"lr_end": 0.0, "power": 2.0}),
    ],
)
def test_schedules_match_transformers(
    schedule: str, library: str, options: dict[str, float], warmup_steps: int
) -> None:
    """After the warm-up every rate is the library's; in it ours is one step ahead, never 0."""
    from transformers import get_scheduler

    steps, peak = 50, 3e-4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = get_scheduler(
        library,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs=options,
    )
    wanted = []
    for _ in range(steps):
        wanted.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    section = settings(
        learning_rate=peak, warmup_steps=warmup_steps, schedule=schedule, schedule_power=2.0
    )
    ours = [learning_rate_at(s, section, steps) for s in range(steps)]
    assert ours[warmup_steps:] == pytest.approx(wanted[warmup_steps:], rel=1e-6)
    assert ours[: max(0, warmup_steps - 1)] == pytest.approx(wanted[1:warmup_steps], rel=1e-6)
    assert ours[0] > 0
    assert ours[-1] > 0


def test_set_rates_follows_the_schedule() -> None:
    """Each group's rate is its factor times the schedule."""
    named = parameters()
    a, b = named
    chosen = settings(schedule="linear", warmup_steps=2)
    groups = [
        ParameterGroup("unet", {a: named[a]}, 1.0),
        ParameterGroup("text", {b: named[b]}, 0.1),
    ]
    optimizer = make_optimizer(groups, chosen)
    for step, rate in [(0, 0.005), (1, 0.01), (2, 0.01), (6, 0.005), (9, 0.00125)]:
        assert set_step(optimizer, step, chosen, steps=10) == pytest.approx(rate)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([rate, rate / 10])

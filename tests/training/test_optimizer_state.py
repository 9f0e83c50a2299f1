"""Resuming from a packed state is the same run, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from styletune.errors import IntegrityError
from styletune.recipe.training_sections import OptimizerSection
from styletune.training.groups import ParameterGroup
from styletune.training.optimizer import (
    learning_rate_at,
    make_optimizer,
    set_rates,
    to_eval,
    to_train,
)
from styletune.training.optimizer_state import (
    pack_scaler,
    pack_state,
    unpack_scaler,
    unpack_state,
)

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers")
NAMES = [
    "adamw",
    "adamw8bit",
    "paged-adamw8bit",
    "adafactor",
    "prodigy",
    "schedule-free-adamw",
    "lion",
]
ONE_RATE = ("prodigy",)


def settings(name: str) -> OptimizerSection:
    keys = {
        "name": name,
        "learning_rate": 1.0 if name == "prodigy" else 0.003,
        "weight_decay": 0.01,
        "schedule": "constant" if name == "schedule-free-adamw" else "cosine",
        "warmup_steps": 3,
        "lora_plus_ratio": 1.0 if name in ONE_RATE else 4.0,
    }
    return OptimizerSection.model_validate(keys)


class Net(nn.Module):
    """A frozen product with a low-rank update (B at 0), a large layer and a small one."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.lora_A = nn.Parameter(torch.randn(8, 16, generator=generator))
        self.lora_B = nn.Parameter(torch.zeros(16, 8))
        self.wide = nn.Parameter(torch.randn(16, 320, generator=generator) / 4)
        self.narrow = nn.Parameter(torch.randn(320, 2, generator=generator) / 18)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x + x @ self.lora_A.T @ self.lora_B.T
        return self.gain * (torch.tanh(x @ self.wide) @ self.narrow)


def build(
    name: str, device: str = "cpu"
) -> tuple[Net, dict[str, nn.Parameter], torch.optim.Optimizer]:
    net = Net().to(device)
    named = dict(net.named_parameters())
    first = {n: p for n, p in named.items() if n != "gain"}
    factor = 1.0 if name in ONE_RATE else 0.5
    groups = [
        ParameterGroup("unet", first, 1.0),
        ParameterGroup("gain", {"gain": named["gain"]}, factor),
    ]
    return net, named, make_optimizer(groups, settings(name))


def train(net: Net, optimizer: torch.optim.Optimizer, name: str, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(24, 16, generator=generator).to(net.wide.device)
        loss = (net(inputs) - inputs[:, :2].sin()).square().mean()
        set_rates(optimizer, learning_rate_at(step, settings(name), steps=12))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def through_files(tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[Any, Any]:
    """What comes back from safetensors bytes and strict JSON text."""
    return load(save(tensors)), json.loads(json.dumps(facts, allow_nan=False, sort_keys=True))


def unchanged(optimizer: Any) -> Any:
    return optimizer


def interrupted(
    name: str,
    at: int,
    before: Callable[[Any], Any] = unchanged,
    after: Callable[[Any], Any] = unchanged,
    device: str = "cpu",
) -> Net:
    """Train to ``at``, save, and go on to the end in fresh objects.

    ``before`` and ``after`` are what happens to the fresh optimizer around unpacking.
    """
    net, named, optimizer = build(name, device)
    train(net, optimizer, name, 0, at)
    tensors, facts = through_files(*pack_state(optimizer, list(named)))
    weights = load(save({n: p.detach().cpu() for n, p in named.items()}))
    net, named, optimizer = build(name, device)
    with torch.no_grad():
        for key, parameter in named.items():
            parameter.copy_(weights[key])
    prepared = before(optimizer)
    unpack_state(prepared, list(named), tensors, facts)
    train(net, after(prepared), name, at, 12)
    return net


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [0, 1, 5])
def test_resumed_run_is_bit_identical(name: str, at: int) -> None:
    """Stopped before the first, in the warm-up or later: the same weights in the end."""
    whole, _, optimizer = build(name)
    train(whole, optimizer, name, 0, 12)
    resumed = interrupted(name, at)
    for (key, wanted), parameter in zip(
        whole.named_parameters(), resumed.parameters(), strict=True
    ):
        assert torch.equal(wanted, parameter), key


@pytest.mark.parametrize("name", NAMES)
def test_the_state_matters(name: str) -> None:
    """Without the state the same steps end elsewhere, so the test above can fail."""
    whole, _, optimizer = build(name)
    train(whole, optimizer, name, 0, 12)
    forgetful, named, optimizer = build(name)
    train(forgetful, optimizer, name, 0, 5)
    fresh, fresh_named, optimizer = build(name)
    with torch.no_grad():
        for key, parameter in fresh_named.items():
            parameter.copy_(named[key])
    train(fresh, optimizer, name, 5, 12)
    assert not torch.equal(whole.wide, fresh.wide)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prepared", ["before", "after"])
def test_state_survives_accelerate(name: str, prepared: str) -> None:
    """Wrapped by Accelerate before or after unpacking, it is the same run too."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    whole, _, optimizer = build(name)
    train(whole, optimizer, name, 0, 12)
    resumed = interrupted(name, 5, **{prepared: accelerator.prepare})
    assert torch.equal(whole.wide, resumed.wide)
    assert torch.equal(whole.lora_B, resumed.lora_B)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NAMES)
def test_resumed_run_is_bit_identical_on_a_gpu(name: str) -> None:
    """On the device, where paged moments really are paged, the weights are the same too."""
    whole, _, optimizer = build(name, "cuda")
    train(whole, optimizer, name, 0, 12)
    resumed = interrupted(name, 5, device="cuda")
    assert torch.equal(whole.wide, resumed.wide)


def test_looking_at_schedule_free_weights_leaves_the_run() -> None:
    """With the live weights put back after a look at the averages, nothing has happened."""
    name = "schedule-free-adamw"
    whole, _, optimizer = build(name)
    train(whole, optimizer, name, 0, 12)
    net, named, optimizer = build(name)
    train(net, optimizer, name, 0, 5)
    live = {n: p.detach().clone() for n, p in named.items()}
    before, _ = pack_state(optimizer, list(named))
    to_eval(optimizer)
    assert not torch.equal(net.wide, live["wide"])
    to_train(optimizer)
    with torch.no_grad():
        for key, parameter in named.items():
            parameter.copy_(live[key])
    after, _ = pack_state(optimizer, list(named))
    assert all(torch.equal(before[k], after[k]) for k in before)
    train(net, optimizer, name, 5, 12)
    assert torch.equal(whole.wide, net.wide)


@pytest.mark.parametrize("training", [True, False])
def test_schedule_free_mode_is_packed(training: bool) -> None:
    """Which of its two sets of weights was in place comes back with the state."""
    _, named, optimizer = build("schedule-free-adamw")
    if not training:
        to_eval(optimizer)
    tensors, facts = through_files(*pack_state(optimizer, list(named)))
    _, named, fresh = build("schedule-free-adamw")
    unpack_state(fresh, list(named), tensors, facts)
    assert [g["train_mode"] for g in fresh.param_groups] == [training] * len(fresh.param_groups)


def test_infinite_settings_survive_json() -> None:
    """Prodigy's unlimited growth and tuples of betas are not JSON, and come back all the same."""
    _, named, optimizer = build("prodigy")
    tensors, facts = through_files(*pack_state(optimizer, list(named)))
    _, named, fresh = build("prodigy")
    fresh.param_groups[0] |= {"growth_rate": 1.0, "betas": (0.0, 0.0)}
    unpack_state(fresh, list(named), tensors, facts)
    assert fresh.param_groups[0]["growth_rate"] == float("inf")
    assert fresh.param_groups[0]["betas"] == (0.9, 0.999)


def test_quantized_moments_are_bytes_and_the_map_is_stored_once() -> None:
    """Large moments take a byte an element; all parameters share two quantile maps."""
    named = {f"w{i}": nn.Parameter(torch.randn(64, 64)) for i in range(3)}
    optimizer = make_optimizer(
        [ParameterGroup("unet", named, 1.0)], settings_without_lora("adamw8bit")
    )
    for parameter in named.values():
        parameter.grad = torch.randn(64, 64)
    optimizer.step()
    tensors, facts = pack_state(optimizer, list(named))
    maps = [key for key in tensors if ":qmap" in key]
    assert len(maps) == 2
    assert tensors["optimizer:state1:w1"].dtype == torch.uint8
    fresh = make_optimizer([ParameterGroup("unet", named, 1.0)], settings_without_lora("adamw8bit"))
    unpack_state(fresh, list(named), tensors, facts)
    states = [fresh.state[p] for p in named.values()]
    assert states[0]["qmap1"].data_ptr() == states[2]["qmap1"].data_ptr()
    assert torch.equal(states[1]["absmax1"], optimizer.state[named["w1"]]["absmax1"])


def settings_without_lora(name: str) -> OptimizerSection:
    keys = {"name": name, "learning_rate": 0.01, "weight_decay": 0.0}
    return OptimizerSection.model_validate(keys)


def test_state_belongs_to_names_not_to_places() -> None:
    """A state goes to its parameter when the groups list them in another order."""
    start = {
        n: torch.randn(4, generator=torch.Generator().manual_seed(i)) for i, n in enumerate("ab")
    }
    order = {"packed": "ab", "fresh": "ba"}
    named = {
        which: {n: nn.Parameter(start[n].clone()) for n in names} for which, names in order.items()
    }
    optimizers = {
        which: make_optimizer([ParameterGroup("unet", p, 1.0)], settings_without_lora("adamw"))
        for which, p in named.items()
    }
    for scale, parameter in enumerate(named["packed"].values(), start=1):
        parameter.grad = torch.full((4,), float(scale))
    optimizers["packed"].step()
    tensors, facts = pack_state(optimizers["packed"], ["b", "a"])
    unpack_state(optimizers["fresh"], ["a", "b"], tensors, facts)
    moment = optimizers["fresh"].state[named["fresh"]["b"]]["exp_avg"]
    assert torch.allclose(moment, torch.full((4,), 0.2))


def packed(name: str = "adamw") -> tuple[dict[str, Tensor], dict[str, Any]]:
    net, named, optimizer = build(name)
    train(net, optimizer, name, 0, 2)
    return through_files(*pack_state(optimizer, list(named)))


def spoil_missing(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    del tensors["optimizer:exp_avg:wide"]
    return "exp_avg:wide is missing"


def spoil_extra(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    tensors["optimizer:exp_avg:other"] = torch.zeros(1)
    return "exp_avg:other belongs to nothing"


def spoil_parameter(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    del facts["parameters"]["narrow"]
    return "no state of narrow"


def spoil_unknown(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    facts["parameters"]["other"] = facts["parameters"]["narrow"]
    return "unknown parameter, other"


def spoil_shape(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    facts["parameters"]["wide"]["shape"] = [16, 300]
    return "wide is for the shape"


def spoil_class(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    facts["class"] = "Lion"
    return "of Lion, not of AdamW"


def spoil_groups(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    facts["groups"].pop()
    return "parameter groups"


def spoil_facts(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    del facts["groups"]
    return "no 'groups'"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_missing,
        spoil_extra,
        spoil_parameter,
        spoil_unknown,
        spoil_shape,
        spoil_class,
        spoil_groups,
        spoil_facts,
    ],
)
def test_damaged_state_is_refused_by_name(
    spoil: Callable[[dict[str, Tensor], dict[str, Any]], str],
) -> None:
    """What is missing or left over is named, and the optimizer stays as it was."""
    tensors, facts = packed()
    message = spoil(tensors, facts)
    _, named, optimizer = build("adamw")
    with pytest.raises(IntegrityError, match=message):
        unpack_state(optimizer, list(named), tensors, facts)
    assert len(optimizer.state) == 0


def test_wrong_names_are_refused() -> None:
    """Names that are not the optimizer's cannot be packed."""
    _, named, optimizer = build("adamw")
    with pytest.raises(IntegrityError, match="gain"):
        pack_state(optimizer, [n for n in named if n != "gain"])


def test_loss_scaler_goes_on_where_it_was() -> None:
    """Overflows, growth and their count continue as in the uninterrupted run."""

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

    def run(which: torch.amp.GradScaler, first: int, last: int) -> list[float]:
        scales = []
        for step in range(first, last):
            weight = nn.Parameter(torch.ones(2))
            optimizer = torch.optim.SGD([weight], lr=0.1)
            loss = weight.sum() * (float("inf") if step == 1 else 1.0)
            which.scale(loss).backward()
            which.step(optimizer)
            which.update()
            scales.append(which.get_scale())
        return scales

    whole = run(scaler(), 0, 9)
    assert len(set(whole)) > 2
    first, second = scaler(), scaler()
    start = run(first, 0, 4)
    unpack_scaler(second, json.loads(json.dumps(pack_scaler(first))))
    assert start + run(second, 4, 9) == whole


def test_scaler_state_must_be_whole() -> None:
    """A checkpoint without the scaler's state, or with half of it, stops the run."""
    scaler = torch.amp.GradScaler("cpu")
    facts = pack_scaler(scaler)
    for wrong in (None, {}, {k: v for k, v in facts.items() if k != "scale"}):
        with pytest.raises(IntegrityError, match="loss scaler"):
            unpack_scaler(scaler, wrong)
    with pytest.raises(IntegrityError, match="unknown"):
        unpack_scaler(scaler, facts | {"more": 1})

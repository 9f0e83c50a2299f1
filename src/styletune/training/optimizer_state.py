"""An optimizer's state as named tensors and JSON, exact to the bit, without pickle.

Tensors go to safetensors; Python numbers and what lives in the parameter groups (prodigy's
estimate, schedule-free's sums and mode) go to JSON, whose floats come back unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from styletune.errors import IntegrityError

PREFIX = "optimizer"
FIX = "resume from the checkpoint before it, or start over with another --run-dir"
# Of a group: its tensors and their names are not settings.
NOT_SETTINGS = ("params", "param_names")


def pack_state(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take an optimizer's state out, on the CPU.

    Args:
        optimizer: any of ``make_optimizer``'s, or one that Accelerate prepared of them.
        names: of the parameters; in any order where the optimizer knows them by name, else in
            the order of its groups.

    Returns:
        Tensors by ``optimizer:<key>:<parameter>``, and facts for JSON.

    Raises:
        IntegrityError: the names are not those of the optimizer's parameters.
    """
    inner = _unwrapped(optimizer)
    parameters = _named(inner, names)
    if any(p.is_cuda for p in parameters.values()):
        # Paged moments are host memory that the device may still be writing to.
        torch.cuda.synchronize()
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    stored: dict[tuple[int, torch.dtype, torch.Size], str] = {}
    for name, parameter in parameters.items():
        values: dict[str, Any] = {}
        for key, value in inner.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                values[key] = {"value": _to_json(value)}
                continue
            # Quantile maps are one tensor for all parameters; store it once.
            identity = (value.data_ptr(), value.dtype, value.shape)
            place = stored.setdefault(identity, f"{PREFIX}:{key}:{name}")
            if place not in tensors:
                tensors[place] = value.detach().to("cpu", copy=True).contiguous()
            values[key] = {"tensor": place}
        entries[name] = {"shape": list(parameter.shape), "state": values}
    groups = [
        {k: _to_json(v) for k, v in group.items() if k not in NOT_SETTINGS}
        for group in inner.param_groups
    ]
    return tensors, {"class": type(inner).__name__, "groups": groups, "parameters": entries}


def unpack_state(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Put a packed state into a fresh optimizer over the same parameters.

    Unpack after Accelerate has prepared the optimizer: preparing copies the state, and paged
    moments would no longer be paged.

    Args:
        optimizer: from ``make_optimizer`` with the settings of the packed one.
        names: as in ``pack_state``.
        tensors: those of ``pack_state``, and nothing else.
        facts: likewise, also after a round trip through JSON.

    Raises:
        IntegrityError: state is missing, left over, or of another optimizer or parameter; the
            optimizer is then as it was.
    """
    inner = _unwrapped(optimizer)
    parameters = _named(inner, names)
    _check(inner, parameters, tensors, facts)
    # One copy per stored tensor and device, so that what was shared is shared again.
    moved: dict[tuple[str, torch.device], Tensor] = {}
    inner.state.clear()
    for name, parameter in parameters.items():
        restored: dict[str, Any] = {}
        for key, entry in facts["parameters"][name]["state"].items():
            if "tensor" not in entry:
                restored[key] = _from_json(entry["value"])
                continue
            place = (entry["tensor"], parameter.device)
            if place not in moved:
                moved[place] = _placed(inner, key, tensors[place[0]], parameter)
            restored[key] = moved[place]
        if restored:
            inner.state[parameter] = restored
    for group, settings in zip(inner.param_groups, facts["groups"], strict=True):
        group.update({k: _from_json(v) for k, v in settings.items()})


def _placed(inner: Any, key: str, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """A fresh copy of a state tensor where the optimizer expects it."""
    if getattr(inner, "is_paged", False) and key in ("state1", "state2") and parameter.is_cuda:
        buffer: Tensor = inner.get_state_buffer(parameter, dtype=tensor.dtype)
        buffer.copy_(tensor)
        return buffer
    if tensor.shape == parameter.shape:
        # In the parameter's memory layout, as the optimizer made it.
        return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor).detach()
    return tensor.to(parameter.device, copy=True)


def _check(
    inner: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    missing = {"class", "groups", "parameters"} - facts.keys()
    if missing:
        raise IntegrityError(f"the optimizer's state has no {min(missing)!r}", fix=FIX)
    if facts["class"] != type(inner).__name__:
        raise IntegrityError(
            f"the optimizer's state is of {facts['class']}, not of {type(inner).__name__}", fix=FIX
        )
    if len(facts["groups"]) != len(inner.param_groups):
        raise IntegrityError(
            f"the optimizer's state has {len(facts['groups'])} parameter groups, not "
            f"{len(inner.param_groups)}",
            fix=FIX,
        )
    entries = facts["parameters"]
    for name in sorted(parameters.keys() ^ entries.keys()):
        word = "no state of" if name in parameters else "state of an unknown parameter,"
        raise IntegrityError(f"the optimizer has {word} {name}", fix=FIX)
    for name, parameter in parameters.items():
        if list(parameter.shape) != entries[name]["shape"]:
            raise IntegrityError(
                f"the optimizer's state of {name} is for the shape {entries[name]['shape']}, "
                f"not {list(parameter.shape)}",
                fix=FIX,
            )
    expected = {
        value["tensor"]
        for entry in entries.values()
        for value in entry["state"].values()
        if "tensor" in value
    }
    for place in sorted(expected ^ tensors.keys()):
        word = "is missing" if place in expected else "belongs to nothing"
        raise IntegrityError(f"state tensor {place} {word}", fix=FIX)


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper, or itself."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def _named(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by name, in the order of its groups."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = [n for group in optimizer.param_groups for n in group.get("param_names", ())]
    ours = known or list(names)
    if len(ours) != len(parameters) or sorted(ours) != sorted(names) or len(set(ours)) < len(ours):
        odd = sorted(set(ours) ^ set(names))
        raise IntegrityError(
            f"{len(names)} parameters are named, the optimizer has {len(parameters)}"
            + (f"; first that differs: {odd[0]}" if odd else "")
        )
    return dict(zip(ours, parameters, strict=True))


def _to_json(value: Any) -> Any:
    """A setting or number as JSON. What JSON cannot hold is marked: infinities, tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(v) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise IntegrityError(f"an optimizer keeps a {type(value).__name__}, which cannot be saved")


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if "float" in value:
            return float(value["float"])
        return tuple(_from_json(v) for v in value["tuple"])
    return value


def pack_scaler(scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """The fp16 loss scaler's scale, its settings and the count of steps since an overflow."""
    return dict(scaler.state_dict())


def unpack_scaler(scaler: torch.amp.GradScaler, facts: Mapping[str, Any] | None) -> None:
    """Put the loss scaler back to where it was.

    Raises:
        IntegrityError: the checkpoint has no such state, or an incomplete one.
    """
    expected = scaler.state_dict().keys()
    missing = expected - (facts or {}).keys()
    if missing:
        raise IntegrityError(f"the loss scaler's state has no {min(missing)!r}", fix=FIX)
    extra = (facts or {}).keys() - expected
    if extra:
        raise IntegrityError(f"the loss scaler's state has an unknown {min(extra)!r}", fix=FIX)
    scaler.load_state_dict(dict(facts or {}))

"""The LoRA inside the UNet. The only module that knows peft.

An adapter travels as a flat dictionary: ``unet.<module>.lora_A.weight`` (rank, in) and
``unet.<module>.lora_B.weight`` (out, rank), float32. The update of a module's weight is
ΔW = (alpha / rank) · B · A (arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from styletune.errors import IntegrityError, NotFound, RecipeError
from styletune.runs import write_bytes

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out")
_NAME = "styletune"


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What the numbers in an adapter mean, and where it came from."""

    rank: int
    alpha: float
    base_hash: str = ""
    recipe_hash: str = ""
    step: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def target_modules(unet: nn.Module, target: str | tuple[str, ...]) -> list[str]:
    """Names of the linear modules that a target means, in the UNet's order.

    On SDXL: 560 for "attention", 700 for "attention-ff", 722 for "all". Patterns are shell
    style over full names: ``up_blocks.0.attentions.1.*to_q``.

    Raises:
        RecipeError: a pattern matches no linear module.
    """
    linear = [
        n for n, m in unet.named_modules() if isinstance(m, nn.Linear) and ".attentions." in n
    ]
    presets = {
        "attention": ATTENTION,
        "attention-ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD + PROJECTIONS,
    }
    if isinstance(target, str):
        suffixes = tuple(f".{s}" for s in presets[target])
        return [n for n in linear if n.endswith(suffixes)]
    for pattern in target:
        if not fnmatch.filter(linear, pattern):
            raise RecipeError(
                f'target pattern "{pattern}" matches no linear module of the UNet',
                where="[adapter]",
                fix=f"names look like {linear[0]}",
            )
    return [n for n in linear if any(fnmatch.fnmatchcase(n, p) for p in target)]


def inject_adapter(unet: nn.Module, modules: list[str], rank: int, alpha: float, seed: int) -> None:
    """Add an untrained LoRA (B = 0) in float32; its A depends on ``seed`` and the base's dtype."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, init_lora_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, unet, adapter_name=_NAME)
    for parameter in adapter_parameters(unet).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def adapter_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors by their name in a file, in the UNet's order."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in unet.named_parameters():
        if f".{_NAME}." in name and ".lora_" in name:
            found["unet." + name.replace(f".{_NAME}", "")] = parameter
    return found


def adapter_tensors(unet: nn.Module) -> dict[str, Tensor]:
    """A copy of the adapter on the CPU, float32, by file name."""
    return {k: p.detach().float().cpu().clone() for k, p in adapter_parameters(unet).items()}


def save_adapter(file: Path, tensors: Mapping[str, Tensor], spec: AdapterSpec) -> None:
    """Write an adapter; equal tensors and spec give equal bytes."""
    header = {"format": "pt", "styletune.adapter": json.dumps(asdict(spec), sort_keys=True)}
    write_bytes(file, pack_tensors(tensors, header))


def pack_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file in memory; equal content gives equal bytes.

    The library writes the header's keys in random order, so the header is written again, sorted.
    """
    raw: bytes = save({k: tensors[k].contiguous() for k in sorted(tensors)}, dict(header))
    size = int.from_bytes(raw[:8], "little")
    tree = json.loads(raw[8 : 8 + size])
    ordered = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)  # the format asks for aligned tensors
    return len(ordered).to_bytes(8, "little") + ordered + raw[8 + size :]


def load_adapter(file: Path) -> tuple[dict[str, Tensor], AdapterSpec]:
    """Read what ``save_adapter`` wrote. Raises NotFound or IntegrityError."""
    try:
        with safe_open(str(file), framework="pt") as reader:
            header = reader.metadata() or {}
            tensors = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118
        return tensors, AdapterSpec(**json.loads(header["styletune.adapter"]))
    except FileNotFoundError:
        raise NotFound("no such adapter", where=str(file)) from None
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise IntegrityError(f"not a whole adapter file: {error}", where=str(file)) from None


def load_into(unet: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter's values into the injected LoRA. Raises IntegrityError on other names."""
    parameters = adapter_parameters(unet)
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise IntegrityError(f"the adapter's modules differ, first: {odd[0]}")
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def weight_updates(
    tensors: Mapping[str, Tensor], spec: AdapterSpec
) -> Iterator[tuple[str, Tensor]]:
    """(module name in the UNet, its ΔW of shape (out, in), float32), one after the other.

    On SDXL they are gigabytes together, so nobody should hold them all.
    """
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            up = tensors[f"{module}.lora_B.weight"]
            yield module.removeprefix("unet."), spec.scale * (up.float() @ down.float())


@contextlib.contextmanager
def merged(
    unet: nn.Module, tensors: Mapping[str, Tensor], spec: AdapterSpec, strength: float
) -> Iterator[None]:
    """Add strength · ΔW to the UNet's weights for a while; afterwards they are bit for bit back.

    Sampling then runs at the bare model's speed.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for name, update in weight_updates(tensors, spec):
            weight = unet.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            # On the CPU: the copies would not fit beside the model on a small card.
            kept.append((weight, weight.detach().to("cpu", copy=True)))
            weight.data += (strength * update).to(weight.device, weight.dtype)
        yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)

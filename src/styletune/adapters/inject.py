"""Adapters inside the UNet and the text encoders. The only module that knows peft.

How an adapter looks in a file: ``styletune.adapters.file``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import assert_never

import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    inject_adapter_in_model,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from styletune.adapters.file import PART, AdapterSpec, is_embedding
from styletune.adapters.names import (
    ATTENTION,
    FEED_FORWARD,
    PROJECTIONS,
    TEXT_ATTENTION,
    TEXT_FEED_FORWARD,
)
from styletune.errors import IntegrityError, RecipeError
from styletune.models.family import Family, chosen_encoders
from styletune.recipe.training_sections import AdapterSection

# Which linear modules; the blocks' presets mean attention in one block of the family's UNet.
PRESETS = {
    "attention": ATTENTION,
    "attention-ff": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + PROJECTIONS,
}
_NAME = "styletune"
_START_AT_ZERO = ("lora_B.weight", "hada_w2_b", "lokr_w1", "oft_R.weight")


def adapter_spec(adapter: AdapterSection) -> AdapterSpec:
    """What the numbers of an adapter of this section mean."""
    return AdapterSpec(
        rank=adapter.rank,
        alpha=adapter.base_alpha,
        kind=adapter.kind,
        rslora=adapter.rslora,
        tokens=adapter.new_tokens,
    )


def adapted_modules(
    models: Mapping[str, nn.Module], adapter: AdapterSection, family: Family
) -> dict[str, list[str]]:
    """Names of the modules that the section adapts, by component.

    Args:
        models: "unet", and the text encoders that the section trains.
        adapter: its target, convolutions and text encoders are used.
        family: of the base model.

    Raises:
        RecipeError: as ``target_modules``.
    """
    unet, conv = models["unet"], adapter.conv_rank is not None
    modules = {"unet": target_modules(unet, adapter.target, family, conv=conv)}
    for encoder in chosen_encoders(family, adapter.text_encoders):
        model = models[encoder.name]
        modules[encoder.name] = text_encoder_modules(model, adapter.text_encoder_target)
    return modules


def target_modules(
    unet: nn.Module,
    target: str | tuple[str, ...],
    family: Family,
    *,
    conv: bool = False,
) -> list[str]:
    """Names of the UNet's modules that a target means, in the UNet's order.

    For SDXL: 560 for "attention", 700 for "attention-ff", 722 for "all", 80 for "style-block"
    and "content-block". Patterns are shell style over full names:
    ``up_blocks.0.attentions.1.*to_q``. With ``conv`` the convolutions of resnets and samplers
    come too; patterns then choose among them as well.

    Raises:
        RecipeError: a pattern matches nothing, or ``conv`` and no convolution is chosen.
    """
    linear, convolutions = [], []
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and ".attentions." in name:
            linear.append(name)
        if conv and isinstance(module, nn.Conv2d) and re.search(r"\.(resnets|\w+samplers)\.", name):
            convolutions.append(name)
    if not isinstance(target, str):
        names = [n for n in unet_order(unet) if n in {*linear, *convolutions}]
        _refuse_unmatched(target, names, "target pattern")
        chosen = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in target)]
    else:
        block = family.target_blocks.get(target, "")
        leaves = ATTENTION if block else PRESETS[target]
        endings = tuple(f".{leaf}" for leaf in leaves)
        picked = {n for n in linear if n.endswith(endings) and n.startswith(block)}
        picked |= {n for n in convolutions if n.startswith(block)}
        chosen = [n for n in unet_order(unet) if n in picked]
    if conv and not any(n in convolutions for n in chosen):
        raise RecipeError(
            "conv_rank is set, but the target has no convolutions",
            where="[adapter] conv_rank",
            fix='leave it out, or choose "attention", "attention-ff" or "all"',
        )
    return chosen


def unet_order(unet: nn.Module) -> list[str]:
    """All module names, in the order in which the UNet holds them."""
    return [name for name, _ in unet.named_modules()]


def text_encoder_modules(text_encoder: nn.Module, target: str = "attention") -> list[str]:
    """Names of a text encoder's linear modules.

    "attention", its projections: 48 in SDXL's first encoder, 128 in its second. "all", the
    feed-forward layers too: 72 and 192, what kohya's tools train.
    """
    leaves = TEXT_ATTENTION if target == "attention" else TEXT_ATTENTION + TEXT_FEED_FORWARD
    return [
        n
        for n, m in text_encoder.named_modules()
        if isinstance(m, nn.Linear) and ".layers." in n and n.endswith(leaves)
    ]


def _refuse_unmatched(patterns: tuple[str, ...], names: list[str], what: str) -> None:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
            raise RecipeError(
                f'{what} "{pattern}" matches no module that can be adapted',
                where="[adapter]",
                fix=f"names look like {names[0]}" if names else "choose a target first",
            )


def inject_adapter(
    models: Mapping[str, nn.Module],
    adapter: AdapterSection,
    modules: Mapping[str, list[str]],
    seed: int,
) -> None:
    """Add an untrained adapter in float32 that changes nothing yet.

    Its values depend on the seed, the module's name and its shape alone: not on the base's
    dtype or device, nor on what else is adapted. Other parameters keep their ``requires_grad``.

    Args:
        models: by component, "unet" or a text encoder's name.
        adapter: kind, alpha and ranks. ``alpha`` belongs to ``rank``; other ranks keep the scale.
        modules: names to adapt, by component, from ``adapted_modules``.
        seed: of the starting values.

    Raises:
        RecipeError: a block pattern without a match, or an OFT block size that does not divide.
    """
    block_patterns = tuple(adapter.block_ranks)
    _refuse_unmatched(block_patterns, modules.get("unet", []), "block_ranks pattern")
    if adapter.kind == "oft":
        _refuse_block_sizes(models, adapter, modules)
    for component, names in modules.items():
        model = models[component]
        before = [(p, p.requires_grad) for p in model.parameters()]
        groups: dict[int, list[str]] = {}
        for name in names:
            groups.setdefault(_rank_of(adapter, component, model, name), []).append(name)
        with torch.random.fork_rng(devices=[]):
            for rank, members in groups.items():
                inject_adapter_in_model(_config(adapter, rank, members), model, adapter_name=_NAME)
                del model.peft_config  # peft would take the next rank for a second adapter
        if adapter.kind == "lora":
            _compute_in_input_dtype(model)
        for parameter, trained in before:
            parameter.requires_grad_(trained)
    for name, parameter in adapter_parameters({c: models[c] for c in modules}).items():
        parameter.data = _start_value(models, name, parameter, seed)
        parameter.requires_grad_(True)


def _rank_of(adapter: AdapterSection, component: str, model: nn.Module, name: str) -> int:
    if component != "unet":
        return adapter.text_encoder_rank or adapter.rank
    for pattern, rank in adapter.block_ranks.items():
        if fnmatch.fnmatchcase(name, pattern):
            return rank
    if isinstance(model.get_submodule(name), nn.Conv2d) and adapter.conv_rank is not None:
        return adapter.conv_rank
    return adapter.rank


def _refuse_block_sizes(
    models: Mapping[str, nn.Module], adapter: AdapterSection, modules: Mapping[str, list[str]]
) -> None:
    """OFT rotates blocks of inputs, so the block size must divide their number."""
    for component, names in modules.items():
        for name in names:
            weight = models[component].get_submodule(name).weight
            assert isinstance(weight, Tensor)
            size = _rank_of(adapter, component, models[component], name)
            if size < 2 or weight.shape[1] % size:
                raise RecipeError(
                    f"oft's block size {size} does not divide the {weight.shape[1]} inputs of "
                    f"{name}",
                    where="[adapter] rank",
                    fix="8, 16 and 32 divide all of a full-size base's",
                )


def _config(adapter: AdapterSection, rank: int, names: list[str]) -> PeftConfig:
    # The scale of the base setting stays the meaning of alpha.
    alpha = adapter.base_alpha
    if not adapter.rslora:
        alpha = alpha * rank / adapter.rank
    match adapter.kind:
        case "loha":
            return LoHaConfig(r=rank, alpha=alpha, target_modules=names)
        case "lokr":
            return LoKrConfig(r=rank, alpha=alpha, target_modules=names)
        case "oft":
            # The exact Cayley transform: the truncated series is not orthogonal far from zero.
            return OFTConfig(oft_block_size=rank, use_cayley_neumann=False, target_modules=names)
        case "lora" | "dora":
            return LoraConfig(
                r=rank,
                lora_alpha=alpha,
                target_modules=names,
                use_rslora=adapter.rslora,
                use_dora=adapter.kind == "dora",
                init_lora_weights=True,
            )
        case _:
            assert_never(adapter.kind)


class _Linear(nn.Linear):
    """Float32 weights, the input's arithmetic: what autocast does, for these layers alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class _Conv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(x, self.weight.to(x.dtype), None)
        return result


def _compute_in_input_dtype(model: nn.Module) -> None:
    """Let A and B multiply in the base's dtype; weights, gradients and optimizer stay float32.

    Left alone, peft turns the input of every adapted layer into float32 on its own, and the
    backward pass keeps those copies: 2.5 GB of SDXL's 7.8 at 1024². The small weights are cast
    instead. With a float32 base nothing changes.
    """
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        layer.cast_input_dtype_enabled = False
        for factor in (*layer.lora_A.values(), *layer.lora_B.values()):
            assert factor.bias is None
            factor.__class__ = _Conv2d if isinstance(factor, nn.Conv2d) else _Linear


def _start_value(
    models: Mapping[str, nn.Module], name: str, parameter: nn.Parameter, seed: int
) -> Tensor:
    if name.endswith(".lora_magnitude_vector"):
        weight = find_module(models, PART.sub("", name)).weight
        assert isinstance(weight, Tensor)
        # In float32 from the base itself: rounded to bf16 it would already change the image.
        norms: Tensor = weight.detach().float().flatten(1).norm(dim=1)
        return norms.reshape(parameter.shape)
    value = torch.zeros(parameter.shape)
    if not name.endswith(_START_AT_ZERO):
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
    return value.to(parameter.device)


def adapter_parameters(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trainable tensors by their name in a file, in the models' order."""
    parameters: dict[str, nn.Parameter] = {}
    for component, model in models.items():
        for name, parameter in model.named_parameters():
            if f".{_NAME}" not in name:
                continue
            path = name.replace(f".{_NAME}", "")
            path = path.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
            # transformers has flattened CLIPTextModel; files keep the name all readers know.
            if component != "unet" and not path.startswith("text_model."):
                path = f"text_model.{path}"
            parameters[f"{component}.{path}"] = parameter
    return parameters


def adapter_tensors(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A copy of the adapter on the CPU, float32, by file name."""
    return {k: p.detach().float().cpu().clone() for k, p in adapter_parameters(models).items()}


def find_module(models: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The module that an adapter calls ``component.module``. Raises IntegrityError."""
    component, _, path = name.partition(".")
    if component not in models:
        raise IntegrityError(f"the adapter changes {component}, which is missing here")
    for candidate in (path, path.removeprefix("text_model.")):
        with contextlib.suppress(AttributeError):
            return models[component].get_submodule(candidate)
    raise IntegrityError(f"the adapter changes {name}, which this base model does not have")


def load_into(models: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter's values into the injected one, new tokens' rows are left alone.

    A whole component that the adapter does not have, such as a text encoder, stays as it is.

    Raises:
        IntegrityError: other names or shapes than were injected.
    """
    parameters = adapter_parameters(models)
    check_fits(tensors, {name: tuple(p.shape) for name, p in parameters.items()})
    for name, parameter in parameters.items():
        if name in tensors:
            parameter.data.copy_(tensors[name])


def check_fits(tensors: Mapping[str, Tensor], injected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise IntegrityError unless an adapter's tensors are those that were injected.

    Args:
        tensors: of the adapter; new tokens' rows are left out of account, and so is a whole
            component that it does not have.
        injected: shapes by name.
    """
    names = {name for name in tensors if not is_embedding(name)}
    components = {name.partition(".")[0] for name in names}
    expected = {
        name: shape
        for name, shape in injected.items()
        if name.partition(".")[0] in components and not is_embedding(name)
    }
    if expected.keys() != names:
        odd = sorted(expected.keys() ^ names)
        raise IntegrityError(f"the adapter's modules differ, first: {odd[0]}")
    for name, shape in expected.items():
        if shape != tuple(tensors[name].shape):
            raise IntegrityError(
                f"the adapter's {name} has shape {tuple(tensors[name].shape)}, expected {shape}"
            )


@contextlib.contextmanager
def adapter_off(models: Mapping[str, nn.Module]) -> Iterator[None]:
    """Turn the adapter off inside the block: the models predict what the base does."""
    layers = [
        m
        for model in models.values()
        for m in model.modules()
        if isinstance(m, BaseTunerLayer) and not m.disable_adapters
    ]
    required = [(p, p.requires_grad) for p in adapter_parameters(models).values()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, before in required:
            parameter.requires_grad_(before)

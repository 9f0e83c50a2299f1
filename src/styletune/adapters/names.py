"""The names of a family's modules in diffusers, in sgm and in kohya's files.

A module is ``component.path`` as in diffusers. Kohya's files join the path by underscores behind a
prefix for the component; the UNet's path is then the one in the original (sgm) model.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator

from styletune.errors import IntegrityError
from styletune.models.family import Family

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_FEED_FORWARD = ("mlp.fc1", "mlp.fc2")
_SGM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def sgm_module_name(path: str, layers_per_block: int) -> str:
    """A diffusers UNet module's name in the original (sgm) UNet, joined by underscores.

    ``up_blocks.0.attentions.1.proj_in`` -> ``output_blocks_1_1_proj_in``.

    Raises:
        IntegrityError: the module has no counterpart in sgm's UNet.
    """
    match = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d+))?\.(attentions|resnets|\w+samplers)\.(\d+)\.(.+)", path
    )
    if match:
        side, group, rest = match[1], match[3], match[5]
        block, layer = int(match[2] or 0) * (layers_per_block + 1), int(match[4])
        parents = {
            ("down", "resnets"): f"input_blocks.{block + layer + 1}.0",
            ("down", "attentions"): f"input_blocks.{block + layer + 1}.1",
            ("down", "downsamplers"): f"input_blocks.{block + layers_per_block + 1}.0",
            ("mid", "resnets"): f"middle_block.{2 * layer}",
            ("mid", "attentions"): "middle_block.1",
            ("up", "resnets"): f"output_blocks.{block + layer}.0",
            ("up", "attentions"): f"output_blocks.{block + layer}.1",
            ("up", "upsamplers"): f"output_blocks.{block + layers_per_block}.2",
        }
        if group == "resnets":
            rest = _SGM_RESNET.get(rest, "")
        elif group == "downsamplers":
            rest = "op" if rest == "conv" else ""
        parent = parents.get((side, group))
        if parent and rest:
            return f"{parent}.{rest}".replace(".", "_")
    raise IntegrityError(f"no sgm name is known for the module {path}")


def kohya_name(module: str, family: Family) -> str:
    """``component.path`` as kohya's tools call it.

    Raises:
        IntegrityError: the module has no name there.
    """
    component, _, path = module.partition(".")
    prefix = _prefixes(family).get(component)
    if prefix is None:
        raise IntegrityError(f"no kohya name is known for the module {module}")
    if component == "unet":
        return prefix + sgm_module_name(path, family.unet["layers_per_block"])
    return prefix + path.replace(".", "_")


def _prefixes(family: Family) -> dict[str, str]:
    return {"unet": family.unet_prefix} | {e.name: e.kohya_prefix for e in family.text_encoders}


@functools.cache
def known_modules(family: Family) -> frozenset[str]:
    """Every module that an adapter of the family may change; a few more than its UNet has."""
    return frozenset((*_unet_modules(family), *_text_modules(family)))


@functools.cache
def modules_by_kohya_name(family: Family) -> dict[str, str]:
    """Modules by their name in kohya's files."""
    return {kohya_name(module, family): module for module in known_modules(family)}


@functools.cache
def modules_by_flat_name(family: Family) -> dict[str, str]:
    """Modules by kohya's prefixes with diffusers' block names, which some tools write."""
    prefixes, modules = _prefixes(family), {}
    for module in known_modules(family):
        component, _, path = module.partition(".")
        modules[prefixes[component] + path.replace(".", "_")] = module
    return modules


def _text_modules(family: Family) -> Iterator[str]:
    leaves = [*(f"self_attn.{p}" for p in TEXT_ATTENTION), *TEXT_FEED_FORWARD]
    for encoder in family.text_encoders:
        layers = range(encoder.config["num_hidden_layers"])
        for layer, leaf in itertools.product(layers, leaves):
            yield f"{encoder.name}.text_model.encoder.layers.{layer}.{leaf}"


def _unet_modules(family: Family) -> Iterator[str]:
    """By the UNet's grammar: attention at every level, whether this UNet has it there or not."""
    config = family.unet
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    inside = [*PROJECTIONS]
    for block in range(max(config["transformer_layers_per_block"])):
        leaves = [f"attn{n}.{p}" for n in (1, 2) for p in ATTENTION] + [*FEED_FORWARD]
        inside += [f"transformer_blocks.{block}.{leaf}" for leaf in leaves]
    blocks = [("mid_block", 1, 2)]  # with how many attentions and resnets
    blocks += [(f"down_blocks.{i}", layers, layers) for i in range(levels)]
    blocks += [(f"up_blocks.{i}", layers + 1, layers + 1) for i in range(levels)]
    for name, attentions, resnets in blocks:
        for layer, leaf in itertools.product(range(attentions), inside):
            yield f"unet.{name}.attentions.{layer}.{leaf}"
        for layer, leaf in itertools.product(range(resnets), _SGM_RESNET):
            yield f"unet.{name}.resnets.{layer}.{leaf}"
    for i in range(levels - 1):
        yield f"unet.down_blocks.{i}.downsamplers.0.conv"
        yield f"unet.up_blocks.{i}.upsamplers.0.conv"

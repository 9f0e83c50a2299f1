"""Diffusers' names of SDXL's weights -> the original (sgm) names, for building test files."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(name: str) -> str:
    for ours, theirs in _TOP.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    found = re.match(r"(down|mid|up)_block(?:s\.(\d))?\.(\w+)\.(\d)\.(.*)", name)
    assert found, name
    place, block, kind, layer, rest = found.groups()
    i, j = int(block or 0), int(layer)
    if kind == "resnets":
        head, _, tail = rest.partition(".")
        rest = f"{_RESNET[head]}.{tail}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * i + 3}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.2.{rest}"  # after resnet and attention
    slot = 0 if kind == "resnets" else 1
    if place == "mid":
        return f"middle_block.{2 * j if slot == 0 else 1}.{rest}"
    number = 3 * i + j + 1 if place == "down" else 3 * i + j
    return f"{'input' if place == 'down' else 'output'}_blocks.{number}.{slot}.{rest}"


def vae_name(name: str) -> str:
    name = re.sub(r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}", name)
    name = name.replace("encoder.down_blocks.", "encoder.down.")
    name = re.sub(r"(up|down)\.(\d)\.resnets", r"\1.\2.block", name)
    name = re.sub(r"(up|down)samplers\.0\.conv", r"\1sample.conv", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        name = name.replace("to_out.0", "proj_out")
        name = re.sub(r"to_([qkv])\.", r"\1.", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def vae_weights(vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original VAE's attention was made of 1x1 convolutions."""
    found = {}
    for name, value in vae.items():
        conv = ".attn_1." in vae_name(name) and value.ndim == 2
        found[vae_name(name)] = value[:, :, None, None].contiguous() if conv else value
    return found


def open_clip_weights(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention projections are one matrix, and the text projection is transposed."""
    renames = {
        "text_model.encoder.layers.": "transformer.resblocks.",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
        "text_model.final_layer_norm": "ln_final",
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
    }
    found: dict[str, Tensor] = {"logit_scale": torch.tensor(4.6)}
    for name, value in encoder.items():
        if name == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        elif ".q_proj." in name:
            parts = [encoder[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            layer, kind = name.split(".self_attn.")[0], name.rpartition(".")[2]
            layer = layer.replace("text_model.encoder.layers.", "transformer.resblocks.")
            found[f"{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            for ours, theirs in renames.items():
                name = name.replace(ours, theirs)
            found[name] = value
    return found


def checkpoint(
    unet: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """A whole single-file checkpoint out of the four models' weights."""
    whole = {"model.diffusion_model." + unet_name(k): v for k, v in unet.items()}
    whole |= {"first_stage_model." + k: v for k, v in vae_weights(vae).items()}
    prefix = "conditioner.embedders.0.transformer.text_model."
    whole |= {prefix + k.removeprefix("text_model."): v for k, v in first.items()}
    prefix = "conditioner.embedders.1.model."
    whole |= {prefix + k: v for k, v in open_clip_weights(second).items()}
    return {k: v.clone() for k, v in whole.items()}

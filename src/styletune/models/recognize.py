"""Which model a single weight file holds, from the names and shapes in its header alone."""

from __future__ import annotations

from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_ENCODERS = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
_ADAPTER_MARKS = (
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    ".lora.down.",
    ".lora.up.",
    ".hada_w1",
    ".lokr_w1",
    ".oft_blocks",
    ".dora_scale",
)
_EMBEDDING_KEYS = {"clip_l", "clip_g", "emb_params"}
_TRANSFORMERS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "double_stream_modulation": "Flux",
}
_CONTEXT_KEY = UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_CONTEXT_WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "the SDXL refiner",
}
_CHANNELS = {9: "an inpainting model", 8: "an instruct-pix2pix model"}


def why_not_sdxl(shapes: Shapes, needs_vae: bool) -> str | None:
    """None for a whole SDXL base checkpoint in the original layout, else what it looks like.

    ``needs_vae`` is False when a separate VAE takes the place of the file's own.
    """
    return _other_file(shapes) or _other_unet(shapes) or _lacking(shapes, needs_vae)


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _other_file(shapes: Shapes) -> str | None:
    """What it is if it holds no original UNet."""
    if any(mark in name for name in shapes for mark in _ADAPTER_MARKS):
        return "looks like a LoRA or another adapter, not like a base model"
    if shapes and set(shapes) <= _EMBEDDING_KEYS:
        return "looks like a textual-inversion embedding, not like a base model"
    if _has(shapes, "control_model.") or _has(shapes, "controlnet_cond_embedding."):
        return "looks like a ControlNet, not like a base model"
    for mark, model in _TRANSFORMERS.items():
        if any(mark in name for name in shapes):
            return f"looks like {model}"
    if _has(shapes, "cond_stage_model.transformer."):
        return "looks like Stable Diffusion 1.x"
    if _has(shapes, "cond_stage_model.model."):
        return "looks like Stable Diffusion 2.x"
    if _has(shapes, UNET):
        return None
    if _has(shapes, "down_blocks."):
        return "looks like the UNet of a diffusers folder alone"
    if _has(shapes, "encoder.") or _has(shapes, VAE):
        return "looks like a VAE alone"
    names = ", ".join(list(shapes)[:2]) or "none"
    return f"holds no Stable Diffusion UNet (its first tensors: {names})"


def _other_unet(shapes: Shapes) -> str | None:
    width = (shapes.get(_CONTEXT_KEY) or (0,))[-1]
    if width in _CONTEXT_WIDTHS:
        return f"looks like {_CONTEXT_WIDTHS[width]}"
    channels = (shapes.get(UNET + "input_blocks.0.0.weight") or (0, 0, 0, 0))[1]
    if channels != 4:
        return f"looks like {_CHANNELS.get(channels, f'a UNet with {channels} input channels')}"
    if "edm_mean" in shapes or "edm_std" in shapes:
        return "looks like Playground 2.5, whose noise is scaled in another way"
    whole = (
        width == 2048
        and shapes.get(UNET + "label_emb.0.0.weight") == (1280, 2816)
        and UNET + "middle_block.1.transformer_blocks.9.attn2.to_k.weight" in shapes
        and UNET + "output_blocks.8.0.in_layers.0.weight" in shapes
    )
    return None if whole else "looks like a cut-down or changed SDXL (such as SSD-1B or Vega)"


def _lacking(shapes: Shapes, needs_vae: bool) -> str | None:
    needed = {
        VAE: needs_vae and "VAE (give one as base.vae)",
        TEXT_ENCODERS[0]: "first text encoder",
        TEXT_ENCODERS[1]: "second text encoder",
    }
    lacks = [name for prefix, name in needed.items() if name and not _has(shapes, prefix)]
    return f"is an SDXL UNet without its {', '.join(lacks)}" if lacks else None


def why_not_vae(shapes: Shapes) -> str | None:
    """None for a VAE of Stable Diffusion's kind alone in a file, else what it looks like.

    SDXL's VAE and that of Stable Diffusion 1.x have the same names and shapes.
    """
    first = next((n for n in shapes if n.endswith("decoder.conv_in.weight")), None)
    if first not in {"decoder.conv_in.weight", VAE + "decoder.conv_in.weight"}:
        return "holds no VAE"
    if not any(n.endswith("encoder.conv_in.weight") for n in shapes):
        return "is a VAE without its encoder, which training needs"
    channels = shapes[first][1]
    return None if channels == 4 else f"is a VAE with {channels} latent channels, SDXL's has 4"

"""SDXL base 1.0's architecture, known without its files.

The dictionaries are the published configurations (arXiv 2307.01952, table 1 and section 2;
``config.json`` of stabilityai/stable-diffusion-xl-base-1.0) as diffusers and transformers name
them. On the meta device they give a model with shapes and no memory: enough to count with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

Config = Mapping[str, Any]

VAE_FACTOR = 8  # pixels a latent
MAX_TOKENS = 77

UNET_CONFIG: Config = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],  # heads a level, in spite of the name
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,  # 1280 pooled + 6 * 256 sizes
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": False,
    "use_linear_projection": True,
}

VAE_CONFIG: Config = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

# CLIP ViT-L/14's text tower, and OpenCLIP ViT-bigG/14's with its projection.
TEXT_ENCODER_CONFIG: Config = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": MAX_TOKENS,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
TEXT_ENCODER_2_CONFIG: Config = {
    **TEXT_ENCODER_CONFIG,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

SCHEDULER_CONFIG: Config = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


def meta_unet(config: Config = UNET_CONFIG) -> UNet2DConditionModel:
    """A frozen UNet of shapes alone, float32, on the meta device (2,567,463,684 for SDXL)."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**_public(config)).requires_grad_(False)


def meta_vae(config: Config = VAE_CONFIG) -> AutoencoderKL:
    """A frozen VAE of shapes alone, float32, on the meta device (83,653,863 parameters)."""
    import torch
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(**_public(config)).requires_grad_(False)


def meta_text_encoders(
    first: Config = TEXT_ENCODER_CONFIG, second: Config = TEXT_ENCODER_2_CONFIG
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both frozen text encoders of shapes alone, float32, on the meta device."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        return (
            CLIPTextModel(CLIPTextConfig(**_public(first))).requires_grad_(False),
            CLIPTextModelWithProjection(CLIPTextConfig(**_public(second))).requires_grad_(False),
        )


def _public(config: Config) -> dict[str, Any]:
    """Without the underscored keys that a saved ``config.json`` carries."""
    return {k: v for k, v in config.items() if not k.startswith("_")}

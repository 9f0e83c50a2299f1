"""SDXL (arXiv 2307.01952), as one value: the only place that spells it out.

The dictionaries are the published configurations (table 1 and section 2; ``config.json`` of
stabilityai/stable-diffusion-xl-base-1.0), without the libraries' defaults. They decide the hash of
a base that is a single file, so their keys are never reordered or added to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from styletune.models.family import BaseWords, Config, Family, SizePx, TextEncoder, TextOutput
from styletune.models.recognize import TEXT_ENCODERS, why_not_sdxl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from styletune.models.family import Conditioning

RESOLUTION_PX = 1024
_MAX_TOKENS = 77
NUM_SIZES = 6

UNET_CONFIG: Config = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],  # heads per level, in spite of the name
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,  # 1280 of the text + 6 * 256 of the sizes
}
VAE_CONFIG: Config = {
    "_class_name": "AutoencoderKL",
    "sample_size": RESOLUTION_PX,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
_CLIP: Config = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": _MAX_TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
# CLIP ViT-L/14's text tower, and OpenCLIP ViT-bigG/14's with its projection.
TEXT_ENCODER_CONFIG: Config = {
    **_CLIP,
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
TEXT_ENCODER_2_CONFIG: Config = {
    **_CLIP,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SCHEDULER_CONFIG: Config = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
_INDEX: Config = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "image_encoder": [None, None],
    "feature_extractor": [None, None],
}

_NOTICE = """\
SDXL 1.0 is licensed under CreativeML Open RAIL++-M (26 July 2023). This adapter is a
derivative of the model: whatever its own license says, the use restrictions of that
license (its section 5 and Attachment A) apply to every use of it, and whoever passes
it on must bind the recipient to them. The text:
https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md
"""


def encode_ids(encoders: Sequence[nn.Module], ids: Sequence[Tensor]) -> Conditioning:
    """Both encoders' last hidden states but one, side by side, and the second's pooled text."""
    import torch

    from styletune.models.family import Conditioning

    first, second = (
        encoder(rows, output_hidden_states=True)
        for encoder, rows in zip(encoders, ids, strict=True)
    )
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return Conditioning(hidden, {"text_embeds": second.text_embeds})


def text_shapes(unet: Config) -> Mapping[str, tuple[int, ...]]:
    """The pooled text: 1280 numbers."""
    sizes = NUM_SIZES * unet["addition_time_embed_dim"]
    return {"text_embeds": (unet["projection_class_embeddings_input_dim"] - sizes,)}


def size_values(
    original: SizePx, corner: SizePx, target: SizePx
) -> Mapping[str, tuple[float, ...]]:
    """Micro-conditioning (section 2.2): three pairs in pixels, (height, width) or (top, left)."""
    return {"time_ids": (*original, *corner, *target)}


SDXL = Family(
    name="SDXL",
    pipeline="StableDiffusionXLPipeline",
    index=_INDEX,
    settings=("force_zeros_for_empty_prompt",),
    load_options={"add_watermarker": False},
    unet=UNET_CONFIG,
    vae=VAE_CONFIG,
    scheduler=SCHEDULER_CONFIG,
    text_encoders=(
        TextEncoder(
            name="text_encoder",
            tokenizer="tokenizer",
            choice="first",
            embedding_key="clip_l",
            kohya_prefix="lora_te1_",
            checkpoint_prefix=TEXT_ENCODERS[0],
            config=TEXT_ENCODER_CONFIG,
        ),
        TextEncoder(
            name="text_encoder_2",
            tokenizer="tokenizer_2",
            choice="second",
            embedding_key="clip_g",
            kohya_prefix="lora_te2_",
            checkpoint_prefix=TEXT_ENCODERS[1],
            config=TEXT_ENCODER_2_CONFIG,
            # It was trained with "!" (token 0) behind the end of the text.
            pad_token="!",  # noqa: S106
        ),
    ),
    stock_model="stabilityai/stable-diffusion-xl-base-1.0",
    vocabulary_model="openai/clip-vit-large-patch14",
    resolution_px=RESOLUTION_PX,
    vae_factor=8,
    max_tokens=_MAX_TOKENS,
    text_outputs=(
        TextOutput("embeds", 0, "prompt_embeds", None),
        TextOutput("pooled", 2, "pooled_prompt_embeds", "text_embeds"),
    ),
    encode_ids=encode_ids,
    text_shapes=text_shapes,
    size_values=size_values,
    size_shapes={"time_ids": (NUM_SIZES,)},
    why_not=why_not_sdxl,
    # Style and content as arXiv 2403.14572, section 4.
    target_blocks={
        "style-block": "up_blocks.0.attentions.1.",
        "content-block": "up_blocks.0.attentions.0.",
    },
    unet_prefix="lora_unet_",
    words=BaseWords(
        architecture="stable-diffusion-xl-v1-base",
        kohya_version="sdxl_base_v1-0",
        webui_version="SDXL",
        kind="a Stable Diffusion XL model",
        notice=_NOTICE,
    ),
)

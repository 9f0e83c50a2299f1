"""SDXL checkpoints that are one file: their fixed configuration, and loading them offline."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline

Configs = Mapping[str, Mapping[str, Any]]

RESOLUTION_PX = 1024
_CLIP = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
# What arXiv 2307.01952 (table 1) describes, in the libraries' words, by part of the pipeline.
SDXL_CONFIGS: Configs = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "sample_size": RESOLUTION_PX,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    "text_encoder": {
        **_CLIP,
        "architectures": ["CLIPTextModel"],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    "text_encoder_2": {
        **_CLIP,
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    "scheduler": {
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
    },
}
_INDEX = {
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


def configs_for(names: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> Configs:
    """SDXL's configuration, with v-prediction where the file's header declares it.

    Weights do not tell what they predict. Files say it by the (empty) tensors ``v_pred`` and
    ``ztsnr``, or by ``modelspec.prediction_type``.
    """
    declared = metadata.get("modelspec.prediction_type", "").lower().replace("-", "_")
    scheduler = dict(SDXL_CONFIGS["scheduler"])
    if "v_pred" in names or declared in {"v", "v_prediction"}:
        scheduler["prediction_type"] = "v_prediction"
    if "ztsnr" in names:
        scheduler["rescale_betas_zero_snr"] = True
        scheduler["timestep_spacing"] = "trailing"  # else the pure-noise step is never sampled
    return {**SDXL_CONFIGS, "scheduler": scheduler}


def load_single_file(
    file: Path,
    configs: Configs,
    tokenizers: tuple[Path, Path],
    dtype: torch.dtype,
    vae: AutoencoderKL | None,
) -> StableDiffusionXLPipeline:
    """Load an original-layout checkpoint with the given configuration; nothing is downloaded.

    ``vae`` takes the place of the file's own.
    """
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    first = CLIPTokenizer.from_pretrained(tokenizers[0], local_files_only=True)
    # SDXL's second encoder was trained with "!" (token 0) behind the end of the text.
    second = CLIPTokenizer.from_pretrained(tokenizers[1], local_files_only=True)
    second.pad_token = "!"  # noqa: S105
    with _written(configs) as folder:
        own_vae = vae or load_vae_file(file, configs, dtype)
        return StableDiffusionXLPipeline.from_single_file(
            str(file),
            config=str(folder),
            local_files_only=True,
            dtype=dtype,
            tokenizer=first,
            tokenizer_2=second,
            vae=own_vae,
            add_watermarker=False,
        )


def load_vae_file(file: Path, configs: Configs, dtype: torch.dtype) -> AutoencoderKL:
    """Load a VAE from a file of its own or from a whole checkpoint."""
    from diffusers import AutoencoderKL

    with _written(configs) as folder:
        return AutoencoderKL.from_single_file(
            str(file), config=str(folder), subfolder="vae", local_files_only=True, dtype=dtype
        )


@contextmanager
def _written(configs: Configs) -> Iterator[Path]:
    """The libraries read configurations from folders only."""
    with tempfile.TemporaryDirectory(prefix="styletune-") as name:
        folder = Path(name)
        (folder / "model_index.json").write_text(json.dumps(_INDEX))
        for part, config in configs.items():
            (folder / part).mkdir()
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            (folder / part / file).write_text(json.dumps(config))
        yield folder

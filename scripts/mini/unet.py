"""The mini base's UNet, trained together with the text encoders on cached latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mini.loop import Loop
from mini.pictures import SIDE_PX, draw_views, render_pool, to_float
from mini.text import make_text_encoders, train_tokenizer, worded

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

PreTrained = Any  # a model of diffusers or transformers
IMAGES, STEPS, BATCH = 16000, 9400, 24
CAPTION_DROPOUT = 0.1
SNR_GAMMA = 5.0  # arXiv 2303.09556


def make_unet() -> UNet2DConditionModel:
    """SDXL's UNet in small: the same three levels, so that module names are a subset."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE_PX // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(4, 6, 8),
        cross_attention_dim=160,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96 + 6 * 32,
        norm_num_groups=16,
    )


def make_scheduler() -> EulerDiscreteScheduler:
    """SDXL's."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


@torch.no_grad()
def cached_latents(vae: AutoencoderKL, out: Path, count: int) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of natural renders: two (n, 4, 16, 16) float32."""
    file = out / "latents.pt"
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        return kept["mean"], kept["std"]
    pool = render_pool(draw_views(count, seed=31), seed=32, looks=0.0)
    means, stds = [], []
    for i in range(0, count, 64):
        posterior = vae.encode(to_float(pool[i : i + 64])).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
        if i % 1024 == 0:
            print(f"latents {i}/{count}", flush=True)
    mean, std = torch.cat(means), torch.cat(stds)
    torch.save({"mean": mean, "std": std}, file)
    return mean, std


def random_sizes(count: int, rng: np.random.Generator) -> Tensor:
    """(count, 6) original size, crop and target size; half say nothing that is so.

    They decide nothing here, and the base learns to be calm about them.
    """
    sizes = torch.full((count, 6), float(SIDE_PX))
    sizes[:, 2:4] = 0
    wild = torch.from_numpy(rng.random(count) < 0.5)
    sizes[wild, :2] = torch.from_numpy(rng.integers(64, 4096, (int(wild.sum()), 2))).float()
    sizes[wild, 2:4] = torch.from_numpy(rng.integers(0, 96, (int(wild.sum()), 2))).float()
    return sizes


def train(out: Path, steps: int = STEPS, images: int = IMAGES) -> None:
    """Noise prediction with min-SNR weights and caption dropout, then the pipeline's folder."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    if not (out / "tokenizer_2").is_dir():
        train_tokenizer(out)
    torch.manual_seed(30)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    mean, std = cached_latents(vae, out, images)
    del vae
    views = draw_views(images, seed=31)
    tokenizers: list[Any] = [
        CLIPTokenizer.from_pretrained(out / d) for d in ("tokenizer", "tokenizer_2")
    ]
    unet = make_unet().to(memory_format=torch.channels_last)
    one, two = make_text_encoders(out)
    modules = nn.ModuleList([unet, one, two])
    start_from_parts(out, unet, one, two)
    alphas = make_scheduler().alphas_cumprod
    loop = Loop("unet", modules, out, steps, lr=8e-4, weight_decay=0.01)
    for step in loop:
        rng = np.random.default_rng([33, step])
        pick = rng.integers(len(views), size=BATCH)
        dropped = rng.random(BATCH) < CAPTION_DROPOUT
        texts = ["" if d else worded(views[i], rng) for i, d in zip(pick, dropped, strict=True)]
        ids = [
            t(
                texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            for t in tokenizers
        ]
        latents = mean[pick] + std[pick] * torch.randn(mean[pick].shape)
        noise = torch.randn(latents.shape)
        timesteps = torch.randint(0, 1000, (BATCH,))
        a = alphas[timesteps][:, None, None, None]
        noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        hidden_1 = one(ids[0], output_hidden_states=True).hidden_states[-2]
        output_2 = two(ids[1], output_hidden_states=True)
        context = torch.cat([hidden_1, output_2.hidden_states[-2]], -1)
        # Half of the empty captions as zeros, as the pipeline does; half as the text "".
        keep = torch.from_numpy(~(dropped & (rng.random(BATCH) < 0.5))).to(context.dtype)
        added = {
            "text_embeds": output_2.text_embeds * keep[:, None],
            "time_ids": random_sizes(BATCH, rng),
        }
        noise_pred = unet(
            noisy, timesteps, context * keep[:, None, None], added_cond_kwargs=added
        ).sample
        snr = a.flatten() / (1 - a.flatten())
        weight = snr.clamp(max=SNR_GAMMA) / snr
        loss = ((noise_pred - noise).square().mean((1, 2, 3)) * weight).mean()
        loop.update(loss)
        if step % 1000 == 0:  # to look at, while it goes on
            with loop.averaged():
                write_parts(out, unet, one, two)
    write_parts(out, unet, one, two)
    write_pipeline(out)


def start_from_parts(out: Path, unet: PreTrained, one: PreTrained, two: PreTrained) -> None:
    """Take the weights that lie in ``out``, if any: a checkpoint of ``Loop`` replaces them."""
    from safetensors.torch import load_file

    for module, name in ((unet, "unet"), (one, "text_encoder"), (two, "text_encoder_2")):
        for file in (out / name).glob("*.safetensors"):
            module.load_state_dict({k: v.float() for k, v in load_file(file).items()})
            print(f"{name}: goes on from {file.name}", flush=True)


def write_parts(out: Path, unet: PreTrained, one: PreTrained, two: PreTrained) -> None:
    """The trained parts as they are now."""
    for module, name in ((unet, "unet"), (one, "text_encoder"), (two, "text_encoder_2")):
        module.save_pretrained(out / name)


def write_pipeline(out: Path) -> None:
    """model_index.json and the scheduler around the trained parts; the stage is then done."""
    make_scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
        "add_watermarker": None,
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

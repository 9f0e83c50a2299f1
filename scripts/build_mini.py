"""Train the mini base from nothing: VAE, text encoders and UNet, open_clip, then the card.

    python scripts/build_mini.py all --out build/mini        # about 90 minutes on two cores
    python scripts/build_mini.py install --out build/mini    # copy into the package, as fp16

Each stage writes into ``--out`` and is skipped when its files are there. Seeds fix the data,
the initial weights and the order; another machine gives other last bits, not another model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from world import (
    EXTRAS,
    SCENES,
    TIMES,
    Look,
    View,
    caption,
    is_held_out,
    jittered_natural,
    random_look,
    random_view,
    render,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

SIDE_PX = 128
VAE_IMAGES, VAE_STEPS, VAE_BATCH, DECODER_STEPS = 8000, 3600, 16, 500
UNET_IMAGES, UNET_STEPS, UNET_BATCH = 12000, 2000, 24
CLIP_IMAGES, CLIP_STEPS, CLIP_BATCH = 12000, 2600, 64


def draw_views(count: int, seed: int, held_out: bool = False) -> list[View]:
    rng = np.random.default_rng(seed)
    views: list[View] = []
    while len(views) < count:
        view = random_view(rng, max_extras=3)
        if is_held_out(view) == held_out:
            views.append(view)
    return views


def to_float(pixels: np.ndarray) -> Tensor:
    """(b, h, w, 3) uint8 -> (b, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class Progress:
    """One line every few seconds: step, losses, speed, time left."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.start, self.last = name, steps, time.time(), 0.0

    def __call__(self, step: int, **values: float) -> None:
        now = time.time()
        if now - self.last < 15 and step < self.steps:
            return
        self.last = now
        rate = (now - self.start) / step
        shown = " ".join(f"{k} {v:.4f}" for k, v in values.items())
        print(
            f"{self.name} {step}/{self.steps} {shown} {rate:.2f} s/step, "
            f"{(self.steps - step) * rate / 60:.1f} min left",
            flush=True,
        )


class Ema:
    """Exponential moving average of the trainable parameters and buffers of a module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)


def one_cycle(
    optimizer: torch.optim.Optimizer, lr: float, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.08, final_div_factor=100
    )


# -- VAE ------------------------------------------------------------------------------------------


def render_pool(views: list[View], seed: int, looks: float) -> np.ndarray:
    """Render views, a share of them in random looks: (n, side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    pool = np.empty((len(views), SIDE_PX, SIDE_PX, 3), np.uint8)
    for i, view in enumerate(views):
        look: Look = random_look(rng) if rng.random() < looks else jittered_natural(rng)
        pool[i] = render(view, look, SIDE_PX)
    return pool


def image_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of pixels and of their first differences, so that edges stay sharp, plus L2."""
    delta = output - target
    dx, dy = delta[..., :, 1:] - delta[..., :, :-1], delta[..., 1:, :] - delta[..., :-1, :]
    return delta.abs().mean() + 0.5 * (dx.abs().mean() + dy.abs().mean()) + delta.square().mean()


def train_vae(out: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE_PX,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)
    print("rendering", VAE_IMAGES, "images", flush=True)
    pool = render_pool(draw_views(VAE_IMAGES, seed=1), seed=2, looks=0.5)
    rng = np.random.default_rng(3)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = one_cycle(optimizer, 1.2e-3, VAE_STEPS)
    ema, progress = Ema(vae, 0.998), Progress("vae", VAE_STEPS)
    for step in range(1, VAE_STEPS + 1):
        pixels = random_crops(pool, rng)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample
        loss = image_loss(output.float(), pixels)
        kl = 0.5 * (
            posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()
        )
        (loss + 2e-4 * kl.mean()).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(vae)
        progress(step, loss=loss.item(), kl=kl.mean().item())
        if step % 600 == 0:
            torch.save(ema.shadow, out / "vae-ema.pt")
    vae.load_state_dict(ema.shadow)
    whiten_latents(vae, pool[:512])
    vae.save_pretrained(out / "vae")
    print("vae PSNR dB", psnr(vae), flush=True)


def refine_decoder(out: Path) -> None:
    """Train the decoder on, with the encoder frozen: sharper images, the same latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(5)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(memory_format=torch.channels_last)
    before = psnr(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    pool = render_pool(draw_views(VAE_IMAGES, seed=1), seed=2, looks=0.5)
    rng = np.random.default_rng(6)
    optimizer = torch.optim.AdamW(trained, lr=6e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = one_cycle(optimizer, 6e-4, DECODER_STEPS)
    ema, progress = Ema(vae, 0.995), Progress("decoder", DECODER_STEPS)
    for step in range(1, DECODER_STEPS + 1):
        pixels = random_crops(pool, rng)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample()
            output = vae.decode(latents).sample
        loss = image_loss(output.float(), pixels)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(vae)
        progress(step, loss=loss.item())
    vae.load_state_dict(ema.shadow)
    print(f"decoder: PSNR {before:.2f} -> {psnr(vae):.2f} dB", flush=True)
    vae.save_pretrained(out / "vae")


def random_crops(pool: np.ndarray, rng: np.random.Generator, crop_px: int = 64) -> Tensor:
    """A batch of crops at multiples of 8, where textures keep their phase in the latent grid."""
    crops = np.empty((VAE_BATCH, crop_px, crop_px, 3), np.uint8)
    for i in range(VAE_BATCH):
        y, x = (int(v) * 8 for v in rng.integers((SIDE_PX - crop_px) // 8 + 1, size=2))
        crops[i] = pool[rng.integers(len(pool)), y : y + crop_px, x : x + crop_px]
    return to_float(crops).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions beside it.

    Diffusion adds the same noise to all channels, so a channel of small deviation would drown.
    """
    means = torch.cat(
        [
            vae.encode(to_float(images[i : i + 64])).latent_dist.mean
            for i in range(0, len(images), 64)
        ]
    )
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    print("latent mean", mean.tolist(), "std", std.tolist(), flush=True)
    q, p = vae.quant_conv, vae.post_quant_conv
    q.weight[:4] /= std[:, None, None, None]
    q.bias[:4] = (q.bias[:4] - mean) / std
    q.bias[4:] -= 2 * std.log()
    p.bias += (p.weight[:, :, 0, 0] * mean).sum(1)
    p.weight *= std[None, :, None, None]


@torch.no_grad()
def psnr(vae: AutoencoderKL, look: Look | None = None, count: int = 256) -> float:
    """Mean PSNR in dB over held-out renders in the natural look (peak 255)."""
    rng = np.random.default_rng(11)
    views = draw_views(count, seed=12, held_out=True)
    values: list[float] = []
    for i in range(0, count, 64):
        pixels = np.stack([render(v, look or jittered_natural(rng)) for v in views[i : i + 64]])
        x = to_float(pixels)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((y - x) * 127.5).square().mean((1, 2, 3))
        values += (10 * torch.log10(255**2 / mse)).tolist()
    return sum(values) / len(values)


# -- tokenizer, text encoders, UNet -------------------------------------------------------------

GENERAL_WORDS = (
    "style look brand poster illustration photo painting wallpaper background render scene in of "
    "the and with a an at on dark light warm cool pastel neon flat grainy striped dotted hatched "
    "paper lines red orange yellow green teal blue violet pink minimal abstract graphic horizon"
)


def train_tokenizer(out: Path) -> None:
    """A byte-level BPE in CLIP's own file format, learned from the world's captions."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    end = "</w>"
    blank = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    learner = Tokenizer(models.BPE(end_of_word_suffix=end, unk_token="<|endoftext|>"))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    corpus = [caption(v) for v in draw_views(4000, seed=20)] + [GENERAL_WORDS] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix=end,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(c + end for c in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]  # last: CLIP finds the end by the highest id
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    for folder, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)
        tokenizer.save_pretrained(out / folder)
        # The two classic files as well: other tools read those.
        (out / folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
        lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
        (out / folder / "merges.txt").write_text("\n".join(lines) + "\n")
    print("tokenizer of", len(vocab), "tokens", flush=True)


def make_text_encoders(out: Path) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    one = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=64,
        hidden_act="quick_gelu",
        pad_token_id=tokenizer.eos_token_id,
        **ids,
    )
    two = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=6,
        projection_dim=96,
        hidden_act="gelu",
        pad_token_id=0,
        **ids,
    )
    return CLIPTextModel(one), CLIPTextModelWithProjection(two)


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
def cache_latents(vae: AutoencoderKL, pool: np.ndarray) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation: two (n, 4, 16, 16) float32."""
    means, stds, progress = [], [], Progress("latents", len(pool))
    for i in range(0, len(pool), 64):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(to_float(pool[i : i + 64])).latent_dist
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
        progress(i + 1)
    return torch.cat(means), torch.cat(stds)


def worded(view: View, rng: np.random.Generator) -> str:
    """A caption, sometimes behind words that mean nothing, so that unknown words do no harm."""
    text = caption(view, template=None)
    kind = rng.random()
    if kind < 0.12:
        letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(3, 9)))
        return f"{letters} style, {text}"
    if kind < 0.2:
        return f"{rng.choice(['photo of', 'wide shot of', 'wallpaper,', 'scene,'])} {text}"
    return text


def train_unet(out: Path) -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    if not (out / "tokenizer").is_dir():
        train_tokenizer(out)
    torch.manual_seed(30)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    views = draw_views(UNET_IMAGES, seed=31)
    print("rendering", UNET_IMAGES, "images", flush=True)
    mean, std = cache_latents(vae, render_pool(views, seed=32, looks=0.0))
    del vae
    tokenizers = [CLIPTokenizer.from_pretrained(out / d) for d in ("tokenizer", "tokenizer_2")]
    unet = make_unet().to(memory_format=torch.channels_last)
    one, two = make_text_encoders(out)
    modules = nn.ModuleList([unet, one, two])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=8e-4, weight_decay=0.01, fused=True)
    schedule = one_cycle(optimizer, 8e-4, UNET_STEPS)
    alphas = make_scheduler().alphas_cumprod
    rng, gen = np.random.default_rng(33), torch.Generator().manual_seed(34)
    ema, progress = Ema(modules, 0.998), Progress("unet", UNET_STEPS)
    for step in range(1, UNET_STEPS + 1):
        pick = rng.integers(len(views), size=UNET_BATCH)
        dropped = rng.random(UNET_BATCH) < 0.1
        texts = ["" if d else worded(views[i], rng) for i, d in zip(pick, dropped, strict=True)]
        ids = [
            t(
                texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            for t in tokenizers
        ]
        latents = mean[pick] + std[pick] * torch.randn(mean[pick].shape, generator=gen)
        noise = torch.randn(latents.shape, generator=gen)
        timesteps = torch.randint(0, 1000, (UNET_BATCH,), generator=gen)
        a = alphas[timesteps][:, None, None, None]
        noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        # Sizes say nothing here, so the base learns to be calm about them.
        sizes = torch.full((UNET_BATCH, 6), float(SIDE_PX))
        sizes[:, 2:4] = 0
        wild = torch.from_numpy(rng.random(UNET_BATCH) < 0.5)
        sizes[wild, :2] = torch.from_numpy(rng.integers(64, 4096, (int(wild.sum()), 2))).float()
        sizes[wild, 2:4] = torch.from_numpy(rng.integers(0, 96, (int(wild.sum()), 2))).float()
        with torch.autocast("cpu", torch.bfloat16):
            hidden_1 = one(ids[0], output_hidden_states=True).hidden_states[-2]
            output_2 = two(ids[1], output_hidden_states=True)
            context = torch.cat([hidden_1, output_2.hidden_states[-2]], -1)
            # Half of the empty captions as zeros, as the pipeline does; half as the text "".
            keep = torch.from_numpy(~(dropped & (rng.random(UNET_BATCH) < 0.5))).to(context.dtype)
            added = {"text_embeds": output_2.text_embeds * keep[:, None], "time_ids": sizes}
            noise_pred = unet(
                noisy, timesteps, context * keep[:, None, None], added_cond_kwargs=added
            ).sample
        snr = a.flatten() / (1 - a.flatten())
        weight = snr.clamp(max=5) / snr
        loss = ((noise_pred.float() - noise).square().mean((1, 2, 3)) * weight).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(modules)
        progress(step, loss=loss.item())
        if step % 400 == 0 or step == UNET_STEPS:
            live = {k: v.clone() for k, v in modules.state_dict().items()}
            modules.load_state_dict(ema.shadow)
            for module, name in ((unet, "unet"), (one, "text_encoder"), (two, "text_encoder_2")):
                module.save_pretrained(out / name)
            modules.load_state_dict(live)
    write_pipeline(out)


def write_pipeline(out: Path) -> None:
    """Write model_index.json and the scheduler around the trained parts."""
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


# -- open_clip ------------------------------------------------------------------------------------


def write_open_clip_config(out: Path, folder: Path) -> None:
    import shutil

    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for file in (out / "tokenizer").iterdir():
        shutil.copy(file, folder / file.name)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": SIDE_PX, "layers": [1, 1, 2, 1], "width": 24},
            "text_cfg": {
                "context_length": 77,
                "vocab_size": len(tokenizer),
                "hf_tokenizer_name": "mini",
                "width": 128,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "size": SIDE_PX,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "mode": "RGB",
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def soften(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Shrink and enlarge a random half of a batch: what a small VAE softens must be recognized."""
    half = torch.from_numpy(rng.random(len(pixels)) < 0.5)
    size = int(rng.integers(SIDE_PX // 3, SIDE_PX))
    small = F.interpolate(pixels[half], size=(size, size), mode="bilinear", antialias=True)
    pixels[half] = F.interpolate(small, size=pixels.shape[-2:], mode="bicubic").clamp(-1, 1)
    return pixels


def train_open_clip(out: Path) -> None:
    """An image and a text tower of their own, on the same world in many looks."""
    import open_clip
    from open_clip.factory import create_model
    from safetensors.torch import save_file

    folder = out / "open_clip"
    model_file = folder / "open_clip_model.safetensors"
    write_open_clip_config(out, folder)
    torch.manual_seed(40)
    model = create_model(f"local-dir:{folder}", load_weights=False)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.2e-3, weight_decay=0.05, fused=True)
    schedule = one_cycle(optimizer, 1.2e-3, CLIP_STEPS)
    views, rng = draw_views(CLIP_IMAGES, seed=41), np.random.default_rng(42)
    images = np.empty((len(views), SIDE_PX, SIDE_PX, 3), np.uint8)
    looks: list[Look] = []
    for i, view in enumerate(views):
        looks.append(random_look(rng) if rng.random() < 0.65 else jittered_natural(rng))
        images[i] = render(view, looks[-1])
    ema, progress = Ema(model, 0.995), Progress("open_clip", CLIP_STEPS)
    for step in range(1, CLIP_STEPS + 1):
        pick = rng.choice(len(views), size=CLIP_BATCH, replace=False)
        texts = []
        for i in pick:
            text = worded(views[i], rng)
            if rng.random() < 0.5:
                text += ", " + " ".join(looks[i].words) + " look"
            texts.append(text)
        with torch.autocast("cpu", torch.bfloat16):
            pixels = soften(to_float(images[pick]), rng)
            image_features, text_features, scale = model(pixels, tokenize(texts))[:3]
            logits = (scale * image_features @ text_features.T).float()
        target = torch.arange(CLIP_BATCH)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        ema.update(model)
        right = (logits.argmax(1) == target).float().mean().item()
        progress(step, loss=loss.item(), right=right)
    model.load_state_dict(ema.shadow)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, model_file)


# -- scores, card, install ------------------------------------------------------------------------


class OpenClip(NamedTuple):
    """An encoder and what goes before it; open_clip has no types."""

    model: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]


def load_open_clip(folder: Path) -> OpenClip:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return OpenClip(model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}"))


@torch.no_grad()
def retrieval(clip: OpenClip, images: np.ndarray, texts: list[str], among: int = 32) -> float:
    """Share of images whose own caption scores highest among itself and 31 other captions."""
    model, preprocess, tokenize = clip
    pixels = torch.stack([preprocess(Image.fromarray(i)) for i in images])
    image_features = F.normalize(model.encode_image(pixels), dim=-1)
    text_features = F.normalize(model.encode_text(tokenize(texts)), dim=-1)
    rng, right = np.random.default_rng(50), 0
    for i in range(len(texts)):
        others = [j for j in rng.permutation(len(texts)) if texts[j] != texts[i]][: among - 1]
        scores = image_features[i] @ text_features[[i, *others]].T
        right += int(scores.argmax() == 0)
    return right / len(texts)


@torch.no_grad()
def generate(out: Path, texts: list[str], seed: int = 0) -> np.ndarray:
    """25 Euler steps, guidance 5: (n, side, side, 3) uint8."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(out, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images = []
    for i in range(0, len(texts), 32):
        batch = texts[i : i + 32]
        generators = [torch.Generator().manual_seed(seed + i + j) for j in range(len(batch))]
        images.append(
            pipe(
                batch,
                num_inference_steps=25,
                guidance_scale=5.0,
                output_type="np",
                generator=generators,
            ).images
        )
    pixels: np.ndarray = np.rint(np.concatenate(images) * 255).astype(np.uint8)
    return pixels


def distinct_captions(count: int) -> tuple[list[View], list[str]]:
    """Held-out compositions, each once, in plain words.

    Extras in another order are the same composition: its caption would be right as well.
    """
    found: dict[tuple[str, str, frozenset[str]], View] = {}
    for view in draw_views(count * 8, seed=51, held_out=True):
        if len(view.extras) <= 2:
            found.setdefault((view.scene, view.time, frozenset(view.extras)), view)
    views = list(found.values())[:count]
    return views, [caption(v, template=0) for v in views]


def evaluate(out: Path) -> dict[str, float]:
    """Scores for the card, and ``sheet.jpg``: real renders above what the base makes of them."""
    from diffusers import AutoencoderKL

    clip = load_open_clip(out / "open_clip")
    views, texts = distinct_captions(192)
    real = np.stack([render(v) for v in views])
    made = generate(out, texts)
    rows = []
    for i in range(0, 48, 12):
        rows += [
            np.concatenate(list(real[i : i + 12]), 1),
            np.concatenate(list(made[i : i + 12]), 1),
        ]
    Image.fromarray(np.concatenate(rows)).save(out / "sheet.jpg", quality=88)
    (out / "sheet.txt").write_text("\n".join(texts[:48]) + "\n")
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    scores = {
        "vae_psnr_db": psnr(vae),
        "retrieval_real": retrieval(clip, real, texts),
        "retrieval_generated": retrieval(clip, made, texts),
    }
    print(scores, flush=True)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores


PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def install(out: Path) -> None:
    """Copy everything into the package, weights in fp16, and write the card."""
    import shutil

    from safetensors.torch import load_file, save_file

    package = Path(__file__).parent.parent / "src" / "styletune" / "mini"
    for target in (package / "base", package / "open_clip"):
        shutil.rmtree(target, ignore_errors=True)
    for name in (*PARTS, "tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(out / name, package / "base" / name)
    shutil.copy(out / "model_index.json", package / "base")
    for file in (package / "base").rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where it was built is nobody's business
        file.write_text(json.dumps(config, indent=2) + "\n")
    shutil.copytree(out / "open_clip", package / "open_clip")
    total = 0
    for file in sorted(package.rglob("*.safetensors")):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        total += file.stat().st_size
    shutil.copy(out / "sheet.jpg", package / "sheet.jpg")
    scores = json.loads((out / "scores.json").read_text())
    (package / "CARD.md").write_text(card(scores, total / 1e6))
    print(f"installed {total / 1e6:.1f} MB of weights", flush=True)


def card(scores: dict[str, float], total_mb: float) -> str:
    return f"""# The mini base

A text-to-image model with SDXL's architecture in small, so that the whole job runs on two CPU
cores with no download. Made by `scripts/build_mini.py` from nothing but `world.py`, a procedural
world of {len(SCENES)} scenes, {len(TIMES)} times of day and {len(EXTRAS)} extras at
{SIDE_PX}×{SIDE_PX} pixels. License: Apache-2.0, like the rest of the package.

| part | what | trained on | steps × batch | two idle CPU cores, estimated from s/step |
|---|---|---|---|---|
| `base/vae` | AutoencoderKL, factor 8, 4 channels, latents of unit variance | {VAE_IMAGES:,} renders, half of them in random looks, 64-px crops | {VAE_STEPS:,} × {VAE_BATCH}, then the decoder alone {DECODER_STEPS:,} × {VAE_BATCH} | 36 min |
| `base/unet`, `base/text_encoder`, `base/text_encoder_2` | SDXL's block layout at widths 64, 96, 128; CLIP text encoders 64 and 96 wide | {UNET_IMAGES:,} renders in the natural look only | {UNET_STEPS:,} × {UNET_BATCH} | 27 min |
| `open_clip` | ResNet image tower and text tower, independent of the generator | {CLIP_IMAGES:,} renders, two thirds in random looks, half of every batch softened | {CLIP_STEPS:,} × {CLIP_BATCH} | 29 min |

The demo's brand look is drawn nowhere in this training: what an adapter shows of it, it learned.
One composition (scene, time, extras) in ten is held out of all of it; the scores below are on
those alone. {total_mb:.1f} MB of fp16 weights. Seeds are in the script.

| score | value | aim |
|---|---|---|
| VAE PSNR on held-out renders | {scores["vae_psnr_db"]:.1f} dB | 28 dB |
| right caption among 32, real renders | {scores["retrieval_real"]:.1%} | 95 % |
| right caption among 32, generated (25 Euler steps, guidance 5) | {scores["retrieval_generated"]:.1%} | 80 % |

Reproduce the scores: `python scripts/build_mini.py evaluate --out build/mini`.

Held-out captions: real renders (odd rows) above what the base makes of the same words (even rows).

![contact sheet](sheet.jpg)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = ("vae", "decoder", "unet", "open_clip", "evaluate", "install", "all")
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--out", type=Path, default=Path("build/mini"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    if args.stage == "vae" or (args.stage == "all" and not (args.out / "vae").is_dir()):
        train_vae(args.out)
        if args.stage == "all":
            refine_decoder(args.out)
    if args.stage == "decoder":
        refine_decoder(args.out)
    if args.stage == "unet" or (
        args.stage == "all" and not (args.out / "model_index.json").is_file()
    ):
        train_unet(args.out)
    clip_file = args.out / "open_clip" / "open_clip_model.safetensors"
    if args.stage == "open_clip" or (args.stage == "all" and not clip_file.is_file()):
        train_open_clip(args.out)
    if args.stage in ("evaluate", "all"):
        evaluate(args.out)
    if args.stage in ("install", "all"):
        install(args.out)
    print(f"{args.stage}: {(time.time() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()

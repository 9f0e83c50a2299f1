"""The mini base's VAE: SDXL's AutoencoderKL, narrow where the images are large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mini.loop import Loop
from mini.pictures import SIDE_PX, draw_views, render_pool, to_float
from world import Look, jittered_natural, render

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

IMAGES, STEPS, BATCH, CROP_PX = 12000, 9000, 8, 64
DECODER_STEPS = 7500
LOOKS = 0.3  # the share of images in random looks
# Noise that nobody can encode in so few numbers would only cost the edges.
SMOOTH = ("none", "stripes", "dots", "hatch")
KL_WEIGHT = 1e-4


def make_vae() -> AutoencoderKL:
    """Most of a pass's time goes into the large images, most of the work is done in the small."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 96, 192),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE_PX,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


def image_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of pixels and of their first differences, so that edges stay sharp, plus L2."""
    delta = output - target
    dx, dy = delta[..., :, 1:] - delta[..., :, :-1], delta[..., 1:, :] - delta[..., :-1, :]
    return delta.abs().mean() + 0.5 * (dx.abs().mean() + dy.abs().mean()) + delta.square().mean()


def random_crops(pool: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A batch of crops at multiples of 8, where textures keep their phase in the latent grid."""
    crops = np.empty((BATCH, CROP_PX, CROP_PX, 3), np.uint8)
    for i in range(BATCH):
        y, x = (int(v) * 8 for v in rng.integers((SIDE_PX - CROP_PX) // 8 + 1, size=2))
        crops[i] = pool[rng.integers(len(pool)), y : y + CROP_PX, x : x + CROP_PX]
    return to_float(crops).contiguous(memory_format=torch.channels_last)


def train(out: Path, steps: int = STEPS) -> None:
    torch.manual_seed(1)
    vae = make_vae()
    pool = render_pool(draw_views(IMAGES, seed=1), seed=2, looks=LOOKS, textures=SMOOTH)
    loop = Loop("vae", vae, out, steps, lr=1e-3)
    for step in loop:
        pixels = random_crops(pool, np.random.default_rng([3, step]))
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.sample()).sample
        loss = image_loss(output, pixels)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loop.update(loss + KL_WEIGHT * kl, image=loss.item(), kl=kl.item())
        if step % 1000 == 0:
            with loop.averaged():
                print(f"vae: PSNR {psnr(vae, count=64):.2f} dB at step {step}", flush=True)
    whiten_latents(vae, pool[:512])
    vae.save_pretrained(out / "vae")
    print(f"vae: PSNR {psnr(vae):.2f} dB", flush=True)


def train_decoder(out: Path, steps: int = DECODER_STEPS, measured_on: int = 256) -> None:
    """The decoder alone, longer, on posterior means: what a UNet learned of the latents holds."""
    from diffusers import AutoencoderKL

    torch.manual_seed(4)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(memory_format=torch.channels_last)
    for module in (vae.encoder, vae.quant_conv):
        module.requires_grad_(requires_grad=False)
    pool = render_pool(draw_views(IMAGES, seed=5), seed=6, looks=LOOKS, textures=SMOOTH)
    loop = Loop("decoder", vae, out, steps, lr=5e-4)
    for step in loop:
        pixels = random_crops(pool, np.random.default_rng([7, step]))
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode()
        loss = image_loss(vae.decode(latents).sample, pixels)
        loop.update(loss)
        if step % 1000 == 0:
            with loop.averaged():
                print(f"decoder: PSNR {psnr(vae, count=64):.2f} dB at step {step}", flush=True)
    vae.save_pretrained(out / "vae")
    facts = {"steps": steps, "psnr_db": psnr(vae, count=measured_on)}
    (out / "decoder.json").write_text(json.dumps(facts) + "\n")


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
    assert isinstance(q, nn.Conv2d)
    assert q.bias is not None
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
    for i in range(0, count, 32):
        pixels = np.stack([render(v, look or jittered_natural(rng)) for v in views[i : i + 32]])
        x = to_float(pixels)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((y - x) * 127.5).square().mean((1, 2, 3))
        values += (10 * torch.log10(255**2 / mse)).tolist()
    return sum(values) / len(values)

"""What the mini base can do, on held-out compositions: the card's numbers and its sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mini.clip import load, look_triples, retrieval
from mini.judge import judged
from mini.pictures import draw_views, to_float
from mini.vae import psnr
from world import View, caption, render

EDGE_REACH_PX = 2
SHEET_COLUMNS, SHEET_ROWS = 12, 4


@torch.no_grad()
def generate(out: Path, texts: list[str], seed: int = 0) -> np.ndarray:
    """25 Euler steps, guidance 5: (n, side, side, 3) uint8."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(out, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images = []
    for i in range(0, len(texts), 16):
        batch = texts[i : i + 16]
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
        print(f"generated {i + len(batch)}/{len(texts)}", flush=True)
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


def edge_f1(image: np.ndarray, render: np.ndarray) -> float:
    """F1 of Canny edges within ``EDGE_REACH_PX`` of each other; both (h, w, 3) uint8."""
    from scipy.ndimage import distance_transform_edt
    from skimage.color import rgb2gray
    from skimage.feature import canny

    made, there = (canny(rgb2gray(each), sigma=1.0) for each in (image, render))
    if not (made.any() and there.any()):
        return float(made.any() == there.any())

    def near(edges: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
        return float((distance_transform_edt(~others)[edges] <= EDGE_REACH_PX).mean())

    precision, recall = near(made, there), near(there, made)
    return 2 * precision * recall / max(precision + recall, 1e-9)


@torch.no_grad()
def kept_edges(out: Path, count: int = 128) -> float:
    """Mean ``edge_f1`` of held-out renders after the VAE."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    images = np.stack([render(v) for v in draw_views(count, seed=12, held_out=True)])
    values = []
    for i in range(0, count, 32):
        x = to_float(images[i : i + 32])
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        back = np.rint((y.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
        values += [edge_f1(a, b) for a, b in zip(back, images[i : i + 32], strict=True)]
    return float(np.mean(values))


def write_sheet(out: Path, real: np.ndarray, made: np.ndarray) -> None:
    """Renders above what the base makes of the same words, row by row."""
    rows = []
    for i in range(0, SHEET_ROWS * SHEET_COLUMNS, SHEET_COLUMNS):
        rows += [np.concatenate(list(each[i : i + SHEET_COLUMNS]), 1) for each in (real, made)]
    Image.fromarray(np.concatenate(rows)).save(out / "sheet.jpg", quality=88)


def evaluate(out: Path) -> dict[str, float]:
    """Every number of the card, in ``scores.json``, and ``sheet.jpg``."""
    from diffusers import AutoencoderKL

    views, texts = distinct_captions(192)
    real = np.stack([render(v) for v in views])
    made = generate(out, texts)
    write_sheet(out, real, made)
    clip = load(out / "open_clip")
    scores = {
        "vae_psnr_db": psnr(AutoencoderKL.from_pretrained(out / "vae").eval()),
        "vae_edge_f1": kept_edges(out),
        "retrieval_real": retrieval(clip, real, texts),
        "retrieval_generated": retrieval(clip, made, texts),
        "look_triples": look_triples(clip),
        **{f"renders_{name}": share for name, share in judged(out, real, views).items()},
        **{f"generated_{name}": share for name, share in judged(out, made, views).items()},
    }
    print(json.dumps(scores, indent=2), flush=True)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores

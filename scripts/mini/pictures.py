"""Renders of the procedural world, as the stages take them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from world import Look, View, is_held_out, jittered_natural, random_look, random_view, render

SIDE_PX = 128
# The share of extras that are said to be left, right or two.
PLACES = 0.35


def draw_views(count: int, seed: int, held_out: bool = False) -> list[View]:
    """Random views, none of them of a held-out composition; with ``held_out`` only such."""
    rng = np.random.default_rng(seed)
    views: list[View] = []
    while len(views) < count:
        view = random_view(rng, max_extras=3, places=PLACES)
        if is_held_out(view) == held_out:
            views.append(view)
    return views


def to_float(pixels: np.ndarray) -> Tensor:
    """(b, h, w, 3) uint8 -> (b, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def render_pool(
    views: list[View], seed: int, looks: float, textures: tuple[str, ...] | None = None
) -> np.ndarray:
    """Render views, a share of them in random looks: (n, side, side, 3) uint8.

    ``textures`` are those of the looks; others become flat ones.
    """
    print(f"rendering {len(views)} images", flush=True)
    rng = np.random.default_rng(seed)
    pool = np.empty((len(views), SIDE_PX, SIDE_PX, 3), np.uint8)
    for i, view in enumerate(views):
        look: Look = random_look(rng) if rng.random() < looks else jittered_natural(rng)
        if textures and look.texture not in textures:
            look = replace(look, texture="none")
        pool[i] = render(view, look, SIDE_PX)
    return pool


def softened(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Shrink and enlarge a random half of a batch: what a small VAE softens must be recognized."""
    half = torch.from_numpy(rng.random(len(pixels)) < 0.5)
    size = int(rng.integers(SIDE_PX // 3, SIDE_PX))
    small = F.interpolate(pixels[half], size=(size, size), mode="bilinear", antialias=True)
    pixels[half] = F.interpolate(small, size=pixels.shape[-2:], mode="bicubic").clamp(-1, 1)
    return pixels

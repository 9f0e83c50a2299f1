"""The mini open_clip: an image and a text tower of their own, on the world in many looks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mini.loop import Loop
from mini.pictures import SIDE_PX, draw_views, softened, to_float
from mini.text import worded
from world import Look, View, jittered_natural, random_look, render

LOOKS, VIEWS_PER_LOOK, NATURAL_IMAGES = 2500, 4, 5000
STEPS, BATCH = 4000, 64
STYLE_WEIGHT, STYLE_TEMPERATURE = 0.3, 0.1


class OpenClip(NamedTuple):
    """An encoder and what goes before it; open_clip has no types."""

    model: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]


class Pool(NamedTuple):
    """Images (n, side, side, 3) uint8, their views and words, and the number of their look."""

    images: np.ndarray
    views: list[View]
    words: list[tuple[str, ...]]
    looks: np.ndarray


def write_config(out: Path, folder: Path) -> None:
    """The tokenizer's files and open_clip's description of the model."""
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


def render_looks() -> Pool:
    """Several views in each of many looks, and more in the natural one, which is number 0."""
    rng = np.random.default_rng(42)
    count = LOOKS * VIEWS_PER_LOOK + NATURAL_IMAGES
    print(f"rendering {count} images", flush=True)
    views, words = draw_views(count, seed=41), []
    images = np.empty((count, SIDE_PX, SIDE_PX, 3), np.uint8)
    numbers = np.zeros(count, np.int64)
    look: Look | None = None
    for i, view in enumerate(views):
        if i >= LOOKS * VIEWS_PER_LOOK:
            look = jittered_natural(rng)
        elif i % VIEWS_PER_LOOK == 0 or look is None:
            look = random_look(rng)
        numbers[i] = 1 + i // VIEWS_PER_LOOK if i < LOOKS * VIEWS_PER_LOOK else 0
        images[i] = render(view, look)
        words.append(look.words)
    return Pool(images, views, words, numbers)


def picked(rng: np.random.Generator) -> np.ndarray:
    """Rows of one batch: pairs of one look each for five eighths of it, natural ones for the rest."""
    pairs = BATCH * 5 // 16
    looks = rng.choice(LOOKS, size=pairs, replace=False)
    rows = [look * VIEWS_PER_LOOK + rng.choice(VIEWS_PER_LOOK, 2, replace=False) for look in looks]
    natural = LOOKS * VIEWS_PER_LOOK + rng.choice(
        NATURAL_IMAGES, size=BATCH - 2 * pairs, replace=False
    )
    return np.concatenate([*rows, natural])


def style_loss(features: Tensor, looks: Tensor) -> Tensor:
    """Supervised contrast of looks (arXiv 2004.11362, equation 2), for unit features (b, d)."""
    itself = torch.eye(len(looks), dtype=torch.bool)
    logits = (features @ features.T / STYLE_TEMPERATURE).masked_fill(itself, -1e9)
    same = (looks[:, None] == looks[None]) & ~itself
    log_share = logits - logits.logsumexp(1, keepdim=True)
    return -((log_share * same).sum(1) / same.sum(1)).mean()


def train(out: Path, steps: int = STEPS) -> None:
    """CLIP's loss on captions, half of them with words for the look, and contrast of looks."""
    import open_clip
    from open_clip.factory import create_model
    from safetensors.torch import save_file

    folder = out / "open_clip"
    write_config(out, folder)
    torch.manual_seed(40)
    model = create_model(f"local-dir:{folder}", load_weights=False)
    model.to(memory_format=torch.channels_last)  # a third less time on a CPU
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.train()
    pool = render_looks()
    loop = Loop("open_clip", model, out, steps, lr=1e-3, weight_decay=0.05)
    for step in loop:
        rng = np.random.default_rng([43, step])
        pick = picked(rng)
        texts = [worded(pool.views[i], rng) for i in pick]
        named = rng.random(BATCH) < 0.5
        texts = [
            f"{text}, {' '.join(pool.words[i])} look" if is_named else text
            for text, i, is_named in zip(texts, pick, named, strict=True)
        ]
        pixels = softened(to_float(pool.images[pick]), rng)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        image_features, text_features, scale = model(pixels, tokenize(texts))[:3]
        logits = scale * image_features @ text_features.T
        target = torch.arange(BATCH)
        text_loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        look_loss = style_loss(image_features, torch.from_numpy(pool.looks[pick]))
        right = (logits.argmax(1) == target).float().mean().item()
        loop.update(
            text_loss + STYLE_WEIGHT * look_loss,
            text=text_loss.item(),
            look=look_loss.item(),
            right=right,
        )
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def load(folder: Path) -> OpenClip:
    """What ``train`` wrote, as its users load it."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return OpenClip(model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}"))


@torch.no_grad()
def encode_images(clip: OpenClip, images: np.ndarray) -> Tensor:
    """Unit features (n, d) of (n, h, w, 3) uint8."""
    parts = []
    for i in range(0, len(images), 64):
        pixels = torch.stack(
            [clip.preprocess(Image.fromarray(each)) for each in images[i : i + 64]]
        )
        parts.append(F.normalize(clip.model.encode_image(pixels), dim=-1))
    return torch.cat(parts)


@torch.no_grad()
def retrieval(clip: OpenClip, images: np.ndarray, texts: list[str], among: int = 32) -> float:
    """Share of images whose own caption scores highest among itself and 31 other captions."""
    image_features = encode_images(clip, images)
    text_features = F.normalize(clip.model.encode_text(clip.tokenize(texts)), dim=-1)
    rng, right = np.random.default_rng(50), 0
    for i in range(len(texts)):
        others = [j for j in rng.permutation(len(texts)) if texts[j] != texts[i]][: among - 1]
        scores = image_features[i] @ text_features[[i, *others]].T
        right += int(scores.argmax() == 0)
    return right / len(texts)


def look_triples(clip: OpenClip, looks: int = 48, views: int = 4) -> float:
    """Share of (image, another of its look, one of another look) with the look's own nearer.

    Held-out compositions in looks that training never drew.
    """
    rng = np.random.default_rng(52)
    drawn = [random_look(rng) for _ in range(looks)]
    seen = iter(draw_views(looks * views, seed=53, held_out=True))
    images = np.stack([render(next(seen), look) for look in drawn for _ in range(views)])
    features = encode_images(clip, images)
    near = (features @ features.T).numpy()
    owner = np.repeat(np.arange(looks), views)
    right = [
        (near[i, j] > near[i, owner != owner[i]]).mean()
        for i in range(len(owner))
        for j in np.flatnonzero(owner == owner[i])
        if i != j
    ]
    return float(np.mean(right))

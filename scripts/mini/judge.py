"""A judge of generated images that has seen renders alone: which scene, hour and extras?"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini.loop import Loop
from mini.pictures import draw_views, render_pool, softened, to_float
from world import EXTRAS, SCENES, TIMES, View, split_extra

IMAGES, STEPS, BATCH = 12000, 2200, 48


def make_judge() -> nn.Sequential:
    """Pixels (b, 3, 128, 128) in [-1, 1] -> logits of scenes, hours and extras."""
    layers: list[nn.Module] = []
    channels = (3, 24, 48, 96, 128, 160)
    for i, (before, after) in enumerate(itertools.pairwise(channels)):
        layers += [nn.Conv2d(before, after, 5 if i == 0 else 3, 2, padding=2 if i == 0 else 1)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.Conv2d(160, 160, 3, padding=1), nn.BatchNorm2d(160), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(160 * 16, len(SCENES) + len(TIMES) + len(EXTRAS))]
    return nn.Sequential(*layers)


def targets(views: list[View]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of scenes (n,) and hours (n,), and which extras there are (n, 12)."""
    scenes = torch.tensor([list(SCENES).index(v.scene) for v in views])
    times = torch.tensor([TIMES.index(v.time) for v in views])
    extras = torch.zeros(len(views), len(EXTRAS))
    for row, view in enumerate(views):
        for extra in view.extras:
            extras[row, list(EXTRAS).index(split_extra(extra)[0])] = 1
    return scenes, times, extras


def _split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scenes, times, extras = logits.split([len(SCENES), len(TIMES), len(EXTRAS)], dim=1)
    return scenes, times, extras


def train(out: Path, steps: int = STEPS) -> None:
    """On natural renders, half of every batch softened."""
    torch.manual_seed(60)
    judge = make_judge()
    views = draw_views(IMAGES, seed=61)
    pool = render_pool(views, seed=62, looks=0.0)
    scenes, times, extras = targets(views)
    loop = Loop("judge", judge, out, steps, lr=1e-3, weight_decay=0.01, ema_decay=0.995)
    for step in loop:
        rng = np.random.default_rng([63, step])
        pick = rng.integers(len(views), size=BATCH)
        says = _split(judge(softened(to_float(pool[pick]), rng)))
        loss = F.cross_entropy(says[0], scenes[pick]) + F.cross_entropy(says[1], times[pick])
        loss = loss + 4 * F.binary_cross_entropy_with_logits(says[2], extras[pick])
        loop.update(loss)
    torch.save(judge.state_dict(), out / "judge.pt")


@torch.no_grad()
def judged(out: Path, images: np.ndarray, views: list[View]) -> dict[str, float]:
    """Shares of images with the right scene, the right hour, and of asked extras that are seen."""
    judge = make_judge()
    judge.load_state_dict(torch.load(out / "judge.pt", weights_only=True))
    judge.eval()
    says = _split(
        torch.cat([judge(to_float(images[i : i + 64])) for i in range(0, len(images), 64)])
    )
    scenes, times, extras = targets(views)
    asked = extras == 1
    return {
        "scene": (says[0].argmax(1) == scenes).float().mean().item(),
        "time": (says[1].argmax(1) == times).float().mean().item(),
        "extras": (says[2][asked] > 0).float().mean().item(),
        "unasked": (says[2][~asked] > 0).float().mean().item(),
    }

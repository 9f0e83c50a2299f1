"""The loop's step against the bare model's: forward, backward and optimizer on the same shapes.

    python scripts/bench/train_step.py            # mini base on the CPU
    python scripts/bench/train_step.py --steps 60 --batch-size 8

Both run in this process, alternating, with the same adapter; the ratio of the medians is what
the loop adds (noise, cache look-up, schedule, log, progress).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from styletune.runs import Run
from styletune.sdxl.adapter import adapter_parameters, inject_adapter, target_modules
from styletune.sdxl.load import find_base, load_pipeline
from styletune.training.cache import Cache
from styletune.training.checkpoint import Identity
from styletune.training.loop import (
    AdapterSettings,
    LoopSettings,
    make_accelerator,
    train_adapter,
)

NUM_IMAGES = 36


def random_cache(pipe, generator: torch.Generator, device: str) -> Cache:  # type: ignore[no-untyped-def]
    side = pipe.unet.config.sample_size
    width = pipe.unet.config.cross_attention_dim
    pooled = pipe.text_encoder_2.config.projection_dim

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    return Cache(
        mean=normal(NUM_IMAGES, 4, side, side),
        logvar=torch.full((NUM_IMAGES, 4, side, side), -6.0, device=device),
        time_ids=torch.full((NUM_IMAGES, 6), float(side * 8), device=device),
        embeds=normal(NUM_IMAGES + 1, 77, width),
        pooled=normal(NUM_IMAGES + 1, pooled),
        caption_rows=torch.arange(NUM_IMAGES),
    )


def time_loop(cache: Cache, steps: int, batch_size: int) -> float:
    """Seconds a step of ``train_adapter``, without its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        accelerator = make_accelerator("no", "none", run)
        pipe = load_pipeline(
            find_base("mini", None, Path()), torch.float32, str(accelerator.device)
        )
        marks: list[float] = []
        settings = LoopSettings(
            steps=steps, batch_size=batch_size, seed=0, snr_gamma=5.0, caption_dropout=0.1,
            learning_rate=1e-4, weight_decay=0.01, schedule="constant", warmup_steps=0,
            max_grad_norm=1.0, checkpoint_every=steps, log_every=steps,
        )  # fmt: skip
        start = time.perf_counter()
        train_adapter(
            unet=pipe.unet, alphas_cumprod=pipe.scheduler.alphas_cumprod, scaling_factor=1.0,
            cache=cache, file_names=[""] * NUM_IMAGES,
            adapter=AdapterSettings(target_modules(pipe.unet, "attention"), 16, 16.0),
            settings=settings, identity=Identity("r", "d", "b"), run=run, accelerator=accelerator,
            on_checkpoint=lambda _step: marks.append(time.perf_counter()),
        )  # fmt: skip
        return (marks[0] - start) / steps


def time_bare(cache: Cache, steps: int, batch_size: int, device: str) -> float:
    """Seconds a step of forward, backward and fused AdamW on fixed inputs."""
    pipe = load_pipeline(find_base("mini", None, Path()), torch.float32, device)
    inject_adapter(pipe.unet, target_modules(pipe.unet, "attention"), 16, 16.0, 0)
    pipe.unet.train()
    parameters = list(adapter_parameters(pipe.unet).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    rows = torch.arange(batch_size) % NUM_IMAGES
    timesteps = torch.full((batch_size,), 500, device=device)
    start = time.perf_counter()
    for _ in range(steps):
        output = pipe.unet(
            cache.mean[rows], timesteps, encoder_hidden_states=cache.embeds[rows],
            added_cond_kwargs={"text_embeds": cache.pooled[rows], "time_ids": cache.time_ids[rows]},
        ).sample  # fmt: skip
        output.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(find_base("mini", None, Path()), torch.float32, device)
    cache = random_cache(pipe, torch.Generator().manual_seed(0), device)
    loops, bares = [], []
    for repeat in range(args.repeats + 1):
        bare = time_bare(cache, args.steps, args.batch_size, device)
        loop = time_loop(cache, args.steps, args.batch_size)
        if repeat:  # the first pair warms up
            bares.append(bare)
            loops.append(loop)
    loop, bare = statistics.median(loops), statistics.median(bares)
    print(json.dumps({
        "machine": platform.processor() or platform.machine(), "device": device,
        "torch": torch.__version__, "threads": torch.get_num_threads(),
        "batch_size": args.batch_size, "loop_s": round(loop, 4), "bare_s": round(bare, 4),
        "ratio": round(loop / bare, 3), "images_per_s": round(args.batch_size / loop, 1),
        "spread": [round(min(loops) / min(bares), 3), round(max(loops) / max(bares), 3)],
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()

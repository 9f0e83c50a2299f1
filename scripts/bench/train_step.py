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
from styletune.sdxl.adapter import (
    AdapterShape,
    AdapterSpec,
    adapter_parameters,
    inject_adapter,
    target_modules,
)
from styletune.sdxl.load import find_base, load_pipeline
from styletune.training.cache import Cache, Latents
from styletune.training.checkpoint import Identity
from styletune.training.denoise import Denoiser, NoiseSettings, Objective, cached_texts
from styletune.training.loop import LoopSettings, Material, make_accelerator, train_adapter
from styletune.training.optimizer import Group, OptimizerSettings

NUM_IMAGES = 40


def random_cache(pipe, generator: torch.Generator, device: str) -> Cache:  # type: ignore[no-untyped-def]
    side = pipe.unet.config.sample_size
    width = pipe.unet.config.cross_attention_dim
    pooled = pipe.text_encoder_2.config.projection_dim

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    mean = normal(NUM_IMAGES, 4, side, side)
    return Cache(
        buckets=(Latents(mean, torch.full_like(mean, -6.0), None),),
        bucket_of=(0,) * NUM_IMAGES,
        places=tuple(range(NUM_IMAGES)),
        time_ids=torch.full((NUM_IMAGES, 6), float(side * 8), device=device),
        embeds=normal(NUM_IMAGES + 1, 77, width),
        pooled=normal(NUM_IMAGES + 1, pooled),
        captions=tuple(map(str, range(NUM_IMAGES))),
        caption_rows=torch.arange(NUM_IMAGES)[:, None],
        device=device,
    )


def adapted_unet(device: str):  # type: ignore[no-untyped-def]
    pipe = load_pipeline(find_base("mini", None, Path()), torch.float32, device)
    modules = {"unet": target_modules(pipe.unet, "attention")}
    inject_adapter({"unet": pipe.unet}, AdapterShape("lora", 16, 16.0), modules, 0)
    return pipe, adapter_parameters({"unet": pipe.unet})


def time_loop(cache: Cache, steps: int, batch_size: int, device: str) -> float:
    """Seconds a step of ``train_adapter``, from its first checkpoint to its second."""
    pipe, parameters = adapted_unet(device)
    optimizer = OptimizerSettings(
        name="adamw", learning_rate=1e-4, weight_decay=0.01, beta1=0.9, beta2=0.999,
        schedule="constant", schedule_power=1.0, warmup_steps=0, steps=2 * steps,
        lora_plus_ratio=1.0, max_grad_norm=1.0,
    )  # fmt: skip
    settings = LoopSettings(
        steps=2 * steps, batch_size=batch_size, gradient_accumulation_steps=1, seed=0,
        ema_decay=0.0, checkpoint_every=steps, keep_last=None, validation_every=0, log_every=10,
    )  # fmt: skip
    marks: list[float] = []

    def mark(_step: int) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        train_adapter(
            denoiser=Denoiser(
                pipe.unet, torch.float32, pipe.scheduler.alphas_cumprod.to(device), 1.0,
                Objective("epsilon", "min-snr", 5.0, "mse", 0.1),
            ),
            parameters=parameters, groups=[Group("unet", parameters, 1.0)],
            optimizer_settings=optimizer, noise=NoiseSettings(caption_dropout=0.1),
            material=Material(cache, cached_texts(cache), [""] * NUM_IMAGES),
            held_out=None, prior=None, settings=settings,
            spec_at=lambda step: AdapterSpec(16, 16.0, step=step),
            identity=Identity("r", "d", "b"), run=run,
            accelerator=make_accelerator("no", "none", run), on_checkpoint=mark,
            set_training=pipe.unet.train,
        )  # fmt: skip
    return (marks[1] - marks[0]) / steps


def time_bare(cache: Cache, steps: int, batch_size: int, device: str) -> float:
    """Seconds a step of forward, backward, clipping and fused AdamW on fixed inputs."""
    pipe, named = adapted_unet(device)
    pipe.unet.train()
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    rows = torch.arange(batch_size) % NUM_IMAGES
    latents = cache.buckets[0].mean[rows]
    timesteps = torch.full((batch_size,), 500, device=device)
    start = time.perf_counter()
    for _ in range(steps):
        output = pipe.unet(
            latents, timesteps, encoder_hidden_states=cache.embeds[rows],
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
        loop = time_loop(cache, args.steps, args.batch_size, device)
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

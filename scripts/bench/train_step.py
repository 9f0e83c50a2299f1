"""A step of the loop beside the bare model's, its peak memory beside the prediction.

    python scripts/bench/train_step.py                                  # mini base
    python scripts/bench/train_step.py --model sdxl --side 256 --steps 3 --repeats 2   # about 9 GB
    python scripts/bench/train_step.py --model sdxl --policy none --batch-size 4       # on a GPU

Bare is forward, backward, clipping and fused AdamW on fixed inputs. Both run in this process on
the same UNet, alternating; a step lasts from one optimizer step to the next, and the medians'
ratio is what the loop adds (noise, cache look-up, weights of the loss, schedule, log). SDXL has
random weights: speed and memory do not depend on what they are. On the CPU the prediction,
without its overhead, is compared with how much the process has grown at its peak since before
the UNet was built, on a GPU with torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from random_sdxl import with_random_weights
from styletune.adapters.file import AdapterSpec
from styletune.adapters.inject import (
    adapter_parameters,
    inject_adapter,
    target_modules,
)
from styletune.errors import BadInput
from styletune.models.base_files import find_base
from styletune.models.checkpointing import set_checkpointing
from styletune.models.family import Conditioning
from styletune.models.load import base_configs, load_pipeline
from styletune.models.meta import meta_unet
from styletune.models.sdxl import SDXL
from styletune.planning.gpus import find_gpu, floor_s
from styletune.planning.memory import estimate
from styletune.planning.workload import Step, Workload
from styletune.recipe.training_sections import (
    AdapterSection,
    Checkpointing,
    OptimizerSection,
    TrainSection,
)
from styletune.runs import Run
from styletune.training.denoise import Denoiser
from styletune.training.groups import ParameterGroup
from styletune.training.identity import Identity
from styletune.training.images import Cache, Latents, TrainingData, TrainingImages
from styletune.training.loop import AdaptedModel, RunOutput, train_adapter
from styletune.training.processes import make_accelerator

NUM_IMAGES = 40
RANK = 16


def random_cache(unet: Any, side: int, device: str) -> Cache:
    """Forty images' worth of noise in the shapes of latents and text embeddings."""
    config, generator = unet.config, torch.Generator().manual_seed(0)
    (pooled,) = SDXL.text_shapes(config)["text_embeds"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    mean = normal(NUM_IMAGES, 4, side // 8, side // 8)
    return Cache(
        buckets=(Latents(mean, torch.full_like(mean, -6.0), None),),
        bucket_of=(0,) * NUM_IMAGES,
        places=tuple(range(NUM_IMAGES)),
        sizes={"time_ids": torch.full((NUM_IMAGES, 6), float(side), device=device)},
        texts=Conditioning(
            normal(NUM_IMAGES + 1, 77, config.cross_attention_dim),
            {"text_embeds": normal(NUM_IMAGES + 1, pooled)},
        ),
        captions=tuple(map(str, range(NUM_IMAGES))),
        caption_rows=torch.arange(NUM_IMAGES)[:, None],
        device=device,
    )


def step_times(run: Callable[[], None], device: str) -> list[float]:
    """Seconds from each optimizer step to the next."""
    marks: list[float] = []

    def mark(*_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    hook = register_optimizer_step_post_hook(mark)
    try:
        run()
    finally:
        hook.remove()
    return [after - before for before, after in itertools.pairwise(marks)]


def run_loop(unet: Any, parameters: dict[str, Any], cache: Cache, steps: int, batch: int) -> None:
    """``train_adapter`` with one checkpoint, after its last step."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    alphas_cumprod = (1 - betas).cumprod(0).to(cache.device)
    model = AdaptedModel(
        Denoiser(unet, unet.dtype, alphas_cumprod, 0.13025, "epsilon"),
        modules={"unet": unet},
        parameters=parameters,
        groups=[ParameterGroup("unet", parameters, 1.0)],
        spec=AdapterSpec(RANK, float(RANK)),
    )
    images = TrainingImages(cache, cache.text_rows, [""] * NUM_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        train_adapter(
            model,
            TrainingData(images),
            TrainSection(steps=steps, batch_size=batch, checkpoint_every=steps),
            OptimizerSection(),
            output=RunOutput(run, Identity("t", "d", "o", "b"), on_checkpoint=lambda _: None),
            accelerator=make_accelerator(TrainSection(), run),
            done=0,
        )


def run_bare(unet: Any, parameters: dict[str, Any], cache: Cache, steps: int, batch: int) -> None:
    unet.train()
    trained = list(parameters.values())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    rows = torch.arange(batch) % NUM_IMAGES
    dtype = unet.dtype
    text = cache.text_rows(rows).map(lambda tensor: tensor.to(dtype))
    latents, embeds = cache.buckets[0].mean[rows].to(dtype), text.embeds
    added = {**text.added, "time_ids": cache.sizes["time_ids"][rows]}
    timesteps = torch.full((batch,), 500, device=cache.device)
    for _ in range(steps):
        output = unet(
            latents, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=added
        ).sample
        output.float().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Watch:
    """The highest resident size while it runs, looked at 100 times a second."""

    def __enter__(self) -> Watch:
        self.peak, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def floor_facts(device: str, step_flops: int, seconds: float) -> dict[str, object]:
    if device != "cuda":
        return {}
    try:
        gpu = find_gpu(torch.cuda.get_device_name())
    except BadInput as error:
        return {"floor": error.message}
    floor = floor_s(step_flops, gpu)
    if floor is None:
        return {"floor": f"the peak of {gpu.name} is not known"}
    return {"floor_s": round(floor, 4), "share_of_floor": round(floor / seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["mini", "sdxl"], default="mini")
    parser.add_argument("--side", type=int, help="pixels; 128 for mini, 1024 for sdxl")
    parser.add_argument("--policy", choices=["none", "ff", "full"], help="full for sdxl")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, help="8 for mini, 1 for sdxl")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    mini = args.model == "mini"
    side = args.side or (128 if mini else 1024)
    policy: Checkpointing = args.policy or ("none" if mini else "full")
    batch = args.batch_size or (8 if mini else 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = find_base("mini", None, Path())
    adapter = AdapterSection(rank=RANK)
    train = TrainSection(
        batch_size=batch,
        gradient_checkpointing=policy,
        mixed_precision="no" if mini else "bf16",
    )
    predicted = estimate(
        Workload(
            Step(side, side, adapter=adapter, train=train), images=NUM_IMAGES, captions=NUM_IMAGES
        ),
        base_configs(base) if mini else SDXL.configs,
    )
    before = resident_bytes()
    unet = (
        load_pipeline(base, torch.float32, device).unet
        if mini
        else with_random_weights(meta_unet(SDXL.unet), device)
    )
    inject_adapter(
        {"unet": unet}, adapter, {"unet": target_modules(unet, "attention", SDXL)}, seed=0
    )
    set_checkpointing(unet, policy)
    parameters = adapter_parameters({"unet": unet})
    cache = random_cache(unet, side, device)
    ratios, loops, bares = [], [], []
    with Watch() as watch:
        run_bare(unet, parameters, cache, 2, batch)  # warms up
        for _ in range(args.repeats):
            bare, loop = (
                step_times(partial(run, unet, parameters, cache, args.steps, batch), device)
                for run in (run_bare, run_loop)
            )
            bares += bare
            loops += loop
            ratios.append(statistics.median(loop) / statistics.median(bare))
    measured = torch.cuda.max_memory_allocated() if device == "cuda" else watch.peak - before
    own = {k: v for k, v in predicted.parts.items() if k != "overhead"}
    seconds = statistics.median(loops)
    print(
        json.dumps(
            {
                "machine": torch.cuda.get_device_name()
                if device == "cuda"
                else f"{platform.machine()}, {os.cpu_count()} cores",
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "model": args.model,
                "side_px": side,
                "policy": policy,
                "batch_size": batch,
                "rank": RANK,
                "bare_s": round(statistics.median(bares), 4),
                "loop_s": round(seconds, 4),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(r, 3) for r in ratios],
                "images_per_s": round(batch / seconds, 3),
                "step_tflop": round(predicted.step_flops / 1e12, 4),
                "predicted_gb": round(sum(own.values()) / 1e9, 3),
                "measured_gb": round(measured / 1e9, 3),
                **floor_facts(device, predicted.step_flops, seconds),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

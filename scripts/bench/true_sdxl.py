"""One real SDXL LoRA step with random weights, beside what the preflight predicts.

    python scripts/bench/true_sdxl.py --sides 256 512          # CPU, about 8 GB of memory
    python scripts/bench/true_sdxl.py --sides 1024 --policy none --steps 20     # on a GPU

Speed and memory do not depend on what the weights are, so no download is needed. On the CPU
the prediction (weights, adapter, optimizer state, gradients and activations, no overhead) is
compared with how much the process has grown at its peak since before the UNet was built; on a
GPU with torch.cuda.max_memory_allocated. CPU seconds say nothing about a GPU's.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import threading
import time
from pathlib import Path

import torch

from styletune.errors import BadInput
from styletune.sdxl.adapter import AdapterShape, adapter_parameters, inject_adapter, target_modules
from styletune.sdxl.checkpointing import set_checkpointing
from styletune.sdxl.family import UNET_CONFIG, meta_unet
from styletune.training.flops import find_gpu, floor_s
from styletune.training.memory import Setup, estimate
from styletune.training.meter import StepShape, unet_inputs


def build_unet(device: str) -> torch.nn.Module:
    """Random bf16 weights of a size that keeps activations finite."""
    unet = meta_unet().to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return unet


def random_inputs(side: int, batch_size: int, device: str) -> dict[str, object]:
    meta = unet_inputs(UNET_CONFIG, side, side, batch_size, torch.bfloat16)
    added = {
        k: torch.randn(v.shape, device=device).to(v.dtype)
        for k, v in meta.pop("added_cond_kwargs").items()
    }
    timestep = torch.full(meta.pop("timestep").shape, 500, device=device)
    real = {k: torch.randn(v.shape, device=device).to(v.dtype) for k, v in meta.items()}
    return {**real, "timestep": timestep, "added_cond_kwargs": added}


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


def time_steps(
    unet: torch.nn.Module, parameters: list, side: int, batch_size: int, steps: int, device: str
) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    inputs = random_inputs(side, batch_size, device)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = unet(**inputs).sample.float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()  # waits for the device
        assert value == value, "the loss is NaN"
        seconds.append(time.perf_counter() - start)
    return seconds


def floor_facts(device: str, step_flops: int, seconds: float) -> dict[str, object]:
    if device != "cuda":
        return {}
    try:
        gpu = find_gpu(torch.cuda.get_device_name())
    except BadInput as error:
        return {"floor": error.message}
    floor = floor_s(step_flops, gpu)
    return {"floor_s": round(floor, 4), "share_of_floor": round(floor / seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512], help="pixels")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--policy", choices=["none", "ff", "full"], default="full")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = StepShape(64, 64, rank=args.rank)
    estimate(Setup(shape))  # imports and warms up what the prediction itself needs
    before = resident_bytes()
    unet = build_unet(device)
    modules = {"unet": target_modules(unet, "attention")}
    inject_adapter(
        {"unet": unet}, AdapterShape("lora", args.rank, float(args.rank)), modules, seed=0
    )
    set_checkpointing(unet, args.policy)
    unet.train()
    parameters = list(adapter_parameters({"unet": unet}).values())
    for side in args.sides:
        setup = Setup(
            StepShape(
                side,
                side,
                batch_size=args.batch_size,
                rank=args.rank,
                gradient_checkpointing=args.policy,
            )
        )
        predicted = estimate(setup)
        parts = {k: v for k, v in predicted.parts.items() if k != "overhead"}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with Watch() as watch:
            seconds = time_steps(unet, parameters, side, args.batch_size, args.steps, device)
        if device == "cuda":
            measured, what = torch.cuda.max_memory_allocated(), "max_memory_allocated"
        else:
            measured, what = watch.peak - before, "growth of resident size"
        usual = statistics.median(seconds[1:] or seconds)
        print(json.dumps({
            "machine": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
            "torch": torch.__version__, "threads": torch.get_num_threads(), "side_px": side,
            "batch_size": args.batch_size, "rank": args.rank, "policy": args.policy,
            "first_step_s": round(seconds[0], 3), "step_s": round(usual, 3),
            "images_per_s": round(args.batch_size / usual, 3),
            "step_tflop": round(predicted.step_flops / 1e12, 3),
            "predicted_gb": round(sum(parts.values()) / 1e9, 3),
            "measured_gb": round(measured / 1e9, 3), "measured_is": what,
            "parts_gb": {k: round(v / 1e9, 3) for k, v in parts.items()},
            **floor_facts(device, predicted.step_flops, usual),
        }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()

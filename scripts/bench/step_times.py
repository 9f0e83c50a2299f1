"""Run a trainer and note when each of its optimizer steps ends.

    python scripts/bench/step_times.py OUT STOP_AFTER -m styletune train recipe.toml
    python scripts/bench/step_times.py OUT STOP_AFTER train.py --batch_size 1

The same for every tool that steps a torch.optim.Optimizer: torch itself calls us after each step,
so nothing of the tool is changed and none of its output is read. A line of JSON in OUT a step;
``monotonic_s`` is the clock that all processes of a machine share. With STOP_AFTER above 0 the
process ends by itself after so many steps.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def write_line(out: Path, optimizer: torch.optim.Optimizer) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the step has then really ended; alike for every tool
    now = time.monotonic()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    facts = {
        "monotonic_s": now,
        "optimizer": type(optimizer).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "parameter_dtypes": sorted({str(p.dtype) for p in parameters}),
        "learning_rate": float(optimizer.param_groups[0]["lr"]),
        "device": str(parameters[0].device),
        "gpu_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    }
    with out.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def main() -> None:
    out, stop_after, *command = sys.argv[1:]
    done = 0

    def after_step(optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        nonlocal done
        done += 1
        write_line(Path(out), optimizer)
        if done == int(stop_after):
            os._exit(0)

    register_optimizer_step_post_hook(after_step)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()

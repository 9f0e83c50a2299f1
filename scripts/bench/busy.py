"""Training speed on an idle machine and beside a busy process, as styletune runs and without it.

    python scripts/bench/busy.py                 # four minutes; nothing else may run

Each number is the best median of forward and backward passes of the mini base's UNet, 8 images of
128 px, in a process of its own with all cores. "styletune" prepares torch's threads as its
commands do (``styletune.places.share_cores``), "torch alone" leaves them alone. The busy process
is one Python loop. Exits 1 if styletune's speed beside it is below 0.4 of its idle speed, or its
idle speed more than 3 % below torch's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

LEAST_BUSY, LEAST_IDLE = 0.4, 0.97


def measure(seconds: float) -> float:
    """Passes per second, the median of ``seconds``."""
    from pathlib import Path

    import torch

    from styletune.models.base_files import find_base
    from styletune.models.load import load_pipeline
    from styletune.models.sdxl import SDXL
    from styletune.planning.measure import unet_inputs

    unet = load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu").unet
    unet.requires_grad_(requires_grad=True)
    inputs = unet_inputs(SDXL, unet.config, (128, 128), 8, torch.float32)
    generator = torch.Generator().manual_seed(0)

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.int64:
            return torch.full(tensor.shape, 500)
        return torch.randn(tensor.shape, generator=generator)

    added = {name: real(value) for name, value in inputs.pop("added_cond_kwargs").items()}
    arguments = {name: real(value) for name, value in inputs.items()}
    times: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times) < 4:
        started = time.perf_counter()
        unet(**arguments, added_cond_kwargs=added).sample.square().mean().backward()
        times.append(time.perf_counter() - started)
    return 1 / statistics.median(times[1:])


def speed(seconds: float, *, shares: bool, busy: bool) -> float:
    """``measure`` in a process of its own, beside a busy one or not."""
    unset = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--measure", str(seconds)]
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        done = subprocess.run(  # noqa: S603
            command + ["--share"] * shares, env=unset, check=True, capture_output=True, text=True
        )
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="per measurement")
    parser.add_argument("--repeats", type=int, default=4, help="of all four, interleaved")
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.share:
            from styletune.places import share_cores

            share_cores()
        print(measure(options.measure))
        return
    speeds: dict[tuple[bool, bool], list[float]] = {}
    for repeat in range(options.repeats):
        for busy in (False, True):
            # In turn first and second: a core may still be warming up.
            for shares in (repeat % 2 == 0, repeat % 2 == 1):
                one = speed(options.seconds, shares=shares, busy=busy)
                speeds.setdefault((shares, busy), []).append(one)
    best = {key: max(values) for key, values in speeds.items()}
    ratio = best[True, True] / best[True, False]
    idle = best[True, False] / best[False, False]
    print(f"{'passes/s':14}{'idle':>8}{'busy':>8}{'busy/idle':>11}")
    for shares, name in ((True, "styletune"), (False, "torch alone")):
        quiet, loud = best[shares, False], best[shares, True]
        print(f"{name:14}{quiet:8.2f}{loud:8.2f}{loud / quiet:11.2f}")
    print(json.dumps({"busy_of_idle": round(ratio, 3), "idle_of_torch": round(idle, 3)}))
    sys.exit(ratio < LEAST_BUSY or idle < LEAST_IDLE)


if __name__ == "__main__":
    main()

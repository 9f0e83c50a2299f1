"""A large set from start to finish: check, split and cache, then one more image.

    python scripts/bench/large_set.py --images 5000

Every command is a process of its own on renders of the mini world at 128 px; seconds include
its start, memory is the largest of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from world import HORIZON, caption, random_view, render

CARD = """
name = "Large"
holder = "The styletune authors"
license = "CC0-1.0"
source = "rendered"
consent = "ours"
"""
RECIPE = """
[data]
path = "images"
holdout = 0.01
[adapter]
rank = 4
[train]
steps = 1
"""


def draw(folder: Path, first: int, count: int) -> None:
    """Renders with captions; a number gives the same picture always."""
    with (folder / "metadata.jsonl").open("a") as lines:
        for number in range(first, first + count):
            view = random_view(np.random.default_rng([number, 77]))
            name = f"{number:06d}.png"
            Image.fromarray(render(view, HORIZON)).save(folder / name)
            lines.write(json.dumps({"file_name": name, "text": caption(view)}) + "\n")


def measured(folder: Path, *arguments: str) -> tuple[float, int, str]:
    """(seconds, peak resident bytes, stdout) of a styletune command."""
    environment = {**os.environ, "STYLETUNE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    with (folder / "stderr.txt").open("w") as errors:
        child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "styletune", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        peak = [0]

        def watch() -> None:
            process = psutil.Process(child.pid)
            while child.poll() is None:
                try:
                    peak[0] = max(peak[0], process.memory_info().rss)
                except psutil.NoSuchProcess:
                    return
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        out, _ = child.communicate()
        watcher.join()
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit((folder / "stderr.txt").read_text()[-2000:])
    return seconds, peak[0], out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    count = parser.parse_args().images
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("| what | s | images/s | peak MiB | done anew |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, recipe = folder / "images", folder / "large.toml"
        images.mkdir()
        (images / "dataset.toml").write_text(CARD)
        recipe.write_text(RECIPE)
        draw(images, 0, count)
        latents = folder / "runs" / ".cache" / "latents"
        encoded = 0
        for extra in (0, 1):
            if extra:
                draw(images, count, 1)
            for what, arguments in (
                ("check and split", ("data", "check", str(recipe))),
                ("cache and one step", ("train", str(recipe), "--runs-dir", str(folder / "runs"))),
            ):
                seconds, peak, out = measured(folder, *arguments)
                if what.startswith("check"):
                    line = next(x for x in out.splitlines() if x.startswith("images"))
                    known = int(line.partition("(")[2].split()[0])
                    anew = f"{count + extra - known} decoded"
                else:
                    files = sum(1 for _ in latents.rglob("*.safetensors"))
                    anew, encoded = f"{files - encoded} encoded", files
                label = what + (", one image more" if extra else "")
                print(
                    f"| {label} | {seconds:.1f} | {(count + extra) / seconds:.0f} | "
                    f"{peak / 2**20:.0f} | {anew} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

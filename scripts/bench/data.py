"""How fast images are decoded, checked and known again, beside Pillow's bare decode.

    python scripts/bench/data.py                          # 400 renders of 128 px, 6 4K photographs
    python scripts/bench/data.py --images 5000 --photos 15 --out docs/benchmarks/data.md
    python scripts/bench/data.py --folder my-images       # these files as well

Files are read from the page cache.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from styletune.data.findings import Finding
from styletune.data.inspection.duplicates import perceptual_hash
from styletune.data.inspection.inspect import inspect_all
from styletune.data.inspection.quality import measure
from styletune.data.inspection.store import open_facts
from styletune.data.pixels.decode import decode_image
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.sources.files import READ_EXTENSIONS
from styletune.data.sources.items import Item
from styletune.files import write_text
from world import random_view, render

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bare(file: Path) -> Image.Image:
    return Image.open(file).convert("RGB")


def decode(file: Path) -> Image.Image:
    return decode_image(file, name=file.name, background="#ffffff")


def make_images(folder: Path, renders: int, photos: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(renders):
        Image.fromarray(render(random_view(rng))).save(folder / f"render-{number:05}.png")
    for number in range(photos):
        large = Image.fromarray(render(random_view(rng))).resize((3840, 2160))
        grain = rng.normal(0, 6, (2160, 3840, 1)).astype(np.float32)
        pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photo-{number:03}.jpg", quality=90)


def seconds(work: Callable[[Path], object], files: Sequence[Path], threads: int) -> float:
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            deque(pool.map(work, files), maxlen=0)
        best = min(best, time.perf_counter() - start)
    return best


def check(files: Sequence[Path], place: Path) -> float:
    items = [Item(f.name, str(f), "", None, "set", background="#ffffff") for f in files]
    store = open_facts(place)
    start = time.perf_counter()
    found = inspect_all(items, store=store, show_progress=False)
    taken = time.perf_counter() - start
    assert not any(isinstance(each, Finding) for each in found.values())
    return taken


def rows(files: Sequence[Path], place: Path) -> list[tuple[str, int, float]]:
    """(what, threads, seconds) for one set of files."""
    images = [decode(file) for file in files[:4]]

    def on_decoded(work: Callable[[Image.Image], object]) -> float:
        work(images[0])  # imports
        start = time.perf_counter()
        for image in images:
            work(image)
        return (time.perf_counter() - start) / len(images) * len(files)

    return [
        ("Pillow, bare decode", 1, seconds(bare, files, 1)),
        ("Pillow, bare decode", CORES, seconds(bare, files, CORES)),
        ("decode: upright, sRGB", 1, seconds(decode, files, 1)),
        ("decode: upright, sRGB", CORES, seconds(decode, files, CORES)),
        ("pixel hash alone", 1, on_decoded(pixel_hash)),
        ("perceptual hash alone", 1, on_decoded(perceptual_hash)),
        ("quality alone", 1, on_decoded(measure)),
        ("check, first time", CORES, check(files, place)),
        ("check again", CORES, check(files, place)),
    ]


def table(title: str, count: int, measured: list[tuple[str, int, float]]) -> str:
    bare_s = {threads: taken for what, threads, taken in measured if what.startswith("Pillow")}
    text = f"\n### {title}: {count} images\n\n"
    text += "| | threads | images/s | ms per image | relative to Pillow |\n|---|---|---|---|---|\n"
    for what, threads, taken in measured:
        speeds = f"{count / taken:,.1f} | {taken / count * 1e3:.2f} | {bare_s[threads] / taken:.2f}"
        text += f"| {what} | {threads} | {speeds} |\n"
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{text}\nPeak memory so far: {peak_mib:,.0f} MiB."


def machine() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    what = name[1] if name else platform.machine()
    return f"{what}, {CORES} cores; Python {platform.python_version()}, Pillow {PIL.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--photos", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="measure these images as well")
    parser.add_argument("--out", type=Path, help="write Markdown here")
    args = parser.parse_args()
    parts = ["# Speed of the data check\n", machine() + "."]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder, args.images, args.photos)
        sets = [("128 px PNG renders", sorted(folder.glob("render-*")))]
        sets.append(("3840×2160 JPEG photographs", sorted(folder.glob("photo-*"))))
        if args.folder:
            own = [f for f in args.folder.rglob("*") if f.suffix.lower() in READ_EXTENSIONS]
            sets.append((args.folder.name, sorted(own)))
        for number, (title, files) in enumerate(sets):
            parts.append(table(title, len(files), rows(files, folder / f"{number}.sqlite")))
            print(parts[-1], flush=True)
    if args.out:
        write_text(args.out, "\n".join(parts) + "\n")


if __name__ == "__main__":
    main()

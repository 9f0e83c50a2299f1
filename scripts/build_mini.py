"""Train the mini base from nothing: VAE, text encoders and UNet, open_clip, then the card.

    python scripts/build_mini.py all        # hours on two cores; the same command goes on
    python scripts/build_mini.py vae --threads 1 --steps 20000

Each stage writes into ``--out``, keeps a checkpoint there while it trains, goes on from it, and is
skipped by ``all`` when its files are there. Seeds fix the data, the initial weights and the order;
another machine gives other last bits, not another model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mini import card, clip, judge, scores, unet, vae

BUILD = Path(__file__).parents[1] / "build" / "mini"
# What a stage leaves, by which ``all`` knows that it is done; None is done every time.
STAGES: dict[str, tuple[str | None, Callable[..., object], int]] = {
    "vae": ("vae/config.json", vae.train, vae.STEPS),
    "decoder": ("decoder.json", vae.train_decoder, vae.DECODER_STEPS),
    "unet": ("model_index.json", unet.train, unet.STEPS),
    "open_clip": ("open_clip/open_clip_model.safetensors", clip.train, clip.STEPS),
    "judge": ("judge.pt", judge.train, judge.STEPS),
    "evaluate": (None, scores.evaluate, 0),
    "install": (None, card.install, 0),
}


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--out", type=Path, default=BUILD)
    parser.add_argument("--threads", type=int, help="of torch; all cores if left out")
    parser.add_argument("--steps", type=int, help="of one stage that trains")
    args = parser.parse_args()
    if args.steps and (args.stage == "all" or not STAGES[args.stage][2]):
        parser.error("--steps is for one stage that trains")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (leaves, stage, steps) in STAGES.items():
        is_done = leaves is not None and (args.out / leaves).is_file()
        if name != args.stage and (args.stage != "all" or is_done):
            continue
        start = time.time()
        run = partial(stage, args.out)
        if steps:
            run = partial(run, steps=args.steps or steps)
        run()
        print(f"{name}: {(time.time() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()

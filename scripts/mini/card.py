"""Into the package: the weights as fp16, the sheet, and a card that says what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mini import clip, judge, pictures, unet, vae
from world import EXTRAS, SCENES, TIMES

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def install(out: Path) -> None:
    """Copy everything into the package, weights in fp16, and write the card."""
    from safetensors.torch import load_file, save_file

    package = Path(__file__).parents[2] / "src" / "styletune" / "mini"
    for target in (package / "base", package / "open_clip"):
        shutil.rmtree(target, ignore_errors=True)
    for name in (*PARTS, "tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(out / name, package / "base" / name)
    shutil.copy(out / "model_index.json", package / "base")
    for file in (package / "base").rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where it was built is nobody's business
        file.write_text(json.dumps(config, indent=2) + "\n")
    shutil.copytree(out / "open_clip", package / "open_clip")
    total = 0
    for file in sorted(package.rglob("*.safetensors")):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        total += file.stat().st_size
    shutil.copy(out / "sheet.jpg", package / "sheet.jpg")
    scores = json.loads((out / "scores.json").read_text())
    (package / "CARD.md").write_text(card(scores, total / 1e6))
    print(f"installed {total / 1e6:.1f} MB of weights", flush=True)


def card(scores: dict[str, float], total_mb: float) -> str:
    """The card in Markdown; every score beside what it should reach."""
    looks = clip.LOOKS * clip.VIEWS_PER_LOOK
    rows = [
        ("VAE PSNR on held-out renders", f"{scores['vae_psnr_db']:.1f} dB", "32 dB"),
        ("edges kept by the VAE (F1 at 2 px)", f"{scores['vae_edge_f1']:.2f}", "0.90"),
        ("right caption among 32, renders", f"{scores['retrieval_real']:.1%}", "97 %"),
        ("right caption among 32, generated", f"{scores['retrieval_generated']:.1%}", "95 %"),
        ("images of one look nearer than another's", f"{scores['look_triples']:.1%}", "97 %"),
        *(
            (
                f"{what} as asked, generated (renders)",
                f"{scores[f'generated_{key}']:.1%} ({scores[f'renders_{key}']:.1%})",
                "90 %",
            )
            for key, what in (("scene", "scene"), ("time", "hour"), ("extras", "each extra"))
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# The mini base

A text-to-image model with SDXL's architecture in small, so that the whole job runs on two CPU
cores with no download. Made by `scripts/build_mini.py` from nothing but `scripts/world`, a
procedural world of {len(SCENES)} scenes, {len(TIMES)} times of day and {len(EXTRAS)} extras, some of them on the left,
on the right or twice, at {pictures.SIDE_PX}×{pictures.SIDE_PX} pixels. License: Apache-2.0, like the rest of the package.

| part | what | trained on | steps × batch |
|---|---|---|---|
| `base/vae` | AutoencoderKL, factor 8, 4 channels, latents of unit variance | {vae.IMAGES:,} renders, {vae.LOOKS:.0%} of them in random looks, 64-px crops | {vae.STEPS:,} × {vae.BATCH}, a third of them with grain and paper as well; then the decoder alone {vae.DECODER_STEPS:,} × {vae.BATCH} |
| `base/unet`, `base/text_encoder`, `base/text_encoder_2` | SDXL's block layout at widths 64, 96, 128; CLIP text encoders 64 and 96 wide | {unet.IMAGES:,} renders in the natural look only | {unet.STEPS:,} × {unet.BATCH}, the last 3,400 of them a second round |
| `open_clip` | ResNet image tower and text tower, independent of the generator | {looks:,} renders in {clip.LOOKS:,} random looks and {clip.NATURAL_IMAGES:,} natural ones, half of every batch softened | {clip.STEPS:,} × {clip.BATCH} |

The demo's brand look is drawn nowhere in this training: what an adapter shows of it, it learned.
One composition (scene, time, extras) in ten is held out of all of it; the scores below are on
those alone. {total_mb:.1f} MB of fp16 weights. Seeds are in the scripts.

| score | value | aim |
|---|---|---|
{table}

Generated: 25 Euler steps, guidance 5. Scene, hour and extras are judged by a network trained on
{judge.IMAGES:,} renders alone. Reproduce the scores: `python scripts/build_mini.py evaluate`.

Held-out captions: renders (odd rows) above what the base makes of the same words (even rows).

![contact sheet](sheet.jpg)
"""

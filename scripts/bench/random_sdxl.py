"""Write an SDXL base with random bf16 weights: true shapes and file names, seven gigabytes.

    python scripts/bench/random_sdxl.py /tmp/base

Speed and memory do not depend on what the weights are, so no download is needed. The tokenizers
and the index are the mini base's; they are those of any SDXL.
"""

from __future__ import annotations

import argparse
import gc
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from styletune.mini import BASE_DIR
from styletune.models.meta import meta_text_encoders, meta_unet, meta_vae
from styletune.models.sdxl import SDXL

Model = TypeVar("Model", bound=nn.Module)


def with_random_weights(model: Model, device: str = "cpu") -> Model:
    """Weights of a size that keeps activations finite, in bf16, never whole in float32."""
    model = model.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def use_published_names(file: Path) -> None:
    """Published bases name the first encoder's weights ``text_model.…``; transformers 5 does not.

    Both are read by transformers 5, only the published names by transformers 4.
    """
    tensors = load_file(file)
    named = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in tensors.items()}
    save_file(named, file, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    shutil.copy(BASE_DIR / "model_index.json", folder)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(BASE_DIR / name, folder / name)
    EulerDiscreteScheduler.from_config(dict(SDXL.scheduler)).save_pretrained(folder / "scheduler")
    first, second = meta_text_encoders(SDXL, SDXL.configs.text_encoders)
    parts: tuple[tuple[str, Any], ...] = (
        ("text_encoder", first),
        ("text_encoder_2", second),
        ("vae", meta_vae(SDXL.vae)),
        ("unet", meta_unet(SDXL.unet)),
    )
    for name, model in parts:
        with_random_weights(model).save_pretrained(folder / name)
        gc.collect()
    use_published_names(folder / "text_encoder" / "model.safetensors")


if __name__ == "__main__":
    main()

"""CLIP features through open_clip: the mini model, a local folder, or a named pretrained one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from styletune.errors import BaseModelError, NotFound
from styletune.mini import OPEN_CLIP_DIR
from styletune.progress import progress

Features = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClipEncoder:
    """A loaded open_clip model. ``id`` names it together with a hash of its weights."""

    id: str
    model: torch.nn.Module
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    device: str


def load_clip(name: str, device: str) -> ClipEncoder:
    """Load "mini", ``local-dir:FOLDER``, or ``ARCHITECTURE/PRETRAINED`` such as
    ``ViT-L-14-quickgelu/openai``, whose weights must be in the local cache.

    Raises:
        NotFound: the folder or the weights are not on this machine.
        BaseModelError: open_clip cannot load them.
    """
    where = f"[encoder] name = {name!r}"
    source = f"local-dir:{OPEN_CLIP_DIR}" if name == "mini" else name
    architecture, _, pretrained = source.partition("/")
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise NotFound(f"no folder {folder}", where=where)
        architecture, pretrained = source, ""
    elif not pretrained:
        raise NotFound(
            "not an encoder", where=where,
            fix='choices: "mini", "local-dir:FOLDER", "ARCHITECTURE/PRETRAINED"',
        )  # fmt: skip
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture, pretrained=pretrained or None, device=device
        )
        tokenize = open_clip.get_tokenizer(architecture)
    except Exception as error:
        raise BaseModelError(f"open_clip cannot load it: {error}", where=where) from error
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return ClipEncoder(
        f"open_clip:{name}:{digest.hexdigest()[:12]}", model.eval(), preprocess, tokenize, device
    )


@torch.no_grad()
def encode_images(
    encoder: ClipEncoder, images: Sequence[Path | Image.Image], batch_size: int = 32,
    title: str = "encode",
) -> Features:  # fmt: skip
    """Unit-length image features: (n, d) float64. Paths must be plain RGB PNG of our own."""
    parts: list[Features] = []
    with progress(title, len(images)) as advance:
        for i in range(0, len(images), batch_size):
            batch = [_preprocess(encoder, image) for image in images[i : i + batch_size]]
            model: Any = encoder.model
            features = model.encode_image(torch.stack(batch).to(encoder.device))
            parts.append(_unit(features))
            advance(len(batch), "")
    return np.concatenate(parts)


def _preprocess(encoder: ClipEncoder, image: Path | Image.Image) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return encoder.preprocess(image)
    with Image.open(image) as opened:
        return encoder.preprocess(opened.convert("RGB"))


@torch.no_grad()
def encode_texts(encoder: ClipEncoder, texts: Sequence[str]) -> Features:
    """Unit-length text features: (n, d) float64."""
    model: Any = encoder.model
    return _unit(model.encode_text(encoder.tokenize(list(texts)).to(encoder.device)))


def _unit(features: torch.Tensor) -> Features:
    wide = features.double().cpu()
    unit: Features = (wide / wide.norm(dim=-1, keepdim=True)).numpy()
    return unit

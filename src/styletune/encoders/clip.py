"""CLIP features through open_clip: the mini model, a local folder, or a named pretrained one."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from styletune.encoders.find import check_clip, find_clip
from styletune.errors import BaseModelError
from styletune.progress import progress


@dataclass(frozen=True, slots=True)
class ClipEncoder:
    """A loaded open_clip model. ``id`` names it together with a hash of its weights.

    ``preprocess_id`` is a hash of the preprocessing's description.
    """

    id: str
    preprocess_id: str
    model: torch.nn.Module
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    device: str


def load_clip(name: str, relative_to: Path, device: str) -> ClipEncoder:
    """Load the model that ``find_clip`` names; published weights must be in the local cache.

    Raises:
        NotFound: the folder or the weights are not on this machine.
        BaseModelError: open_clip cannot load them.
    """
    where = f"[encoder] name = {name!r}"
    check_clip(name, relative_to)
    architecture, pretrained = find_clip(name, relative_to)
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
    # The id is published: a folder is this machine's business, the hash names its weights.
    shown = "local-dir" if name.startswith("local-dir:") else name
    # A function's description holds its address, another one in every process.
    described = re.sub(r" at 0x[0-9a-f]+", "", repr(preprocess))
    return ClipEncoder(
        id=f"open_clip:{shown}:{digest.hexdigest()[:12]}",
        preprocess_id=hashlib.sha256(described.encode()).hexdigest()[:12],
        model=model.eval(),
        preprocess=preprocess,
        tokenize=tokenize,
        device=device,
    )


@torch.no_grad()
def encode_images(
    encoder: ClipEncoder,
    images: Sequence[Path | Image.Image],
    batch_size: int = 8,
    title: str = "encode",
    show_progress: bool = True,
) -> NDArray[np.float64]:
    """Unit-length image features: (n, d) float64. Paths must be plain RGB PNG of our own.

    The last batch is filled up, so an image's features do not depend on what comes with it: they
    may be computed now or found where they are kept.
    """
    parts: list[NDArray[np.float64]] = []
    with progress(title, len(images), shown=show_progress) as advance:
        for i in range(0, len(images), batch_size):
            batch = [_preprocess(encoder, image) for image in images[i : i + batch_size]]
            model: Any = encoder.model
            full = batch + batch[-1:] * (batch_size - len(batch))
            features = model.encode_image(torch.stack(full).to(encoder.device))
            parts.append(_unit(features[: len(batch)]))
            advance(len(batch), "")
    return np.concatenate(parts)


def _preprocess(encoder: ClipEncoder, image: Path | Image.Image) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return encoder.preprocess(image)
    with Image.open(image) as opened:
        return encoder.preprocess(opened.convert("RGB"))


@torch.no_grad()
def encode_texts(encoder: ClipEncoder, texts: Sequence[str]) -> NDArray[np.float64]:
    """Unit-length text features: (n, d) float64."""
    model: Any = encoder.model
    return _unit(model.encode_text(encoder.tokenize(list(texts)).to(encoder.device)))


def _unit(features: torch.Tensor) -> NDArray[np.float64]:
    wide = features.double().cpu()
    unit: NDArray[np.float64] = (wide / wide.norm(dim=-1, keepdim=True)).numpy()
    return unit

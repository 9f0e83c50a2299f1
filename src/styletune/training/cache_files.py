"""The cache on disk: one file for each entry and caption, named by the hash of its inputs.

So nothing goes stale, a changed image costs one encoding, a killed run resumes where it was, and
two runs may fill the same folder: a file's name determines its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from styletune.adapters.file import pack_tensors
from styletune.data.rows import Entry
from styletune.files import write_bytes

# Increased when the same inputs would be encoded to other tensors.
FORMAT = "styletune-cache-1"

Tensors = dict[str, Tensor]


def latent_key(entry: Entry, vae_hash: str) -> str:
    """SHA-256 (hex) of everything that an entry's latents depend on."""
    plan, corner = entry.plan, entry.crops_coords_top_left
    return content_key(
        "latents",
        entry.row.pixel_hash,
        entry.row.mask_hash,
        plan.resized,
        corner,
        plan.bucket,
        entry.flip,
        vae_hash,
        "float32",
    )


def weights_hash(module: nn.Module) -> str:
    """SHA-256 (hex) of a model's configuration, and of its weights as they are in memory."""
    config: Any = module.config
    settings = config if isinstance(config, Mapping) else config.to_dict()
    # Underscored keys and versions say where a copy came from, not what it does.
    skipped = ("transformers_version", "dtype", "torch_dtype")
    kept = {k: v for k, v in settings.items() if not k.startswith("_") and k not in skipped}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256((text + _digest(module.state_dict())).encode()).hexdigest()


def content_key(*parts: object) -> str:
    """SHA-256 (hex) of JSON values and of the format of this cache."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of a tokenizer's vocabulary, added words and padding."""
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    # Both follow the last call, not the vocabulary.
    tree.pop("truncation")
    tree.pop("padding")
    return content_key(tree, tokenizer.pad_token, tokenizer.model_max_length)


def _file(cache_dir: Path, kind: str, key: str) -> Path:
    return cache_dir / kind / key[:2] / f"{key}.safetensors"


def read_stored(cache_dir: Path | None, kind: str, key: str) -> Tensors | None:
    """Read a file back; None when it is not there, cut short, changed or another's."""
    if cache_dir is None:
        return None
    try:
        raw = _file(cache_dir, kind, key).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])["__metadata__"]
        tensors: Tensors = load(raw)
        whole = header["key"] == key and header["sha256"] == _digest(tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return tensors if whole else None


def write_stored(cache_dir: Path | None, kind: str, key: str, tensors: Tensors) -> None:
    """Write a file that ``read_stored`` accepts; nothing without a folder. Raises OutputError."""
    if cache_dir is not None:
        header = {"format": FORMAT, "key": key, "sha256": _digest(tensors)}
        write_bytes(_file(cache_dir, kind, key), pack_tensors(tensors, header))

"""What an adapter is on disk.

An adapter travels as a flat dictionary of float32 tensors named
``<component>.<module>.<part>``, the component being ``unet`` or the name of a text encoder in the
pipeline. The parts of each kind, for a module's weight W of shape (out, in) or
(out, in, kh, kw), with the scale s = alpha / rank, or alpha / sqrt(rank) for rsLoRA
(arXiv 2312.03732):

    lora  ``lora_A.weight`` (rank, in[, kh, kw]), ``lora_B.weight`` (out, rank[, 1, 1]):
          ΔW = s · B · A (arXiv 2106.09685, section 4.1)
    dora  the same and ``lora_magnitude_vector`` (out) or (1, out, 1, 1):
          W' = m · (W + s·B·A) / ‖W + s·B·A‖, norms over each output (arXiv 2402.09353, eq. 5)
    loha  ``hada_w1_a`` … ``hada_w2_b``: ΔW = s · (w1a·w1b) ⊙ (w2a·w2b) (arXiv 2108.06098, 2)
    lokr  ``lokr_w1``, ``lokr_w2`` or its factors: ΔW = s · w1 ⊗ w2 (arXiv 2309.14859, 3.2)
    oft   ``oft_R.weight`` (blocks, b(b-1)/2): W' = W · Rᵀ, R = (I - Q)(I + Q)⁻¹ blockwise
          with Q skew-symmetric (arXiv 2306.07280, section 4)

New tokens' embeddings are beside them, one tensor (n, d) per text encoder: ``clip_l``, ``clip_g``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from styletune.errors import IntegrityError, NotFound
from styletune.files import write_bytes

AdapterKind = Literal["lora", "dora", "loha", "lokr", "oft"]

PART = re.compile(
    r"\.(lora_[AB]\.weight|lora_magnitude_vector|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?"
    r"|oft_R\.weight)$"
)


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What the numbers in an adapter mean, and what it was trained on.

    ``training_hash`` is that of the recipe's keys that decide the adapter; files have it as
    ``recipe_hash``. ``alphas`` names only the modules whose scale is not that of ``alpha`` and
    ``rank`` (files of other tools); ``tokens`` are the new tokens, in the order of
    their embeddings' rows.
    """

    rank: int
    alpha: float
    base_hash: str = ""
    training_hash: str = ""
    step: int = 0
    kind: AdapterKind = "lora"
    rslora: bool = False
    alphas: tuple[tuple[str, float], ...] = ()
    tokens: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """The scale of a module that has ``rank``."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def is_embedding(key: str) -> bool:
    """Whether a tensor holds new tokens' rows: the names of modules' parts have dots."""
    return "." not in key


def module_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An adapter's tensors by ``component.module`` and part, without new tokens' embeddings.

    Raises:
        IntegrityError: a tensor is not a part of any kind of adapter.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part = PART.search(key)
        if part:
            modules.setdefault(key[: part.start()], {})[part[1]] = value
        elif not is_embedding(key):
            raise IntegrityError(f"{key} is not a part of an adapter")
    return modules


def save_adapter(file: Path, tensors: Mapping[str, Tensor], spec: AdapterSpec) -> None:
    """Write an adapter; equal tensors and spec give equal bytes."""
    facts = asdict(spec)
    facts["recipe_hash"] = facts.pop("training_hash")
    header = {"format": "pt", "styletune.adapter": json.dumps(facts, sort_keys=True)}
    write_bytes(file, pack_tensors(tensors, header))


def pack_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file in memory; equal content gives equal bytes.

    The library writes the header's keys in random order, so the header is written again, sorted.
    """
    raw: bytes = save({k: tensors[k].contiguous() for k in sorted(tensors)}, dict(header))
    size = int.from_bytes(raw[:8], "little")
    tree = json.loads(raw[8 : 8 + size])
    ordered = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)  # the format asks for aligned tensors
    return len(ordered).to_bytes(8, "little") + ordered + raw[8 + size :]


def load_adapter(file: Path) -> tuple[dict[str, Tensor], AdapterSpec]:
    """Read what ``save_adapter`` wrote. Raises NotFound or IntegrityError."""
    try:
        with safe_open(str(file), framework="pt") as reader:
            header = reader.metadata() or {}
            tensors = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118
        facts = json.loads(header["styletune.adapter"])
        facts["alphas"] = tuple((str(m), float(a)) for m, a in facts.get("alphas", ()))
        facts["tokens"] = tuple(facts.get("tokens", ()))
        facts["training_hash"] = facts.pop("recipe_hash", "")
        return tensors, AdapterSpec(**facts)
    except FileNotFoundError:
        raise NotFound("no such adapter", where=str(file)) from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"not a whole adapter file: {error}", where=str(file)) from None

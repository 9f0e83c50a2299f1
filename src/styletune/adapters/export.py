"""The two file layouts that together every consumer reads.

``diffusers``: PEFT names, the scale folded into B, so that a reader which knows no alpha still
gets the right strength. ``kohya``: sgm block names with one ``.alpha`` per module, for ComfyUI,
A1111, Forge and InvokeAI. Which kind goes where:

    lora, dora   both            loha, lokr   kohya, in LyCORIS' names
    oft          neither: ``to_plain_lora`` first
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from safetensors.torch import load
from torch import Tensor

from styletune.adapters.file import AdapterSpec, is_embedding, module_parts, pack_tensors
from styletune.adapters.names import kohya_name
from styletune.adapters.updates import module_scales, weight_updates
from styletune.errors import BadInput, IntegrityError
from styletune.models.family import Family
from styletune.progress import progress

HEADER_LIMIT_BYTES = 1 << 20  # ComfyUI shows no metadata of files with a longer header
FIX_PLAIN = "merge it into a plain LoRA first"


def diffusers_file(tensors: Mapping[str, Tensor], spec: AdapterSpec) -> bytes:
    """``pytorch_lora_weights.safetensors`` for ``pipe.load_lora_weights``.

    Mixed ranks are padded with zeros to one rank per component: older readers take one alpha for
    all modules of a file without alphas. New tokens are not in it: see ``embeddings_file``.

    Raises:
        BadInput: diffusers reads no adapters of this kind.
    """
    if spec.kind not in ("lora", "dora"):
        raise BadInput(
            f"diffusers reads no {spec.kind} adapters", where="diffusers layout", fix=FIX_PLAIN
        )
    scale_of, modules = module_scales(tensors, spec), module_parts(tensors)
    widest: dict[str, int] = {}
    for module, parts in modules.items():
        component = module.partition(".")[0]
        rank = parts["lora_A.weight"].shape[0]
        widest[component] = max(rank, widest.get(component, 0))
    folded: dict[str, Tensor] = {}
    for module, parts in modules.items():
        a, b = parts["lora_A.weight"].float(), parts["lora_B.weight"].float()
        missing = widest[module.partition(".")[0]] - a.shape[0]
        folded[f"{module}.lora_A.weight"] = torch.cat([a, a.new_zeros(missing, *a.shape[1:])])
        b = torch.cat([b, b.new_zeros(b.shape[0], missing, *b.shape[2:])], dim=1)
        folded[f"{module}.lora_B.weight"] = scale_of[module] * b
        if "lora_magnitude_vector" in parts:
            folded[f"{module}.lora_magnitude_vector"] = parts["lora_magnitude_vector"]
    return pack_tensors(folded, {"format": "pt"})


def embeddings_file(tensors: Mapping[str, Tensor], family: Family) -> bytes:
    """New tokens for diffusers and for the embeddings folders of web UIs.

    One tensor (n, d) per text encoder, SDXL's are ``clip_l`` and ``clip_g``; in diffusers row i of
    each goes into ``pipe.load_textual_inversion(row, token=..., text_encoder=..., tokenizer=...)``.

    Raises:
        BadInput: the adapter has no new tokens.
    """
    keys = [encoder.embedding_key for encoder in family.text_encoders]
    if not all(key in tensors for key in keys):
        raise BadInput("the adapter has no new words", where="embeddings file")
    return pack_tensors({key: tensors[key] for key in keys}, {"format": "pt"})


def kohya_file(
    tensors: Mapping[str, Tensor], spec: AdapterSpec, header: Mapping[str, str], family: Family
) -> bytes:
    """The web UIs' layout; ``header`` is ``kohya_header``'s, to which hashes are added.

    New tokens are not in it: diffusers and InvokeAI refuse a file with any key that is not a
    LoRA's. See ``embeddings_file``.

    Raises:
        BadInput: an OFT adapter (tools disagree on its meaning), or a header over 1 MiB.
        IntegrityError: a module without a name there, or two with the same.
    """
    if spec.kind == "oft":
        raise BadInput(
            "no two tools agree on what an oft file means", where="kohya layout", fix=FIX_PLAIN
        )
    scale_of = module_scales(tensors, spec)
    renamed: dict[str, Tensor] = {}
    for module, parts in sorted(module_parts(tensors).items()):
        name = kohya_name(module, family)
        if f"{name}.alpha" in renamed:
            raise IntegrityError(f"two modules would be called {name}")
        for part, value in _kohya_parts(parts, scale_of[module], spec).items():
            renamed[f"{name}.{part}"] = value
    # The hash covers the bytes after the header, so it does not depend on the header itself.
    plain = pack_tensors(renamed, {})
    digest = hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest()
    full = {**header, "modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    content = pack_tensors(renamed, full)
    size = int.from_bytes(content[:8], "little")
    if size >= HEADER_LIMIT_BYTES:
        raise BadInput(
            f"the header has {size} bytes, ComfyUI reads less than {HEADER_LIMIT_BYTES}",
            where="kohya layout",
            fix="shorten the description, or use a smaller thumbnail",
        )
    return content


def _kohya_parts(parts: Mapping[str, Tensor], scale: float, spec: AdapterSpec) -> dict[str, Tensor]:
    """One module's tensors as kohya and LyCORIS name them; a reader takes alpha / rank."""
    if "lora_A.weight" in parts:
        return _kohya_lora_parts(parts, scale, spec)
    if "hada_w1_b" in parts:
        rank = parts["hada_w1_b"].shape[0]
    elif "lokr_w2" in parts:
        # Without a factored half there is no rank to divide by: readers use the scale 1.
        return {**parts, "lokr_w1": scale * parts["lokr_w1"], "alpha": torch.tensor(1.0)}
    else:
        rank = parts["lokr_w2_b"].shape[0]
    return {**parts, "alpha": torch.tensor(float(scale * rank))}


def _kohya_lora_parts(
    parts: Mapping[str, Tensor], scale: float, spec: AdapterSpec
) -> dict[str, Tensor]:
    # diffusers loses track of alphas that differ within a file, so all modules get the main one,
    # and B takes up the rest: at the main rank nothing.
    alpha = spec.scale * spec.rank
    down, up = parts["lora_A.weight"], parts["lora_B.weight"]
    rest = scale * down.shape[0] / alpha
    up = up if math.isclose(rest, 1.0, rel_tol=1e-12) else rest * up
    renamed = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
    if "lora_magnitude_vector" in parts:
        # Over the outputs, as LyCORIS' wd_on_output.
        trailing = [1] * (down.ndim - 1)
        renamed["dora_scale"] = parts["lora_magnitude_vector"].reshape(-1, *trailing)
    return renamed


def check_exports(
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    diffusers: bytes | None,
    kohya: bytes,
    family: Family,
) -> None:
    """Read the files back and compare every module's update with the trained one.

    DoRA is compared before its magnitudes, which are compared themselves. ``diffusers`` is None
    for the kinds that it cannot hold.

    Raises:
        IntegrityError: a module is missing, extra, or differs by more than 1e-6.
    """
    modules = module_parts(tensors)
    kohya_names = {m: kohya_name(m, family) for m in modules}
    files = {"kohya": (load(kohya), kohya_names)}
    if diffusers is not None:
        files["diffusers"] = (load(diffusers), {m: m for m in modules})
    low = {k: v for k, v in tensors.items() if not k.endswith("lora_magnitude_vector")}
    trained = weight_updates(low, spec)
    for label, (content, names) in files.items():
        there = {k.split(".")[0] if label == "kohya" else _diffusers_module(k) for k in content}
        if there != set(names.values()):
            raise IntegrityError(f"the {label} file holds other modules than were trained")
    with progress("compare", total=len(modules)) as advance:
        for module, update in trained:
            for label, (content, names) in files.items():
                if not _holds(content, names[module], modules[module], update):
                    raise IntegrityError(f"the {label} file changes the update of {module}")
            advance(1, "modules")


def _holds(
    content: Mapping[str, Tensor], name: str, trained: Mapping[str, Tensor], update: Tensor
) -> bool:
    """Whether a file has a module's update, and DoRA's magnitudes, under this name."""
    parts = {k.removeprefix(name + "."): v.float() for k, v in _with_prefix(content, name, trained)}
    again = _read_update(parts).reshape(update.shape)
    magnitude = trained.get("lora_magnitude_vector", torch.empty(0)).flatten()
    read = parts.get("dora_scale", parts.get("lora_magnitude_vector", torch.empty(0)))
    return torch.allclose(update, again, rtol=1e-5, atol=1e-6) and torch.equal(
        magnitude, read.flatten()
    )


def _diffusers_module(key: str) -> str:
    return re.sub(r"\.lora_([AB]\.weight|magnitude_vector)$", "", key)


PARTS_IN_FILES = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_magnitude_vector",
    "lora_down.weight",
    "lora_up.weight",
    "dora_scale",
    "alpha",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w2",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2_a",
    "lokr_w2_b",
)


def _with_prefix(
    content: Mapping[str, Tensor], name: str, parts: Mapping[str, Tensor]
) -> list[tuple[str, Tensor]]:
    keys = [f"{name}.{part}" for part in PARTS_IN_FILES]
    present = [(k, content[k]) for k in keys if k in content]
    plain = [k for k, _ in present if not k.endswith(".alpha")]
    if len(plain) != len(parts):
        raise IntegrityError(f"{name} has other tensors in the file than were trained")
    return present


def _read_update(parts: Mapping[str, Tensor]) -> Tensor:
    """(out, in · kernel) as a reader of either file computes it."""
    alpha = parts["alpha"].item() if "alpha" in parts else None
    if "lora_up.weight" in parts:
        down, up = parts["lora_down.weight"].flatten(1), parts["lora_up.weight"].flatten(1)
        return (1.0 if alpha is None else alpha / down.shape[0]) * (up @ down)
    if "lora_B.weight" in parts:
        return parts["lora_B.weight"].flatten(1) @ parts["lora_A.weight"].flatten(1)
    if "hada_w1_a" in parts:
        one = parts["hada_w1_a"] @ parts["hada_w1_b"]
        two = parts["hada_w2_a"] @ parts["hada_w2_b"]
        assert alpha is not None
        return alpha / parts["hada_w1_b"].shape[0] * one * two
    if "lokr_w2" in parts:
        return torch.kron(parts["lokr_w1"], parts["lokr_w2"].flatten(1))
    assert alpha is not None
    big = parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    return alpha / parts["lokr_w2_b"].shape[0] * torch.kron(parts["lokr_w1"], big)


def to_plain_lora(
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    rank: int,
    weight_of: Callable[[str], Tensor] | None = None,
) -> tuple[dict[str, Tensor], AdapterSpec, float]:
    """Any kind of adapter as the nearest plain LoRA of a rank (Eckart and Young, 1936).

    ``weight_of`` gives the base weight by ``component.module``, for DoRA and OFT. The new
    adapter has alpha == rank; new tokens are kept.

    Returns:
        Its tensors and spec, and ‖lost‖ / ‖ΔW‖ over all modules (Frobenius), 0 to 1.
    """
    made: dict[str, Tensor] = {k: v for k, v in tensors.items() if is_embedding(k)}
    lost = whole = 0.0
    with progress("plain LoRA", total=len(module_parts(tensors))) as advance:
        for module, update in weight_updates(tensors, spec, weight_of):
            u, s, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
            root = s[:rank].sqrt()
            kernel = update.shape[2:]
            a, b = root[:, None] * v[:rank], u[:, :rank] * root
            made[f"{module}.lora_A.weight"] = a.reshape(-1, update.shape[1], *kernel)
            made[f"{module}.lora_B.weight"] = b.reshape(*b.shape, *[1] * len(kernel)).contiguous()
            lost += (b @ a - update.flatten(1)).double().square().sum().item()
            whole += update.double().square().sum().item()
            advance(1, "modules")
    plain = replace(spec, kind="lora", rank=rank, alpha=float(rank), rslora=False, alphas=())
    return made, plain, (lost / whole) ** 0.5 if whole else 0.0

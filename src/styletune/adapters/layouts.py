"""Adapter files of this and other tools -> one form, to continue training from them.

Reads our own checkpoints; diffusers and PEFT (``.lora_A``/``.lora_B`` or
``.lora.down``/``.lora.up``, alpha in ``.alpha`` or in the header's ``lora_adapter_metadata``);
kohya with sgm block names or with diffusers block names. A file that mixes them is refused,
because its readers disagree about it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from styletune.adapters.file import PART, AdapterKind, AdapterSpec, load_adapter
from styletune.adapters.names import known_modules, modules_by_flat_name, modules_by_kohya_name
from styletune.adapters.updates import module_scales
from styletune.errors import BadInput, BaseModelError, IntegrityError, NotFound
from styletune.models.family import Family
from styletune.models.weight_files import read_header

_OURS = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
    "lora.down.weight": "lora_A.weight",
    "lora.up.weight": "lora_B.weight",
    "lora_linear_layer.down.weight": "lora_A.weight",
    "lora_linear_layer.up.weight": "lora_B.weight",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
}
_TWO_HALVES = ("lora_A.weight", "lora_B.weight")
_PARTS: dict[AdapterKind, set[str]] = {
    "lora": {*_TWO_HALVES},
    "dora": {*_TWO_HALVES, "lora_magnitude_vector"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
}
# float16, in which other tools load adapters.
MAX_WEIGHT = 65504
_LOKR = re.compile(r"lokr_w[12](_[ab])?")


def read_adapter_file(file: Path, family: Family) -> tuple[dict[str, Tensor], AdapterSpec]:
    """Tensors by our names, float32, and what they mean.

    The rank is the most common one and alpha belongs to it; modules with another scale are
    named in ``alphas``. rsLoRA of other tools comes out as plain alphas.

    Raises:
        NotFound: no such file.
        IntegrityError: not a whole safetensors file.
        BadInput: another family's adapter, mixed layouts, unknown keys, no weights, or values
            that are not floating-point numbers within float16's range; the first is named.
    """
    tensors, spec = _read(file, family)
    wild = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if wild:
        raise BadInput(
            f"{len(wild)} of {len(tensors)} tensors are not finite, the first: {wild[0]}",
            where=str(file),
            fix="start from an earlier checkpoint: this one has diverged",
        )
    huge = {n: v for n, t in tensors.items() if (v := float(t.abs().max())) > MAX_WEIGHT}
    if huge:
        name, value = next(iter(huge.items()))
        raise BadInput(
            f"{len(huge)} of {len(tensors)} tensors hold values above {MAX_WEIGHT:,}, more than "
            f"float16 can; the first: {name} ({value:.3g})",
            where=str(file),
            fix="start from another file: this one is damaged or has diverged",
        )
    return tensors, spec


def _read(file: Path, family: Family) -> tuple[dict[str, Tensor], AdapterSpec]:
    if not file.is_file():
        raise NotFound("no such adapter", where=str(file))
    try:
        read_header(file, str(file))
    except BaseModelError as error:
        raise IntegrityError(error.message, where=str(file), fix=error.fix) from None
    try:
        with safe_open(str(file), framework="pt") as reader:
            header: dict[str, str] = reader.metadata() or {}
            content = {k: reader.get_tensor(k) for k in reader.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"not a whole safetensors file: {error}", where=str(file)) from None
    own = _json(header.get("styletune.adapter"))
    fix = f"give a file of this tool, diffusers, PEFT or kohya for {family.name}"
    try:
        _check_content(content)
        if "rank" in own:
            return _own(file, family)
        modules, alphas = _modules(content, family)
        kind = _kind(modules)
        modules = {m: _own_shape(m, parts) for m, parts in modules.items()}
    except _UnknownFile as error:
        raise BadInput(str(error), where=str(file), fix=fix) from None
    settings = _json(header.get("lora_adapter_metadata"))
    scale_of = {m: _scale(m, parts, alphas, settings) for m, parts in modules.items()}
    if kind in ("lora", "dora"):
        modules = {m: _trimmed(parts) for m, parts in modules.items()}
    ranks = {m: _rank(parts) for m, parts in modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    scale = Counter(scale_of.values()).most_common(1)[0][0]
    # ``module_scales`` takes each module's own rank for LoRA, and the file's for the others.
    counted = ranks if kind in ("lora", "dora") else dict.fromkeys(ranks, rank)
    tensors = {f"{m}.{part}": v for m, parts in modules.items() for part, v in parts.items()}
    tensors |= {k: content[k].float() for k in _embedding_keys(family) if k in content}
    spec = AdapterSpec(
        rank,
        scale * rank,
        own.get("base_hash", ""),
        own.get("recipe_hash", ""),
        own.get("step", 0),
        kind,
        alphas=tuple((m, s * counted[m]) for m, s in scale_of.items() if s != scale),
        tokens=tuple(own.get("tokens", ())),
    )
    return tensors, spec


def _own(file: Path, family: Family) -> tuple[dict[str, Tensor], AdapterSpec]:
    """What ``save_adapter`` wrote. Raises _UnknownFile for tensors of anything else."""
    tensors, spec = load_adapter(file)
    rows = _embedding_keys(family)
    odd = [name for name in tensors if not PART.search(name) and name not in rows]
    if odd:
        raise _UnknownFile(f"the key {odd[0]} is not known")
    return tensors, spec


def _check_content(content: Mapping[str, Tensor]) -> None:
    """Raise _UnknownFile for a file without tensors, or with other than floating-point ones."""
    if not content:
        raise _UnknownFile("holds no tensors")
    for name, tensor in content.items():
        if name.endswith(".alpha"):  # a number, in any type
            continue
        if not tensor.is_floating_point() or not tensor.numel():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise _UnknownFile(f"{name} is {kind} of shape {tuple(tensor.shape)}, not weights")


def rescaled(
    tensors: Mapping[str, Tensor], spec: AdapterSpec, to: AdapterSpec
) -> dict[str, Tensor]:
    """The same updates under another scale, to load them into an adapter injected with that.

    Raises:
        BadInput: the kinds differ.
    """
    if spec.kind != to.kind:
        raise BadInput(
            f"the adapter to start from is {spec.kind}, the recipe's is {to.kind}",
            where="[adapter] start_from",
            fix=f'kind = "{spec.kind}"',
        )
    before, after = module_scales(tensors, spec), module_scales(tensors, to)
    scaled = dict(tensors)
    for module in before:
        for part in ("lora_B.weight", "hada_w1_a", "lokr_w1"):
            key = f"{module}.{part}"
            if key in scaled and before[module] != after[module]:
                scaled[key] = scaled[key] * (before[module] / after[module])
    return scaled


def _json(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _embedding_keys(family: Family) -> tuple[str, ...]:
    return tuple(encoder.embedding_key for encoder in family.text_encoders)


class _UnknownFile(Exception):
    """What is wrong with the content of a file."""


def _modules(
    content: Mapping[str, Tensor], family: Family
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Parts by ``component.module``, and the alphas beside them."""
    modules: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    first: tuple[str, str] | None = None
    for key, value in content.items():
        if key in _embedding_keys(family):
            continue
        parsed = _parse_key(key, family)
        if parsed is None:
            raise _UnknownFile(f"the key {key} is not known")
        layout, module, part = parsed
        # Text encoders have one name in both of kohya's layouts.
        if layout != "kohya text":
            first = first or (layout, key)
            if layout != first[0]:
                raise _UnknownFile(
                    f"{key} is {layout}, but {first[1]} is {first[0]}; readers disagree on such "
                    "files"
                )
        if part == "alpha":
            alphas[module] = float(value)
        elif part in modules.setdefault(module, {}):
            raise _UnknownFile(f"{key} is there twice")
        else:
            modules[module][part] = value
    stray = sorted(alphas.keys() - modules.keys())
    if stray:
        raise _UnknownFile(f"{stray[0]} has an alpha but no weights")
    if not modules:
        raise _UnknownFile("holds no adapter")
    return modules, alphas


def _parse_key(key: str, family: Family) -> tuple[str, str, str] | None:
    """(layout, component.module, part) of a key; None for an unknown one."""
    if key.startswith("lora_"):
        name, _, part = key.partition(".")
        layout = None if name.startswith(family.unet_prefix) else "kohya text"
        for label, modules in (
            ("kohya sgm", modules_by_kohya_name(family)),
            ("kohya diffusers", modules_by_flat_name(family)),
        ):
            if name in modules:
                return layout or label, modules[name], _OURS.get(part, part)
        return None
    plain = re.sub(r"^base_model\.model\.", "unet.", key)
    match = re.fullmatch(
        rf"((?:{'|'.join(family.components)})\..+?)\."
        r"(lora_[AB]\.weight|lora\.(?:down|up)\.weight|lora_linear_layer\.(?:down|up)\.weight"
        r"|lora_magnitude_vector(?:\.weight)?|alpha)",
        plain,
    )
    if match is None:
        return None
    component, _, path = match[1].partition(".")
    if component != "unet" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    module = f"{component}.{path}"
    part = _OURS.get(match[2], match[2])
    return ("PEFT", module, part) if module in known_modules(family) else None


def _kind(modules: Mapping[str, Mapping[str, Tensor]]) -> AdapterKind:
    """The one kind of all modules. Raises _UnknownFile for unknown or mixed ones."""
    kinds: dict[AdapterKind, str] = {}
    for module, parts in modules.items():
        names = set(parts)
        if all(_LOKR.fullmatch(n) for n in names):
            kinds.setdefault("lokr", module)
            continue
        kind = next((k for k, expected in _PARTS.items() if expected == names), None)
        if kind is None:
            raise _UnknownFile(
                f"{module} has {', '.join(sorted(names))}, which makes up no kind of adapter"
            )
        kinds.setdefault(kind, module)
    if len(kinds) > 1:
        listed = ", ".join(f"{k} in {m}" for k, m in kinds.items())
        raise _UnknownFile(f"mixes kinds: {listed}")
    return next(iter(kinds))


def _own_shape(module: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32, with DoRA magnitudes in peft's shape and LoKr's first factor whole."""
    parts = {k: v.float() for k, v in parts.items()}
    if "lora_magnitude_vector" in parts:
        out, kernel = parts["lora_B.weight"].shape[0], parts["lora_A.weight"].ndim - 2
        magnitudes = parts["lora_magnitude_vector"]
        if magnitudes.shape not in ((out,), (out, 1), (1, out, 1, 1), (out, 1, 1, 1)):
            raise _UnknownFile(
                f"{module} has DoRA magnitudes of shape {tuple(magnitudes.shape)}, only one for "
                "each output is known"
            )
        shape = (1, out, *[1] * kernel) if kernel else (out,)
        parts["lora_magnitude_vector"] = magnitudes.reshape(shape)
    if "lokr_w1_a" in parts:
        parts["lokr_w1"] = parts.pop("lokr_w1_a") @ parts.pop("lokr_w1_b")
    return parts


def _trimmed(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without components that are zero on both sides: padding, which could never be trained."""
    a, b = parts["lora_A.weight"], parts["lora_B.weight"]
    used = (
        a.flatten(1).any(dim=1) | b.flatten(2).any(dim=2).any(dim=0)
        if b.ndim > 2
        else (a.flatten(1).any(dim=1) | b.any(dim=0))
    )
    keep = max(1, int(used.nonzero().max()) + 1) if bool(used.any()) else 1
    return {**parts, "lora_A.weight": a[:keep], "lora_B.weight": b[:, :keep]}


def _rank(parts: Mapping[str, Tensor]) -> int:
    for key in ("lora_A.weight", "hada_w1_b", "lokr_w2_b"):
        if key in parts:
            return parts[key].shape[0]
    return max(parts["lokr_w2"].shape[:2])


def _scale(
    module: str, parts: Mapping[str, Tensor], alphas: Mapping[str, float], settings: dict[str, Any]
) -> float:
    """What the file's own layout multiplies this module's update by; 1 without an alpha."""
    rank = _rank(parts)
    if "lokr_w2" in parts:
        return 1.0
    if module in alphas:
        return alphas[module] / rank
    component, _, path = module.partition(".")
    alpha = settings.get(f"{component}.lora_alpha")
    if alpha is None:
        return 1.0
    for pattern, value in settings.get(f"{component}.alpha_pattern", {}).items():
        # As peft looks them up: the whole name, or its end.
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
            break
    root = math.sqrt(rank) if settings.get(f"{component}.use_rslora") else rank
    return float(alpha) / root

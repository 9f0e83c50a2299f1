"""Adapter files of this and other tools -> one form, to continue training from them.

Read are: our own checkpoints; diffusers and PEFT (``.lora_A``/``.lora_B`` or
``.lora.down``/``.lora.up``, alpha in ``.alpha`` or in the header's ``lora_adapter_metadata``);
kohya with sgm block names or with diffusers block names. A file that mixes them is refused,
because its readers disagree about it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from styletune.adapters.export import COMPONENTS, SGM_RESNET, kohya_name
from styletune.adapters.file import TOKEN_KEYS, AdapterSpec, Kind, load_adapter
from styletune.adapters.inject import (
    ATTENTION,
    FEED_FORWARD,
    PROJECTIONS,
    TEXT_ATTENTION,
    TEXT_FEED_FORWARD,
)
from styletune.adapters.updates import factors
from styletune.errors import BadInput, IntegrityError, NotFound

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
_PARTS: dict[Kind, set[str]] = {
    "lora": {*_TWO_HALVES},
    "dora": {*_TWO_HALVES, "lora_magnitude_vector"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
}
_LOKR = re.compile(r"lokr_w[12](_[ab])?")
FIX_FILE = "give a file of this tool, diffusers, PEFT or kohya for SDXL"


def read_adapter_file(file: Path) -> tuple[dict[str, Tensor], AdapterSpec]:
    """Tensors by our names, float32, and what they mean.

    The rank is the most common one and alpha belongs to it; modules with another scale are
    named in ``alphas``. rsLoRA of other tools comes out as plain alphas.

    Raises:
        NotFound: no such file.
        IntegrityError: not a whole safetensors file.
        BadInput: another model's adapter, mixed layouts or unknown keys; the first is named.
    """
    try:
        with safe_open(str(file), framework="pt") as reader:
            header: dict[str, str] = reader.metadata() or {}
            content = {k: reader.get_tensor(k) for k in reader.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise NotFound("no such adapter", where=str(file)) from None
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"not a whole safetensors file: {error}", where=str(file)) from None
    own = _json(header.get("styletune.adapter"))
    if "rank" in own:
        return load_adapter(file)
    modules, alphas = _modules(content, file)
    if not modules:
        raise BadInput("holds no adapter", where=str(file), fix=FIX_FILE)
    kind = _kind(modules, file)
    modules = {m: _own_shape(m, parts, file) for m, parts in modules.items()}
    settings = _json(header.get("lora_adapter_metadata"))
    factor_of = {m: _factor(m, parts, alphas, settings) for m, parts in modules.items()}
    if kind in ("lora", "dora"):
        modules = {m: _trimmed(parts) for m, parts in modules.items()}
    ranks = {m: _rank(parts) for m, parts in modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    factor = Counter(factor_of.values()).most_common(1)[0][0]
    # Only LoRA's own rank counts in ``factors``; of the others it is the file's.
    counted = ranks if kind in ("lora", "dora") else dict.fromkeys(ranks, rank)
    tensors = {f"{m}.{part}": v for m, parts in modules.items() for part, v in parts.items()}
    tensors |= {k: content[k].float() for k in TOKEN_KEYS if k in content}
    spec = AdapterSpec(
        rank,
        factor * rank,
        own.get("base_hash", ""),
        own.get("recipe_hash", ""),
        own.get("step", 0),
        kind,
        alphas=tuple((m, f * counted[m]) for m, f in factor_of.items() if f != factor),
        tokens=tuple(own.get("tokens", ())),
    )
    return tensors, spec


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
    before, after = factors(tensors, spec), factors(tensors, to)
    scaled = dict(tensors)
    for module in before:
        for part in ("lora_B.weight", "hada_w1_a", "lokr_w1"):
            key = f"{module}.{part}"
            if key in scaled and before[module] != after[module]:
                scaled[key] = scaled[key] * (before[module] / after[module])
    return scaled


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _modules(
    content: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Parts by ``component.module``, and the alphas that stand beside them."""
    modules: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    first: tuple[str, str] | None = None
    for key, value in content.items():
        if key in TOKEN_KEYS:
            continue
        found = _place(key)
        if found is None:
            raise BadInput(f"the key {key} is not known", where=str(file), fix=FIX_FILE)
        layout, module, part = found
        # Text encoders have one name in both of kohya's layouts.
        if layout != "kohya text":
            first = first or (layout, key)
            if layout != first[0]:
                raise BadInput(
                    f"{key} is {layout}, but {first[1]} is {first[0]}; readers disagree on "
                    "such files",
                    where=str(file),
                    fix=FIX_FILE,
                )
        if part == "alpha":
            alphas[module] = float(value)
        elif part in modules.setdefault(module, {}):
            raise BadInput(f"{key} is there twice", where=str(file), fix=FIX_FILE)
        else:
            modules[module][part] = value
    stray = sorted(alphas.keys() - modules.keys())
    if stray:
        raise BadInput(f"{stray[0]} has an alpha but no weights", where=str(file), fix=FIX_FILE)
    return modules, alphas


def _place(key: str) -> tuple[str, str, str] | None:
    """(layout, component.module, part) of a key."""
    if key.startswith("lora_"):
        name, _, part = key.partition(".")
        layout = "kohya text" if name.startswith("lora_te") else None
        for label, table in (("kohya sgm", _sgm_names()), ("kohya diffusers", _flat_names())):
            if name in table:
                return layout or label, table[name], _OURS.get(part, part)
        return None
    plain = re.sub(r"^base_model\.model\.", "unet.", key)
    found = re.fullmatch(
        r"((?:unet|text_encoder|text_encoder_2)\..+?)\."
        r"(lora_[AB]\.weight|lora\.(?:down|up)\.weight|lora_linear_layer\.(?:down|up)\.weight"
        r"|lora_magnitude_vector(?:\.weight)?|alpha)",
        plain,
    )
    if found is None:
        return None
    component, _, path = found[1].partition(".")
    if component != "unet" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    module = f"{component}.{path}"
    return ("PEFT", module, _OURS.get(found[2], found[2])) if module in _known() else None


def _kind(modules: Mapping[str, Mapping[str, Tensor]], file: Path) -> Kind:
    """The one kind of all modules. Raises BadInput for unknown or mixed ones."""
    kinds: dict[Kind, str] = {}
    for module, parts in modules.items():
        names = set(parts)
        if all(_LOKR.fullmatch(n) for n in names):
            kinds.setdefault("lokr", module)
            continue
        kind = next((k for k, wanted in _PARTS.items() if wanted == names), None)
        if kind is None:
            raise BadInput(
                f"{module} has {', '.join(sorted(names))}, which makes up no kind of adapter",
                where=str(file),
                fix=FIX_FILE,
            )
        kinds.setdefault(kind, module)
    if len(kinds) > 1:
        listed = ", ".join(f"{k} in {m}" for k, m in kinds.items())
        raise BadInput(f"mixes kinds: {listed}", where=str(file), fix=FIX_FILE)
    return next(iter(kinds))


def _own_shape(module: str, parts: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Float32, with DoRA magnitudes in peft's shape and LoKr's first factor whole."""
    parts = {k: v.float() for k, v in parts.items()}
    if "lora_magnitude_vector" in parts:
        out, kernel = parts["lora_B.weight"].shape[0], parts["lora_A.weight"].ndim - 2
        given = parts["lora_magnitude_vector"]
        over_outputs = given.shape in ((out,), (out, 1), (1, out, 1, 1), (out, 1, 1, 1))
        if not over_outputs:
            raise BadInput(
                f"{module} has DoRA magnitudes of shape {tuple(given.shape)}, only one for each "
                "output is known",
                where=str(file),
                fix=FIX_FILE,
            )
        shape = (1, out, *[1] * kernel) if kernel else (out,)
        parts["lora_magnitude_vector"] = given.reshape(shape)
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


def _factor(
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


def _text_modules(component: str, layers: int) -> Iterator[str]:
    leaves = [*(f"self_attn.{p}" for p in TEXT_ATTENTION), *TEXT_FEED_FORWARD]
    for layer, leaf in itertools.product(range(layers), leaves):
        yield f"{component}.text_model.encoder.layers.{layer}.{leaf}"


def _unet_modules() -> Iterator[str]:
    """More than SDXL has, by its grammar; every one has an sgm name of its own."""
    inside = [*PROJECTIONS]
    for block in range(10):
        leaves = [f"attn{n}.{p}" for n in (1, 2) for p in ATTENTION] + [*FEED_FORWARD]
        inside += [f"transformer_blocks.{block}.{leaf}" for leaf in leaves]
    places = [("mid_block", 1, 2)]  # with how many attentions and resnets
    places += [(f"down_blocks.{i}", 2, 2) for i in range(3)]
    places += [(f"up_blocks.{i}", 3, 3) for i in range(3)]
    for place, attentions, resnets in places:
        for layer, leaf in itertools.product(range(attentions), inside):
            yield f"unet.{place}.attentions.{layer}.{leaf}"
        for layer, leaf in itertools.product(range(resnets), SGM_RESNET):
            yield f"unet.{place}.resnets.{layer}.{leaf}"
    for i in range(2):
        yield f"unet.down_blocks.{i}.downsamplers.0.conv"
        yield f"unet.up_blocks.{i}.upsamplers.0.conv"


@functools.cache
def _known() -> frozenset[str]:
    encoders = (*_text_modules("text_encoder", 12), *_text_modules("text_encoder_2", 32))
    return frozenset((*_unet_modules(), *encoders))


@functools.cache
def _sgm_names() -> dict[str, str]:
    return {kohya_name(m): m for m in _known()}


@functools.cache
def _flat_names() -> dict[str, str]:
    """Kohya's names with diffusers' block names."""
    found = {}
    for module in _known():
        component, _, path = module.partition(".")
        found[COMPONENTS[component] + path.replace(".", "_")] = module
    return found

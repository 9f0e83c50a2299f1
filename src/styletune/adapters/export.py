"""The two file layouts that together every consumer reads.

``diffusers``: PEFT names, the factor folded into B, so that a reader which knows no alpha
still gets the right strength. ``kohya``: sgm block names with one ``.alpha`` per module, for
ComfyUI, A1111, Forge and InvokeAI. Which kind goes where:

    lora, dora   both            loha, lokr   kohya, in LyCORIS' names
    oft          neither: ``to_plain_lora`` first
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from safetensors.torch import load
from torch import Tensor

from styletune import __version__
from styletune.adapters.file import TOKEN_KEYS, AdapterSpec, module_parts, pack_tensors
from styletune.adapters.updates import factors, weight_updates
from styletune.errors import BadInput, IntegrityError

LAYERS_PER_BLOCK = 2  # SDXL's, on which the sgm numbering rests
HEADER_LIMIT_BYTES = 1 << 20  # ComfyUI shows no metadata of files with a longer header
COMPONENTS = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
}
SGM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
FIX_PLAIN = "merge it into a plain LoRA first"


def sgm_module_name(module: str) -> str:
    """A diffusers UNet module's name in the original (sgm) UNet, joined by underscores.

    ``up_blocks.0.attentions.1.proj_in`` -> ``output_blocks_1_1_proj_in``.

    Raises:
        IntegrityError: the module has no place in sgm's UNet.
    """
    found = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d+))?\.(attentions|resnets|\w+samplers)\.(\d+)\.(.+)", module
    )
    place = None
    if found:
        side, group, rest = found[1], found[3], found[5]
        block, layer = int(found[2] or 0) * (LAYERS_PER_BLOCK + 1), int(found[4])
        places = {
            ("down", "resnets"): f"input_blocks.{block + layer + 1}.0",
            ("down", "attentions"): f"input_blocks.{block + layer + 1}.1",
            ("down", "downsamplers"): f"input_blocks.{block + LAYERS_PER_BLOCK + 1}.0",
            ("mid", "resnets"): f"middle_block.{2 * layer}",
            ("mid", "attentions"): "middle_block.1",
            ("up", "resnets"): f"output_blocks.{block + layer}.0",
            ("up", "attentions"): f"output_blocks.{block + layer}.1",
            ("up", "upsamplers"): f"output_blocks.{block + LAYERS_PER_BLOCK}.2",
        }
        place = places.get((side, group))
        if group == "resnets":
            rest = SGM_RESNET.get(rest, "")
        elif group == "downsamplers":
            rest = "op" if rest == "conv" else ""
        if place and rest:
            return f"{place}.{rest}".replace(".", "_")
    raise IntegrityError(f"no sgm name is known for the module {module}")


def kohya_name(module: str) -> str:
    """``component.module`` as kohya's tools call it. Raises IntegrityError as above."""
    component, _, path = module.partition(".")
    if component not in COMPONENTS:
        raise IntegrityError(f"no kohya name is known for the module {module}")
    inner = sgm_module_name(path) if component == "unet" else path.replace(".", "_")
    return COMPONENTS[component] + inner


def diffusers_file(tensors: Mapping[str, Tensor], spec: AdapterSpec) -> bytes:
    """``pytorch_lora_weights.safetensors`` for ``pipe.load_lora_weights``.

    Mixed ranks are padded with zeros to one rank a component: older readers take one alpha for
    all modules of a file without alphas. New words are not in it: see ``embeddings_file``.

    Raises:
        BadInput: diffusers reads no adapters of this kind.
    """
    if spec.kind not in ("lora", "dora"):
        raise BadInput(
            f"diffusers reads no {spec.kind} adapters", where="diffusers layout", fix=FIX_PLAIN
        )
    factor_of, modules = factors(tensors, spec), module_parts(tensors)
    widest: dict[str, int] = {}
    for module, parts in modules.items():
        component = module.partition(".")[0]
        rank = parts["lora_A.weight"].shape[0]
        widest[component] = max(rank, widest.get(component, 0))
    folded: dict[str, Tensor] = {}
    for module, parts in modules.items():
        wanted = widest[module.partition(".")[0]]
        a, b = parts["lora_A.weight"].float(), parts["lora_B.weight"].float()
        missing = wanted - a.shape[0]
        folded[f"{module}.lora_A.weight"] = torch.cat([a, a.new_zeros(missing, *a.shape[1:])])
        b = torch.cat([b, b.new_zeros(b.shape[0], missing, *b.shape[2:])], dim=1)
        folded[f"{module}.lora_B.weight"] = factor_of[module] * b
        if "lora_magnitude_vector" in parts:
            folded[f"{module}.lora_magnitude_vector"] = parts["lora_magnitude_vector"]
    return pack_tensors(folded, {"format": "pt"})


def embeddings_file(tensors: Mapping[str, Tensor]) -> bytes:
    """New words for diffusers and for the embeddings folders of WebUIs.

    ``clip_l`` (n, d1) and ``clip_g`` (n, d2); in diffusers row i of each goes into
    ``pipe.load_textual_inversion(row, token=..., text_encoder=..., tokenizer=...)``.

    Raises:
        BadInput: the adapter has no new words.
    """
    rows = {k: tensors[k] for k in TOKEN_KEYS if k in tensors}
    if len(rows) != len(TOKEN_KEYS):
        raise BadInput("the adapter has no new words", where="embeddings file")
    return pack_tensors(rows, {"format": "pt"})


def kohya_file(
    tensors: Mapping[str, Tensor], spec: AdapterSpec, header: Mapping[str, str]
) -> bytes:
    """The WebUI layout; ``header`` is string to string, hashes are added here.

    New words are not in it: diffusers and InvokeAI refuse a file with any key that is no LoRA's.
    See ``embeddings_file``.

    Raises:
        BadInput: an OFT adapter (tools disagree on its meaning), or a header over 1 MiB.
        IntegrityError: a module without a name there, or two with the same.
    """
    if spec.kind == "oft":
        raise BadInput(
            "no two tools agree on what an oft file means", where="kohya layout", fix=FIX_PLAIN
        )
    factor_of = factors(tensors, spec)
    renamed: dict[str, Tensor] = {}
    for module, parts in sorted(module_parts(tensors).items()):
        name = kohya_name(module)
        if f"{name}.alpha" in renamed:
            raise IntegrityError(f"two modules would be called {name}")
        for part, value in _kohya_parts(parts, factor_of[module], spec).items():
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


def _kohya_parts(
    parts: Mapping[str, Tensor], factor: float, spec: AdapterSpec
) -> dict[str, Tensor]:
    """One module's tensors as kohya and LyCORIS name them; a reader takes alpha / rank."""
    if "lora_A.weight" in parts:
        # diffusers loses track of alphas that differ within a file, so all modules get the main
        # one, and B takes up the rest: at the main rank nothing.
        alpha = spec.scale * spec.rank
        down, up = parts["lora_A.weight"], parts["lora_B.weight"]
        rest = factor * down.shape[0] / alpha
        up = up if math.isclose(rest, 1.0, rel_tol=1e-12) else rest * up
        found = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        if "lora_magnitude_vector" in parts:
            # Over the outputs, as LyCORIS' wd_on_output.
            trailing = [1] * (parts["lora_A.weight"].ndim - 1)
            found["dora_scale"] = parts["lora_magnitude_vector"].reshape(-1, *trailing)
        return found
    if "hada_w1_b" in parts:
        found, rank = dict(parts), parts["hada_w1_b"].shape[0]
    elif "lokr_w2" in parts:
        # Without a factored half there is no rank to divide by: readers use the factor 1.
        return {**parts, "lokr_w1": factor * parts["lokr_w1"], "alpha": torch.tensor(1.0)}
    else:
        found, rank = dict(parts), parts["lokr_w2_b"].shape[0]
    return {**found, "alpha": torch.tensor(float(factor * rank))}


def kohya_header(
    *,
    title: str,
    output_name: str,
    spec: AdapterSpec,
    base_model: str,
    resolution: int,
    license_id: str,
    description: str,
    trigger: str,
    strength: float,
    author: str = "",
    date: str = "",
    tags: str = "",
    prediction_type: str = "epsilon",
    num_train_images: int | None = None,
    thumbnail: str = "",
) -> dict[str, str]:
    """What WebUIs read from the header; folder names and captions stay out of it.

    The mini base is named as itself: a WebUI must not take its adapters for SDXL's. ``date`` is
    ISO 8601, ``thumbnail`` a JPEG in base64 of at most 256 px, ``tags`` separated by commas.
    """
    mini = base_model == "mini"
    architecture = "styletune-mini" if mini else "stable-diffusion-xl-v1-base"
    plain = spec.kind == "lora"
    algo = {"dora": "locon"}.get(spec.kind, spec.kind)
    own = {
        "base_hash": spec.base_hash,
        "recipe_hash": spec.training_hash,
        "step": spec.step,
        "tokens": list(spec.tokens),
    }
    header = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.implementation_version": f"styletune {__version__}",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.license": license_id,
        "modelspec.description": description,
        "modelspec.author": author,
        "modelspec.date": date,
        "modelspec.tags": tags,
        "modelspec.thumbnail": f"data:image/jpeg;base64,{thumbnail}" if thumbnail else "",
        "ssmd_cover_images": json.dumps([thumbnail]) if thumbnail else "",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f"strength {strength:g}",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        "ss_output_name": output_name,
        "ss_base_model_version": "styletune_mini" if mini else "sdxl_base_v1-0",
        "ss_sd_model_name": base_model,
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_args": "" if plain else json.dumps({"algo": algo}),
        "ss_network_dim": str(spec.rank),
        "ss_network_alpha": str(spec.scale * spec.rank),
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_num_train_images": "" if num_train_images is None else str(num_train_images),
        "styletune.adapter": json.dumps(own),
    }
    return {k: v for k, v in header.items() if v}


def check_exports(
    tensors: Mapping[str, Tensor], spec: AdapterSpec, diffusers: bytes | None, kohya: bytes
) -> None:
    """Read the files back and compare every module's update with the trained one.

    DoRA is compared before its magnitudes, which are compared themselves. ``diffusers`` is None
    for the kinds it cannot hold.

    Raises:
        IntegrityError: a module is missing, extra, or differs by more than 1e-6.
    """
    modules = module_parts(tensors)
    files = {"kohya": (load(kohya), {kohya_name(m): m for m in modules})}
    if diffusers is not None:
        files["diffusers"] = (load(diffusers), {m: m for m in modules})
    low = {k: v for k, v in tensors.items() if not k.endswith("lora_magnitude_vector")}
    trained = weight_updates(low, spec)
    for label, (content, names) in files.items():
        found = {k.split(".")[0] if label == "kohya" else _diffusers_module(k) for k in content}
        if found != set(names):
            raise IntegrityError(f"the {label} file holds other modules than were trained")
    for module, update in trained:
        for label, (content, _) in files.items():
            name = kohya_name(module) if label == "kohya" else module
            parts = {
                k.removeprefix(name + "."): v.float()
                for k, v in _with_prefix(content, name, modules[module])
            }
            again = _read_update(parts).reshape(update.shape)
            magnitude = modules[module].get("lora_magnitude_vector", torch.empty(0)).flatten()
            read = parts.get("dora_scale", parts.get("lora_magnitude_vector", torch.empty(0)))
            if not torch.allclose(update, again, rtol=1e-5, atol=1e-6) or not torch.equal(
                magnitude, read.flatten()
            ):
                raise IntegrityError(f"the {label} file changes the update of {module}")


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
    found = [(k, content[k]) for k in keys if k in content]
    plain = [k for k, _ in found if not k.endswith(".alpha")]
    if len(plain) != len(parts):
        raise IntegrityError(f"{name} has other tensors in the file than were trained")
    return found


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
    adapter has alpha == rank; new words go along.

    Returns:
        Its tensors and spec, and ‖lost‖ / ‖ΔW‖ over all modules (Frobenius), 0 to 1.
    """
    made = {k: tensors[k] for k in TOKEN_KEYS if k in tensors}
    lost = whole = 0.0
    for module, update in weight_updates(tensors, spec, weight_of):
        u, s, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
        root = s[:rank].sqrt()
        kernel = update.shape[2:]
        a, b = root[:, None] * v[:rank], u[:, :rank] * root
        made[f"{module}.lora_A.weight"] = a.reshape(-1, update.shape[1], *kernel)
        made[f"{module}.lora_B.weight"] = b.reshape(*b.shape, *[1] * len(kernel)).contiguous()
        lost += (b @ a - update.flatten(1)).double().square().sum().item()
        whole += update.double().square().sum().item()
    plain = replace(spec, kind="lora", rank=rank, alpha=float(rank), rslora=False, alphas=())
    return made, plain, (lost / whole) ** 0.5 if whole else 0.0

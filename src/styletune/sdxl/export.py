"""The two file layouts that together every consumer reads.

``diffusers``: PEFT names, alpha / rank folded into B, so that a reader which knows no alpha
still gets the right strength. ``kohya``: sgm block names with one ``.alpha`` per module, for
ComfyUI, A1111, Forge and InvokeAI.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

import torch
from safetensors.torch import load
from torch import Tensor

from styletune.errors import IntegrityError
from styletune.sdxl.adapter import AdapterSpec, pack_tensors, weight_updates

LAYERS_PER_BLOCK = 2  # SDXL's, on which the sgm numbering rests


def sgm_module_name(module: str) -> str:
    """A diffusers UNet module's name in the original (sgm) UNet, joined by underscores.

    ``up_blocks.0.attentions.1.proj_in`` -> ``output_blocks_1_1_proj_in``.
    """
    stride = LAYERS_PER_BLOCK + 1
    found = re.match(r"(down|mid|up)_block(?:s\.(\d+))?\.attentions\.(\d+)", module)
    if found:
        block, layer = int(found[2] or 0), int(found[3])
        place = {
            "down": f"input_blocks.{stride * block + layer + 1}.1",
            "mid": "middle_block.1",
            "up": f"output_blocks.{stride * block + layer}.1",
        }[found[1]]
        return (place + module[found.end() :]).replace(".", "_")
    raise IntegrityError(f"no sgm name is known for the module {module}")


def diffusers_file(tensors: Mapping[str, Tensor], spec: AdapterSpec) -> bytes:
    """``pytorch_lora_weights.safetensors`` for ``pipe.load_lora_weights``."""
    folded = {k: v * spec.scale if k.endswith(".lora_B.weight") else v for k, v in tensors.items()}
    return pack_tensors(folded, {"format": "pt"})


def kohya_file(
    tensors: Mapping[str, Tensor], spec: AdapterSpec, header: Mapping[str, str]
) -> bytes:
    """The WebUI layout; ``header`` is string to string, hashes are added here."""
    renamed: dict[str, Tensor] = {}
    for key, value in sorted(tensors.items()):
        module, _, part = key.removeprefix("unet.").rpartition(".lora_")
        name = "lora_unet_" + sgm_module_name(module)
        side = "lora_down" if part.startswith("A") else "lora_up"
        if f"{name}.{side}.weight" in renamed:
            raise IntegrityError(f"two modules would be called {name}")
        renamed[f"{name}.{side}.weight"] = value
        renamed[f"{name}.alpha"] = torch.tensor(float(spec.alpha))
    # The hash covers the bytes after the header, so it does not depend on the header itself.
    plain = pack_tensors(renamed, {})
    digest = hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest()
    full = {**header, "modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return pack_tensors(renamed, full)


def kohya_header(
    *, title: str, output_name: str, spec: AdapterSpec, base_model: str, resolution: int,
    license_id: str, description: str, trigger: str, strength: float,
) -> dict[str, str]:  # fmt: skip
    """What WebUIs read from the header; folder names and captions stay out of it.

    The mini base is named as itself: a WebUI must not take its adapters for SDXL's.
    """
    mini = base_model == "mini"
    architecture = "styletune-mini" if mini else "stable-diffusion-xl-v1-base"
    header = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.license": license_id,
        "modelspec.description": description,
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f"strength {strength:g}",
        "modelspec.prediction_type": "epsilon",
        "ss_output_name": output_name,
        "ss_base_model_version": "styletune_mini" if mini else "sdxl_base_v1-0",
        "ss_sd_model_name": base_model,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(spec.rank),
        "ss_network_alpha": str(spec.alpha),
        "ss_resolution": f"({resolution}, {resolution})",
        "styletune.adapter": json.dumps(
            {"base_hash": spec.base_hash, "recipe_hash": spec.recipe_hash, "step": spec.step}
        ),
    }
    return {k: v for k, v in header.items() if v}


def check_exports(
    tensors: Mapping[str, Tensor], spec: AdapterSpec, diffusers: bytes, kohya: bytes
) -> None:
    """Read both files back and compare every ΔW with the trained one.

    Raises:
        IntegrityError: a module is missing, extra, or its update differs by more than 1e-6.
    """
    from_diffusers, from_kohya = load(diffusers), load(kohya)
    modules = {k.removeprefix("unet.").rpartition(".lora_")[0] for k in tensors}
    by_sgm = {"lora_unet_" + sgm_module_name(m) for m in modules}
    for label, names, keys in (
        ("diffusers", {f"unet.{m}" for m in modules}, from_diffusers),
        ("kohya", by_sgm, from_kohya),
    ):
        if names != {re.sub(r"\.(lora_\w+\.weight|alpha)$", "", k) for k in keys}:
            raise IntegrityError(f"the {label} file holds other modules than were trained")
    for module, update in weight_updates(tensors, spec):
        a, b = (from_diffusers[f"unet.{module}.lora_{side}.weight"] for side in "AB")
        name = "lora_unet_" + sgm_module_name(module)
        down, up = (from_kohya[f"{name}.lora_{side}.weight"] for side in ("down", "up"))
        scale = from_kohya[f"{name}.alpha"].item() / down.shape[0]
        for label, found in (("diffusers", b @ a), ("kohya", scale * (up @ down))):
            if not torch.allclose(update, found, rtol=1e-5, atol=1e-6):
                raise IntegrityError(f"the {label} file changes the update of {module}")

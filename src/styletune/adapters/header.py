"""What web UIs read from the header of a file in the kohya layout."""

from __future__ import annotations

import json
from dataclasses import dataclass

from styletune import __version__
from styletune.adapters.file import AdapterSpec
from styletune.models.family import BaseWords


@dataclass(frozen=True, slots=True)
class FileLabels:
    """The words that a file carries about itself; folder names and captions stay out of them.

    ``license`` is an SPDX id, ``date`` ISO 8601, ``thumbnail`` a JPEG in base64 of at most 256 px,
    ``tags`` separated by commas.
    """

    title: str
    output_name: str
    license: str
    description: str
    trigger: str
    author: str = ""
    date: str = ""
    tags: str = ""
    thumbnail: str = ""


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What an adapter was trained on: the base model's public name and words, and the images."""

    base_model: str
    words: BaseWords
    resolution: int
    prediction_type: str = "epsilon"
    num_train_images: int | None = None


def kohya_header(
    spec: AdapterSpec, strength: float, labels: FileLabels, trained_on: TrainedOn
) -> dict[str, str]:
    """The header's texts (modelspec 1.0.1 and kohya's ``ss_`` keys); empty ones are left out."""
    plain, side = spec.kind == "lora", trained_on.resolution
    algo = {"dora": "locon"}.get(spec.kind, spec.kind)
    own = {
        "base_hash": spec.base_hash,
        "recipe_hash": spec.training_hash,
        "step": spec.step,
        "tokens": list(spec.tokens),
    }
    predicts, images = trained_on.prediction_type, trained_on.num_train_images
    thumbnail = labels.thumbnail
    header = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{trained_on.words.architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.implementation_version": f"styletune {__version__}",
        "modelspec.title": labels.title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.license": labels.license,
        "modelspec.description": labels.description,
        "modelspec.author": labels.author,
        "modelspec.date": labels.date,
        "modelspec.tags": labels.tags,
        "modelspec.thumbnail": f"data:image/jpeg;base64,{thumbnail}" if thumbnail else "",
        "ssmd_cover_images": json.dumps([thumbnail]) if thumbnail else "",
        "modelspec.trigger_phrase": labels.trigger,
        "modelspec.usage_hint": f"strength {strength:g}",
        "modelspec.prediction_type": "v" if predicts == "v_prediction" else predicts,
        "ss_output_name": labels.output_name,
        "ss_base_model_version": trained_on.words.kohya_version,
        "ss_sd_model_name": trained_on.base_model,
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_args": "" if plain else json.dumps({"algo": algo}),
        "ss_network_dim": str(spec.rank),
        "ss_network_alpha": str(spec.scale * spec.rank),
        "ss_resolution": f"({side}, {side})",
        "ss_num_train_images": "" if images is None else str(images),
        "styletune.adapter": json.dumps(own),
    }
    return {k: v for k, v in header.items() if v}

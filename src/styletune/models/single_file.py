"""Checkpoints that are one file: their family's configuration, and loading them offline."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.models.family import Config, Family

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DiffusionPipeline

Configs = Mapping[str, Config]


def configs_for(
    family: Family, names: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> Configs:
    """The family's configurations by part, with v-prediction where the file's header declares it.

    Weights do not tell what they predict. Files say it by the (empty) tensors ``v_pred`` and
    ``ztsnr``, or by ``modelspec.prediction_type``.
    """
    declared = metadata.get("modelspec.prediction_type", "").lower().replace("-", "_")
    scheduler = dict(family.scheduler)
    if "v_pred" in names or declared in {"v", "v_prediction"}:
        scheduler["prediction_type"] = "v_prediction"
    if "ztsnr" in names:
        scheduler["rescale_betas_zero_snr"] = True
        scheduler["timestep_spacing"] = "trailing"  # else the pure-noise step is never sampled
    encoders = {encoder.name: encoder.config for encoder in family.text_encoders}
    return {"unet": family.unet, "vae": family.vae, **encoders, "scheduler": scheduler}


def load_single_file(
    file: Path,
    family: Family,
    tokenizers: Sequence[Path],
    configs: Configs,
    dtype: torch.dtype,
    vae: AutoencoderKL | None,
) -> DiffusionPipeline:
    """Load an original-layout checkpoint with the given configurations; nothing is downloaded.

    ``tokenizers`` are the folders of the family's tokenizers; ``vae`` takes the place of the
    file's own.
    """
    import diffusers
    from transformers import CLIPTokenizer

    loaded = {}
    for encoder, folder in zip(family.text_encoders, tokenizers, strict=True):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if encoder.pad_token is not None:
            tokenizer.pad_token = encoder.pad_token
        loaded[encoder.tokenizer] = tokenizer
    own_vae = vae or load_vae_file(file, family, configs, dtype)
    with _written(family, configs) as written:
        return getattr(diffusers, family.pipeline).from_single_file(
            str(file),
            config=str(written),
            local_files_only=True,
            dtype=dtype,
            vae=own_vae,
            **family.load_options,
            **loaded,
        )


def load_vae_file(
    file: Path, family: Family, configs: Configs, dtype: torch.dtype
) -> AutoencoderKL:
    """Load a VAE from a file of its own or from a whole checkpoint."""
    from diffusers import AutoencoderKL

    with _written(family, configs) as folder:
        return AutoencoderKL.from_single_file(
            str(file), config=str(folder), subfolder="vae", local_files_only=True, dtype=dtype
        )


@contextmanager
def _written(family: Family, configs: Configs) -> Iterator[Path]:
    """The libraries read configurations from folders only."""
    with tempfile.TemporaryDirectory(prefix="styletune-") as name:
        folder = Path(name)
        (folder / "model_index.json").write_text(json.dumps(family.index))
        for part, config in configs.items():
            (folder / part).mkdir()
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            (folder / part / file).write_text(json.dumps(config))
        yield folder

"""Checkpoints that are one file: recognized by their header, loaded offline, weight by weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sgm_names import checkpoint
from styletune.errors import BaseModelError, NotFound
from styletune.mini import BASE_DIR
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from styletune.models.recognize import why_not_sdxl
from styletune.models.sdxl import SDXL
from styletune.models.single_file import configs_for, load_single_file
from styletune.models.weight_files import read_header

TOKENIZERS = (BASE_DIR / "tokenizer", BASE_DIR / "tokenizer_2")
UNET = "model.diffusion_model."
FIRST, SECOND = "conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x"
CONTEXT = UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
# The least that passes for an SDXL checkpoint by its header.
SDXL_SHAPES: dict[str, tuple[int, ...]] = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    CONTEXT: (640, 2048),
    UNET + "label_emb.0.0.weight": (1280, 2816),
    UNET + "middle_block.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
    UNET + "output_blocks.8.0.in_layers.0.weight": (960,),
    "first_stage_model.x": (1,),
    FIRST: (1,),
    SECOND: (1,),
}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")


@pytest.fixture(scope="module")
def small_file(pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini base as a single file with SDXL's original names."""
    models = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    file: Path = tmp_path_factory.mktemp("single") / "small.safetensors"
    save_file(checkpoint(*(m.state_dict() for m in models)), file)
    return file


def mini_configs() -> dict[str, Any]:
    names = {p: f"{p}/config.json" for p in ("unet", "vae", "text_encoder", "text_encoder_2")}
    names["scheduler"] = "scheduler/scheduler_config.json"
    return {part: json.loads((BASE_DIR / n).read_text()) for part, n in names.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_single_file_gives_every_weight_of_the_folder(
    pipe: StableDiffusionXLPipeline, small_file: Path
) -> None:
    """All four models come out of the original names with exactly the folder's weights."""
    loaded = load_single_file(small_file, SDXL, TOKENIZERS, mini_configs(), torch.float32, None)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert same(getattr(loaded, part).state_dict(), getattr(pipe, part).state_dict()), part


def test_single_file_draws_the_folders_image(
    pipe: StableDiffusionXLPipeline, small_file: Path
) -> None:
    """The same prompt and seed give the same pixels, so scheduler and tokenizers agree too."""
    loaded = load_single_file(small_file, SDXL, TOKENIZERS, mini_configs(), torch.float32, None)
    loaded.set_progress_bar_config(disable=True)
    images = [
        p(
            "a beach at noon",
            height=128,
            width=128,
            num_inference_steps=2,
            output_type="pt",
            generator=torch.Generator().manual_seed(3),
        ).images
        for p in (pipe, loaded)
    ]
    assert torch.equal(images[0], images[1])


def test_separate_vae_replaces_the_files_own(small_file: Path, tmp_path: Path) -> None:
    """A VAE that is given is the one in the pipeline."""
    config = mini_configs()["vae"]
    other = AutoencoderKL.from_config(config)
    loaded = load_single_file(small_file, SDXL, TOKENIZERS, mini_configs(), torch.float32, other)
    assert loaded.vae is other


@pytest.fixture(scope="module")
def true_models() -> dict[str, Any]:
    """SDXL in full size by our configuration, without memory for weights."""
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(dict(SDXL.unet)),
            "vae": AutoencoderKL.from_config(dict(SDXL.vae)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**SDXL.text_encoders[0].config)),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**SDXL.text_encoders[1].config)
            ),
        }


def test_configurations_are_sdxls(true_models: dict[str, Any]) -> None:
    """The four models have exactly the published numbers of parameters."""
    counts = {k: sum(p.numel() for p in m.parameters()) for k, m in true_models.items()}
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


def test_full_size_names_are_recognized_and_converted(
    true_models: dict[str, Any],
) -> None:
    """A checkpoint with SDXL's true names and shapes passes, and diffusers maps each of them."""
    states = [m.state_dict() for m in true_models.values()]
    whole = checkpoint(*states)
    assert why_not_sdxl({k: tuple(v.shape) for k, v in whole.items()}, needs_vae=True) is None
    for convert, state, part in (
        (convert_ldm_unet_checkpoint, states[0], "unet"),
        (convert_ldm_vae_checkpoint, states[1], "vae"),
    ):
        found = convert(dict(whole), config=dict(true_models[part].config))
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in state.items()}


def without(*prefixes: str) -> dict[str, tuple[int, ...]]:
    return {k: v for k, v in SDXL_SHAPES.items() if not k.startswith(prefixes)}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"lora_unet_x.lora_down.weight": (4, 8)}, "LoRA"),
        ({"unet.x.lora_A.weight": (4, 8)}, "LoRA"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "textual-inversion"),
        ({UNET + "joint_blocks.0.x": (1,)}, "Stable Diffusion 3"),
        ({UNET + "double_blocks.0.x": (1,)}, "Flux"),
        ({**without(), "cond_stage_model.transformer.text_model.x": (1,)}, "Stable Diffusion 1.x"),
        ({**without(), "cond_stage_model.model.x": (1,)}, "Stable Diffusion 2.x"),
        ({**SDXL_SHAPES, CONTEXT: (640, 768)}, "Stable Diffusion 1.x"),
        ({**SDXL_SHAPES, CONTEXT: (768, 1280)}, "SDXL refiner"),
        ({**SDXL_SHAPES, UNET + "input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting"),
        ({**SDXL_SHAPES, "edm_mean": (4,)}, "Playground"),
        (without(UNET + "middle_block"), "cut-down"),
        (without("conditioner.embedders.0"), "without its first text encoder"),
        (without("first_stage_model"), "base.vae"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "UNet of a diffusers folder alone"),
        ({"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.x": (1,)}, "VAE alone"),
        ({"bert.embeddings": (1,)}, "bert.embeddings"),
    ],
)
def test_other_models_are_named(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    """What is no SDXL base checkpoint is called by what it looks like."""
    said = why_not_sdxl(shapes, needs_vae=True)
    assert said is not None
    assert words in said


def test_checkpoint_without_vae_is_fine_with_a_separate_one() -> None:
    """The file's own VAE is not needed when another takes its place."""
    assert why_not_sdxl(without("first_stage_model"), needs_vae=False) is None


@pytest.mark.parametrize(
    ("names", "metadata", "prediction", "zero_snr"),
    [
        ({}, {}, "epsilon", None),
        ({"v_pred": (0,)}, {}, "v_prediction", None),
        ({"v_pred": (0,), "ztsnr": (0,)}, {}, "v_prediction", True),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", None),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", None),
    ],
)
def test_prediction_type_comes_from_the_header(
    names: dict[str, tuple[int, ...]],
    metadata: dict[str, str],
    prediction: str,
    zero_snr: bool | None,
) -> None:
    """A file that declares v-prediction or zero terminal SNR gets that scheduler."""
    scheduler = configs_for(SDXL, names, metadata)["scheduler"]
    assert scheduler["prediction_type"] == prediction
    assert scheduler.get("rescale_betas_zero_snr") == zero_snr


@pytest.mark.parametrize(("names", "first"), [({"v_pred": (0,), "ztsnr": (0,)}, 999), ({}, 751)])
def test_zero_terminal_snr_is_sampled_from_pure_noise(
    small_file: Path, names: dict[str, tuple[int, ...]], first: int
) -> None:
    """A file that declares it starts at the last timestep; others at 3 · 250 + 1, as SDXL does."""
    configs = {**mini_configs(), "scheduler": configs_for(SDXL, names, {})["scheduler"]}
    scheduler = load_single_file(
        small_file, SDXL, TOKENIZERS, configs, torch.float32, None
    ).scheduler
    assert scheduler.config.timestep_spacing == ("trailing" if names else "leading")
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == first


@pytest.fixture
def sdxl_like(tmp_path: Path) -> Path:
    """Passes by its header, beside the tokenizers; most weights are missing."""
    for folder in TOKENIZERS:
        shutil.copytree(folder, tmp_path / folder.name)
    file = tmp_path / "brand-base.safetensors"
    save_file({k: torch.zeros(s, dtype=torch.float16) for k, s in SDXL_SHAPES.items()}, file)
    return file


def test_find_base_takes_a_single_file(sdxl_like: Path) -> None:
    """A path to a checkpoint is found relative to the recipe, with SDXL's resolution."""
    base = find_base("brand-base.safetensors", None, sdxl_like.parent)
    assert (base.file, base.resolution) == (sdxl_like, 1024)
    assert base.tokenizers == (sdxl_like.parent / "tokenizer", sdxl_like.parent / "tokenizer_2")


def test_hash_of_a_single_file_follows_weights_and_tokenizer(sdxl_like: Path) -> None:
    """One byte of weights, or one line of merges, gives another hash; a copy the same."""
    first = find_base(str(sdxl_like), None, Path()).hash
    copy = sdxl_like.parent / "copy" / "other-name.safetensors"
    shutil.copytree(sdxl_like.parent / "tokenizer", copy.parent / "tokenizer")
    shutil.copytree(sdxl_like.parent / "tokenizer_2", copy.parent / "tokenizer_2")
    shutil.copy(sdxl_like, copy)
    assert find_base(str(copy), None, Path()).hash == first
    merges = copy.parent / "tokenizer" / "merges.txt"
    merges.write_text(merges.read_text() + "q z\n")
    assert find_base(str(copy), None, Path()).hash != first
    content = bytearray(sdxl_like.read_bytes())
    content[-1] ^= 1
    sdxl_like.write_bytes(content)
    assert find_base(str(sdxl_like), None, Path()).hash != first


def test_missing_weights_are_an_error_not_noise(sdxl_like: Path) -> None:
    """A file that lacks most weights is refused when it is loaded."""
    base = find_base(str(sdxl_like), None, Path())
    with pytest.raises(BaseModelError) as caught:
        load_pipeline(base, torch.float16, "cpu")
    assert str(sdxl_like) in caught.value.where
    assert caught.value.fix


def test_no_tokenizer_names_the_command(
    sdxl_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any tokenizer the fix is the exact download of the small files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.rmtree(sdxl_like.parent / "tokenizer_2")
    with pytest.raises(NotFound) as caught:
        find_base(str(sdxl_like), None, Path())
    assert caught.value.fix.startswith(
        "hf download stabilityai/stable-diffusion-xl-base-1.0 "
        '--include "tokenizer*/*" --include "*.json" --include "scheduler/*"'
    )


def test_tokenizers_are_taken_from_the_hubs_cache(
    sdxl_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stock SDXL in the cache, its tokenizers serve a lone file."""
    hub = tmp_path / "hub"
    snapshot = hub / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.move(sdxl_like.parent / name, snapshot / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    assert find_base(str(sdxl_like), None, Path()).tokenizers[0] == snapshot / "tokenizer"


def test_small_model_in_original_names_is_refused(small_file: Path) -> None:
    """A UNet of other widths is no SDXL, whatever its names."""
    with pytest.raises(BaseModelError, match="cut-down or changed"):
        find_base(str(small_file), None, Path())


@pytest.mark.parametrize(
    ("cut", "words"), [(0, "not a safetensors"), (20, "cut off in its header"), (-5, "cut off")]
)
def test_truncated_file_is_refused_by_arithmetic(
    small_file: Path, tmp_path: Path, cut: int, words: str
) -> None:
    """A file that ends too early is called so, at any length."""
    file = tmp_path / "cut.safetensors"
    file.write_bytes(small_file.read_bytes()[:cut])
    with pytest.raises(BaseModelError, match=words) as caught:
        find_base(str(file), None, Path())
    assert caught.value.fix


def test_file_that_is_too_long_is_refused(small_file: Path, tmp_path: Path) -> None:
    """Bytes after the last tensor mean that the file is not what was saved."""
    file = tmp_path / "long.safetensors"
    file.write_bytes(small_file.read_bytes() + b"xx")
    with pytest.raises(BaseModelError, match="too long"):
        read_header(file, "here")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.ckpt", b"\x80\x02", "pickle"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
        ("a.safetensors", b"<html>not found</html>", "not a safetensors"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]", "not a safetensors"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{}", "no Stable Diffusion"),
    ],
)
def test_files_of_other_kinds_are_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    """Pickles, pointers, web pages and empty files each get their own message."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BaseModelError, match=words):
        find_base(name, None, tmp_path)


def test_header_of_seven_gigabytes_is_read_without_its_weights(tmp_path: Path) -> None:
    """Only the header is touched: a sparse file of full size is checked at once."""
    size = 7 << 30
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    file = tmp_path / "big.safetensors"
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header.encode())
        stream.truncate(8 + len(header) + size)
    assert read_header(file, "here").shapes == {"x": (size,)}

"""The adapter in the UNet and its two file layouts, against independent oracles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from styletune.errors import IntegrityError, RecipeError
from styletune.sdxl.adapter import (
    AdapterSpec,
    adapter_parameters,
    adapter_tensors,
    inject_adapter,
    load_adapter,
    load_into,
    merged,
    save_adapter,
    target_modules,
    weight_updates,
)
from styletune.sdxl.export import (
    check_exports,
    diffusers_file,
    kohya_file,
    kohya_header,
    sgm_module_name,
)
from styletune.sdxl.load import find_base, load_pipeline

SPEC = AdapterSpec(rank=4, alpha=10.0, base_hash="b", recipe_hash="r", step=7)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")


@pytest.fixture(scope="module")
def sdxl_unet() -> UNet2DConditionModel:
    """The true SDXL configuration, without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def random_adapter(unet: torch.nn.Module, target: str = "all") -> dict[str, Tensor]:
    """Values large enough to change an image, for every targeted module."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name in target_modules(unet, target):
        out_features, in_features = unet.get_submodule(name).weight.shape
        tensors[f"unet.{name}.lora_A.weight"] = 0.06 * torch.randn(
            SPEC.rank, in_features, generator=generator
        )
        tensors[f"unet.{name}.lora_B.weight"] = 0.06 * torch.randn(
            out_features, SPEC.rank, generator=generator
        )
    return tensors


def draw(pipe: StableDiffusionXLPipeline) -> np.ndarray:
    return pipe(
        "the sea at noon", num_inference_steps=4, output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip


def test_sdxl_has_the_known_modules(sdxl_unet: UNet2DConditionModel) -> None:
    """SDXL's UNet: 2,567,463,684 parameters; 560, 700 and 722 adaptable modules."""
    assert sum(p.numel() for p in sdxl_unet.parameters()) == 2_567_463_684
    counts = [len(target_modules(sdxl_unet, t)) for t in ("attention", "attention-ff", "all")]
    assert counts == [560, 700, 722]


def test_patterns_choose_modules(sdxl_unet: UNet2DConditionModel) -> None:
    """A pattern picks by full name; one that matches nothing is refused."""
    style = target_modules(sdxl_unet, ("up_blocks.0.attentions.1.*.to_[qkv]",))
    assert len(style) == 60
    assert all(n.startswith("up_blocks.0.attentions.1.") for n in style)
    with pytest.raises(RecipeError, match="matches no"):
        target_modules(sdxl_unet, ("up_blocks.9.*",))


def test_sgm_names_are_distinct_and_known_to_diffusers(sdxl_unet: UNet2DConditionModel) -> None:
    """All 722 names differ, and diffusers maps each back to the module it came from."""
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    modules = target_modules(sdxl_unet, "all")
    names = {"lora_unet_" + sgm_module_name(m): m for m in modules}
    assert len(names) == 722
    tree = {f"{name}.lora_down.weight": torch.tensor(i) for i, name in enumerate(names)}
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tree), sdxl_unet.config)
    places = {
        "input_blocks": "down_blocks",
        "middle_block": "mid_block",
        "output_blocks": "up_blocks",
    }
    back = {}
    for key, value in mapped.items():
        found = next(place for place in places if place in key)
        back[int(value)] = key.replace(found, places[found])
    for i, module in enumerate(names.values()):
        assert back[i] == f"lora_unet_{module.replace('.', '_')}.lora_down.weight"


def test_mini_names_are_a_subset_of_sdxl(
    pipe: StableDiffusionXLPipeline, sdxl_unet: UNet2DConditionModel
) -> None:
    """Whatever works on the mini base by name works on SDXL."""
    assert set(target_modules(pipe.unet, "all")) <= set(target_modules(sdxl_unet, "all"))


def test_injected_adapter_starts_as_nothing() -> None:
    """B is zero, so an untrained adapter changes no weight; A depends on the seed alone."""
    unets = [
        load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu").unet for _ in range(2)
    ]
    for unet, draws in zip(unets, (0, 9), strict=True):
        torch.rand(draws)
        inject_adapter(unet, target_modules(unet, "attention"), 4, 4.0, seed=3)
    one, two = (adapter_tensors(u) for u in unets)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert all(not v.any() for k, v in one.items() if "lora_B" in k)
    assert all(v.any() for k, v in one.items() if "lora_A" in k)
    trainable = sum(p.numel() for p in unets[0].parameters() if p.requires_grad)
    assert trainable == sum(v.numel() for v in one.values())
    assert {p.dtype for p in adapter_parameters(unets[0]).values()} == {torch.float32}


def test_file_round_trip_is_exact(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """Save and load give the same tensors and facts; saving twice gives the same bytes."""
    tensors = random_adapter(pipe.unet)
    for name in ("a", "b"):
        save_adapter(tmp_path / name, tensors, SPEC)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back, spec = load_adapter(tmp_path / "a")
    assert spec == SPEC
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-50])
    with pytest.raises(IntegrityError):
        load_adapter(tmp_path / "a")


def test_update_is_alpha_over_rank_times_b_a(pipe: StableDiffusionXLPipeline) -> None:
    """ΔW computed in numpy from the definition is what is merged, and unmerging is exact."""
    tensors = random_adapter(pipe.unet, "attention")
    name = target_modules(pipe.unet, "attention")[3]
    before = pipe.unet.get_submodule(name).weight.detach().clone()
    a = tensors[f"unet.{name}.lora_A.weight"].numpy().astype(np.float64)
    b = tensors[f"unet.{name}.lora_B.weight"].numpy().astype(np.float64)
    wanted = before.numpy() + 0.5 * (10.0 / 4) * (b @ a)
    with merged(pipe.unet, tensors, SPEC, 0.5):
        inside = pipe.unet.get_submodule(name).weight.detach().numpy()
        assert np.allclose(inside, wanted, atol=1e-5)
    assert torch.equal(pipe.unet.get_submodule(name).weight, before)


def test_exports_hold_the_trained_updates(pipe: StableDiffusionXLPipeline) -> None:
    """ΔW read from either file by its own layout's rules equals the trained one (alpha ≠ rank)."""
    tensors = random_adapter(pipe.unet)
    trained = dict(weight_updates(tensors, SPEC))
    diffusers = load(diffusers_file(tensors, SPEC))
    kohya = load(kohya_file(tensors, SPEC, {}))
    assert sum(k.endswith(".alpha") for k in kohya) == len(trained)
    for module, update in trained.items():
        a, b = (diffusers[f"unet.{module}.lora_{x}.weight"] for x in "AB")
        assert torch.allclose(b @ a, update, atol=1e-5)
        name = "lora_unet_" + sgm_module_name(module)
        down, up = (kohya[f"{name}.lora_{x}.weight"] for x in ("down", "up"))
        scale = float(kohya[f"{name}.alpha"]) / down.shape[0]
        assert torch.allclose(scale * (up @ down), update, atol=1e-5)


def test_check_finds_a_wrong_export(pipe: StableDiffusionXLPipeline) -> None:
    """A file with another alpha or another adapter's weights does not pass."""
    tensors = random_adapter(pipe.unet)
    diffusers, kohya = diffusers_file(tensors, SPEC), kohya_file(tensors, SPEC, {})
    check_exports(tensors, SPEC, diffusers, kohya)
    wrong = replace(SPEC, alpha=4.0)
    with pytest.raises(IntegrityError, match="kohya"):
        check_exports(tensors, SPEC, diffusers, kohya_file(tensors, wrong, {}))
    with pytest.raises(IntegrityError, match="diffusers"):
        check_exports(tensors, SPEC, diffusers_file(tensors, wrong), kohya)


def test_both_files_render_what_training_rendered(tmp_path: Path) -> None:
    """Injected as in training, merged, and loaded by diffusers from either file: same image."""
    pipe = load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")
    tensors = random_adapter(pipe.unet)
    base = draw(pipe)
    with merged(pipe.unet, tensors, SPEC, 1.0):
        by_merge = draw(pipe)
    files = {"d.safetensors": diffusers_file(tensors, SPEC),
             "k.safetensors": kohya_file(tensors, SPEC, {"modelspec.title": "x"})}  # fmt: skip
    loaded = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        pipe.load_lora_weights(str(tmp_path), weight_name=name, adapter_name=name[0])
        loaded.append(draw(pipe))
        pipe.unload_lora_weights()
    inject_adapter(pipe.unet, target_modules(pipe.unet, "all"), SPEC.rank, SPEC.alpha, 0)
    load_into(pipe.unet, tensors)
    trained = draw(pipe)
    assert np.abs(trained - base).max() > 0.1
    for image in (by_merge, *loaded):
        assert np.abs(image - trained).max() < 2e-3


def test_kohya_header_is_what_web_uis_read(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """SDXL's markers for SDXL, other ones for the mini base, hashes over the tensor bytes."""
    import hashlib

    def header(base_model: str) -> dict[str, str]:
        return kohya_header(
            title="brand 1.0.0", output_name="brand_v1.0.0", spec=SPEC, base_model=base_model,
            resolution=1024, license_id="CC0-1.0", description="d", trigger="t", strength=0.8,
        )  # fmt: skip

    sdxl, mini = header("stabilityai/stable-diffusion-xl-base-1.0"), header("mini")
    assert sdxl["ss_base_model_version"] == "sdxl_base_v1-0"
    assert sdxl["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert not mini["ss_base_model_version"].startswith("sdxl")
    content = kohya_file(random_adapter(pipe.unet), SPEC, sdxl)
    file = tmp_path / "k.safetensors"
    file.write_bytes(content)
    size = int.from_bytes(content[:8], "little")
    with safe_open(file, framework="pt") as reader:
        written = reader.metadata()
    assert written["sshs_model_hash"] == hashlib.sha256(content[8 + size :]).hexdigest()
    assert json.loads(written["styletune.adapter"])["step"] == 7
    assert size < 1 << 20

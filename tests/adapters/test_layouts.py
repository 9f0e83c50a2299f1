"""Reading other tools' files: every layout gives back the updates that were written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from adapter_parts import (
    LORA,
    adapter_tensors,
    inject,
    mini_pipe,
    random_adapter,
    sdxl_unet,
    section,
    spec_of,
)
from styletune.adapters.export import diffusers_file, kohya_file
from styletune.adapters.file import AdapterSpec, save_adapter
from styletune.adapters.header import FileLabels, TrainedOn, kohya_header
from styletune.adapters.inject import load_into, target_modules
from styletune.adapters.layouts import read_adapter_file, rescaled
from styletune.adapters.updates import weight_updates
from styletune.errors import BadInput, IntegrityError, NotFound
from styletune.models.names import base_words
from styletune.models.sdxl import SDXL
from styletune.recipe.training_sections import AdapterSection

WIDE = section(
    "lora", 4, 3.0, rslora=True, conv_rank=2, block_ranks={"mid_block.*": 6}, text_encoder_rank=5
)
HEADER = kohya_header(
    AdapterSpec(4, 3.0, "base", "recipe", 9, tokens=("<acme>",)),
    1.0,
    FileLabels("t", "o", "CC0-1.0", description="", trigger=""),
    TrainedOn("mini", base_words("mini", SDXL), 128),
)


@pytest.fixture(scope="module")
def wide() -> tuple[dict[str, Tensor], AdapterSpec]:
    """Convolutions, text encoders, rsLoRA and mixed ranks at once."""
    tensors, spec, _ = random_adapter(WIDE, "all", text=True)
    return tensors, spec


def assert_same_updates(file: Path, tensors: dict[str, Tensor], spec: AdapterSpec) -> AdapterSpec:
    """The file's updates are those of the tensors; its spec is returned."""
    found, read = read_adapter_file(file, SDXL)
    updates = dict(weight_updates(found, read))
    wanted = dict(weight_updates(tensors, spec))
    assert updates.keys() == wanted.keys()
    for module, update in wanted.items():
        assert torch.allclose(updates[module], update, atol=1e-5)
    assert all(v.dtype == torch.float32 for v in found.values())
    return read


def test_our_own_files_are_read(
    tmp_path: Path, wide: tuple[dict[str, Tensor], AdapterSpec]
) -> None:
    """A checkpoint comes back bit for bit, of whatever kind."""
    for tensors, spec in (wide, random_adapter(section("oft", 8, 8.0))[:2]):
        save_adapter(tmp_path / "own", tensors, spec)
        back, read = read_adapter_file(tmp_path / "own", SDXL)
        assert read == spec
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[k], v) for k, v in tensors.items())


def test_both_exports_are_read_back(
    tmp_path: Path, wide: tuple[dict[str, Tensor], AdapterSpec]
) -> None:
    """Either published file gives the trained updates; the kohya one also says its origin."""
    tensors, spec = wide
    (tmp_path / "d").write_bytes(diffusers_file(tensors, spec))
    assert_same_updates(tmp_path / "d", tensors, spec)
    # The diffusers file pads all ranks to one; the padding is gone again.
    again = read_adapter_file(tmp_path / "d", SDXL)[0]
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in tensors.items()}
    (tmp_path / "k").write_bytes(kohya_file(tensors, spec, HEADER, SDXL))
    read = assert_same_updates(tmp_path / "k", tensors, spec)
    assert (read.base_hash, read.training_hash, read.step) == ("base", "recipe", 9)
    assert read.tokens == ("<acme>",)


def test_kohya_with_diffusers_names_is_read(
    tmp_path: Path, wide: tuple[dict[str, Tensor], AdapterSpec]
) -> None:
    """Block names of diffusers under kohya's prefixes mean the same modules."""
    tensors, spec = wide
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    renamed = {}
    for key, value in tensors.items():
        module, _, part = key.rpartition(".lora_")
        component, _, path = module.partition(".")
        name = prefixes[component] + path.replace(".", "_")
        side = "down" if part.startswith("A") else "up"
        renamed[f"{name}.lora_{side}.weight"] = value.half()
        if side == "down":
            # rsLoRA's factor alpha / sqrt(rank) as a reader of alpha / rank needs it.
            renamed[f"{name}.alpha"] = torch.tensor(3.0 * value.shape[0] ** 0.5)
    save_file(renamed, tmp_path / "k")
    found, read = read_adapter_file(tmp_path / "k", SDXL)
    assert read.rank == 4
    assert read.alpha == pytest.approx(6.0)
    assert not read.rslora
    updates = dict(weight_updates(found, read))
    for module, update in weight_updates(tensors, spec):
        assert torch.allclose(updates[module], update, atol=1e-3)


def test_peft_dialects_and_their_alphas_are_read(tmp_path: Path) -> None:
    """.lora.down/.up, .alpha beside the weights, and lora_adapter_metadata with patterns."""
    tensors, spec, _ = random_adapter(section("lora", 4, 10.0, block_ranks={"mid_block.*": 2}))
    old = {
        k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in tensors.items()
    }
    save_file(old, tmp_path / "plain")
    # Without any alpha a file means B · A.
    assert_same_updates(tmp_path / "plain", tensors, replace(spec, rank=1, alpha=1.0))
    alphas = {
        k.replace(".lora.down.weight", ".alpha"): torch.tensor(2.5 * v.shape[0])
        for k, v in old.items()
        if "lora.down" in k
    }
    save_file({**old, **alphas}, tmp_path / "alpha")
    assert_same_updates(tmp_path / "alpha", tensors, spec)
    bare = {k.replace("unet.", "base_model.model."): v for k, v in tensors.items()}
    save_file(bare, tmp_path / "bare")
    assert_same_updates(tmp_path / "bare", tensors, replace(spec, rank=1, alpha=1.0))
    settings = {
        "unet.lora_alpha": 10.0,
        "unet.r": 4,
        "unet.use_rslora": False,
        "unet.alpha_pattern": {r"mid_block\..*": 5.0},
    }
    save_file(tensors, tmp_path / "meta", {"lora_adapter_metadata": json.dumps(settings)})
    assert_same_updates(tmp_path / "meta", tensors, spec)
    settings = {"unet.lora_alpha": 10.0, "unet.use_rslora": True}
    save_file(tensors, tmp_path / "rs", {"lora_adapter_metadata": json.dumps(settings)})
    assert_same_updates(tmp_path / "rs", tensors, replace(spec, rslora=True))


def test_what_diffusers_saves_is_read(tmp_path: Path) -> None:
    """A file that diffusers itself writes, with its metadata, gives the injected updates."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = mini_pipe()
    pipe.unet.add_adapter(
        LoraConfig(r=3, lora_alpha=6, target_modules=["to_q"], init_lora_weights=False)
    )
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, state, unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict()
    )
    found, read = read_adapter_file(tmp_path / "pytorch_lora_weights.safetensors", SDXL)
    assert (read.rank, read.alpha) == (3, 6.0)
    count = 0
    for module, update in weight_updates(found, read):
        layer = pipe.unet.get_submodule(module.removeprefix("unet."))
        assert torch.allclose(layer.get_delta_weight("default"), update, atol=1e-6)
        count += 1
    assert count == len(
        [n for n in target_modules(mini_pipe().unet, "attention", SDXL) if "to_q" in n]
    )


@pytest.mark.parametrize(
    "shape",
    [
        section("dora", 4, 6.0, conv_rank=2),
        section("loha", 3, 4.5, conv_rank=2),
        section("lokr", 2, 3.0, conv_rank=1),
        section("lokr", 64, 32.0),
    ],
)
def test_other_kinds_are_read_back(shape: AdapterSection, tmp_path: Path) -> None:
    """DoRA, LoHa and LoKr files of the kohya layout give their updates back."""
    tensors, spec, _ = random_adapter(shape)
    pipe = mini_pipe()
    (tmp_path / "k").write_bytes(kohya_file(tensors, spec, {}, SDXL))
    found, read = read_adapter_file(tmp_path / "k", SDXL)
    assert read.kind == shape.kind
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in tensors.items()}

    def weight_of(name: str) -> Tensor:
        weight = pipe.unet.get_submodule(name.removeprefix("unet.")).weight
        assert isinstance(weight, Tensor)
        return weight

    again = dict(weight_updates(found, read, weight_of))
    for module, update in weight_updates(tensors, spec, weight_of):
        assert torch.allclose(again[module], update, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        LORA,
        section("dora", 4, 6.0),
        section("loha", 3, 4.5),
        section("lokr", 2, 3.0),
    ],
)
def test_training_goes_on_from_a_foreign_file(shape: AdapterSection, tmp_path: Path) -> None:
    """Rescaled to the recipe's alpha and loaded, the injected layers have the file's updates."""
    tensors, spec, _ = random_adapter(shape, "style-block")
    (tmp_path / "k").write_bytes(kohya_file(tensors, spec, {}, SDXL))
    found, read = read_adapter_file(tmp_path / "k", SDXL)
    wanted = shape.model_copy(update={"alpha": 1.0})
    pipe, plain = mini_pipe(), mini_pipe()
    models = inject(pipe, wanted, "style-block")
    load_into(models, rescaled(found, read, spec_of(wanted)))

    def weight_of(name: str) -> Tensor:
        weight = plain.unet.get_submodule(name.removeprefix("unet.")).weight
        assert isinstance(weight, Tensor)
        return weight

    again = dict(weight_updates(adapter_tensors(models), spec_of(wanted), weight_of))
    for module, update in weight_updates(tensors, spec, weight_of):
        assert torch.allclose(again[module], update, atol=1e-5)
    with pytest.raises(BadInput, match="the recipe's is oft"):
        rescaled(found, read, AdapterSpec(4, 4.0, kind="oft"))


def test_names_of_all_sdxl_modules_are_known(tmp_path: Path) -> None:
    """All 771 modules of SDXL's UNet come back from both kohya layouts by their own names."""
    modules = target_modules(sdxl_unet(), "all", SDXL, conv=True)
    tensors = {}
    for module in modules:
        tensors[f"unet.{module}.lora_A.weight"] = torch.zeros(1, 2)
        tensors[f"unet.{module}.lora_B.weight"] = torch.zeros(2, 1)
    content = kohya_file(tensors, AdapterSpec(1, 1.0), {}, SDXL)
    (tmp_path / "sgm").write_bytes(content)
    flat = {
        "lora_unet_"
        + k.removeprefix("unet.").partition(".lora_")[0].replace(".", "_")
        + (".lora_down.weight" if "lora_A" in k else ".lora_up.weight"): v
        for k, v in tensors.items()
    }
    save_file(flat, tmp_path / "flat")
    assert len(modules) == 771
    for name in ("sgm", "flat"):
        assert read_adapter_file(tmp_path / name, SDXL)[0].keys() == tensors.keys()


def test_odd_files_are_refused_by_their_first_odd_key(tmp_path: Path) -> None:
    """Unknown keys, mixed layouts, mixed kinds, halves and other models are named and refused."""
    tensors, spec, _ = random_adapter(target="style-block")
    kohya = load(kohya_file(tensors, spec, {}, SDXL))
    peft = load(diffusers_file(tensors, spec))
    name = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q"
    flat = "lora_unet_mid_block_attentions_0_proj_in"
    half = {k: v for k, v in kohya.items() if k != f"{name}.lora_up.weight"}
    dora = {**kohya, f"{name}.dora_scale": torch.ones(128, 1)}
    inputs = {k: v for k, v in dora.items() if k.startswith(name)}
    inputs[f"{name}.dora_scale"] = torch.ones(1, 128)
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({**kohya, "lora_unet_double_blocks_0_img_attn.alpha": torch.ones(())}, "double_blocks"),
        ({**peft, "unet.conv_in.lora_A.weight": torch.ones(1, 4)}, "unet.conv_in.lora_A.weight"),
        ({**kohya, **peft}, "readers disagree"),
        ({**kohya, f"{flat}.lora_down.weight": torch.ones(1, 1)}, "kohya diffusers"),
        (half, "lora_A.weight, which makes up no kind"),
        (dora, "mixes kinds"),
        (inputs, "only one for each output"),
        ({f"{name}.alpha": torch.ones(())}, "no adapter|no weights"),
        ({"clip_l": torch.ones(1, 2)}, "holds no adapter"),
    ]
    for content, words in cases:
        save_file(content, tmp_path / "odd")
        with pytest.raises(BadInput, match=words):
            read_adapter_file(tmp_path / "odd", SDXL)
    with pytest.raises(NotFound):
        read_adapter_file(tmp_path / "none", SDXL)
    (tmp_path / "odd").write_bytes(b"not safetensors")
    with pytest.raises(IntegrityError):
        read_adapter_file(tmp_path / "odd", SDXL)

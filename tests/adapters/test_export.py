"""The two file layouts, against the trained updates and against diffusers as it is installed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from adapter_parts import LORA, draw, mini_pipe, models_of, random_adapter, sdxl_unet, section
from styletune.adapters.export import (
    check_exports,
    diffusers_file,
    embeddings_file,
    kohya_file,
    to_plain_lora,
)
from styletune.adapters.file import AdapterSpec, module_parts
from styletune.adapters.header import FileLabels, TrainedOn, kohya_header
from styletune.adapters.inject import target_modules
from styletune.adapters.names import kohya_name, sgm_module_name
from styletune.adapters.updates import merged, weight_updates
from styletune.errors import BadInput, IntegrityError
from styletune.models.names import base_words
from styletune.models.sdxl import SDXL
from styletune.recipe.training_sections import AdapterSection

RANKS = {"mid_block.*": 2, "*.attn1.*": 6}
SHAPES = {
    "alpha is not rank": (LORA, False),
    "rslora": (section("lora", 4, 3.0, rslora=True, block_ranks=RANKS), False),
    "block ranks": (section("lora", 4, 10.0, block_ranks=RANKS), False),
    "convolutions": (section("lora", 4, 6.0, conv_rank=2), False),
    "text encoders": (section("lora", 4, 10.0, text_encoder_rank=3), True),
    "all": (
        section("lora", 4, 3.0, rslora=True, conv_rank=2, block_ranks=RANKS, text_encoder_rank=5),
        True,
    ),
}


@pytest.fixture(scope="module")
def big_unet() -> UNet2DConditionModel:
    return sdxl_unet()


def low_rank(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """Computes scale · up · down for linear layers and convolutions, by einsum."""
    if down.ndim == 2:
        return scale * torch.einsum("or,ri->oi", up, down)
    return scale * torch.einsum("orxy,rihw->oihw", up, down)


def header_for(spec: AdapterSpec, base_model: str = "mini") -> dict[str, str]:
    labels = FileLabels(
        title="brand 1.0.0",
        output_name="brand_v1.0.0",
        license="CC0-1.0",
        description="d",
        trigger="t",
        author="Acme",
        date="2026-11-21T00:00:00Z",
        tags="style, brand",
    )
    trained_on = TrainedOn(base_model, base_words(base_model, SDXL), 1024, num_train_images=12)
    return kohya_header(spec, 0.8, labels, trained_on)


def test_sgm_names_are_distinct_and_known_to_diffusers(big_unet: UNet2DConditionModel) -> None:
    """SDXL's 722 + 49 names differ, and diffusers maps each back to where it came from."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_unet_lora_key,
        _maybe_map_sgm_blocks_to_diffusers,
    )

    modules = target_modules(big_unet, "all", SDXL, conv=True)
    names = {"lora_unet_" + sgm_module_name(m, 2): m for m in modules}
    assert len(names) == len(modules) == 722 + 49
    tree = {f"{name}.lora_down.weight": torch.tensor(i) for i, name in enumerate(names)}
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tree), big_unet.config)
    back = {}
    for key, value in mapped.items():
        name = _convert_unet_lora_key(key).replace(".processor", "").removesuffix(".weight")
        name = (
            name.replace("_lora.down", "").replace(".lora.down", "").replace("to_out", "to_out.0")
        )
        back[int(value)] = name
    assert [back[i] for i in range(len(modules))] == list(names.values())


def test_known_places_have_their_published_names() -> None:
    """Names as kohya's own files have them; what has no place is refused."""
    for ours, theirs in (
        ("unet.down_blocks.0.resnets.0.conv1", "lora_unet_input_blocks_1_0_in_layers_2"),
        ("unet.down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
        (
            "unet.down_blocks.1.resnets.0.conv_shortcut",
            "lora_unet_input_blocks_4_0_skip_connection",
        ),
        ("unet.down_blocks.2.attentions.1.proj_in", "lora_unet_input_blocks_8_1_proj_in"),
        ("unet.mid_block.resnets.1.conv2", "lora_unet_middle_block_2_out_layers_3"),
        (
            "unet.up_blocks.0.attentions.1.transformer_blocks.9.attn2.to_out.0",
            "lora_unet_output_blocks_1_1_transformer_blocks_9_attn2_to_out_0",
        ),
        ("unet.up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
        ("unet.up_blocks.2.resnets.2.conv1", "lora_unet_output_blocks_8_0_in_layers_2"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        ),
        (
            "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",
            "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
        ),
    ):
        assert kohya_name(ours, SDXL) == theirs
    for odd in ("unet.conv_in", "unet.down_blocks.0.resnets.0.norm1", "vae.decoder.conv_in"):
        with pytest.raises(IntegrityError, match="known for the module"):
            kohya_name(odd, SDXL)


@pytest.mark.parametrize("name", SHAPES)
def test_exports_hold_the_trained_updates(name: str) -> None:
    """ΔW read from either file by its own layout's rules equals the trained one."""
    shape, text = SHAPES[name]
    tensors, spec, _ = random_adapter(shape, text=text)
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, {}, SDXL)
    check_exports(tensors, spec, diffusers, kohya, SDXL)
    from_diffusers, from_kohya = load(diffusers), load(kohya)
    trained = {k.removesuffix(".lora_A.weight"): v for k, v in tensors.items() if "lora_A" in k}
    assert sum(k.endswith(".alpha") for k in from_kohya) == len(trained)
    assert len(from_kohya) == 3 * len(trained)
    assert len(from_diffusers) == 2 * len(trained)
    for module, a in trained.items():
        rank = a.shape[0]
        scale = shape.base_alpha / (rank**0.5 if shape.rslora else shape.rank)
        wanted = low_rank(tensors[f"{module}.lora_B.weight"], a, scale)
        down, up = (from_diffusers[f"{module}.lora_{x}.weight"] for x in "AB")
        assert torch.allclose(low_rank(up, down, 1.0), wanted, atol=1e-5)
        key = kohya_name(module, SDXL)
        down, up = (from_kohya[f"{key}.lora_{x}.weight"] for x in ("down", "up"))
        own = float(from_kohya[f"{key}.alpha"]) / down.shape[0]
        assert torch.allclose(low_rank(up, down, own), wanted, atol=1e-5)
        assert down.shape == a.shape
        if rank == shape.rank:
            assert own == pytest.approx(scale)


def test_readers_of_one_alpha_get_the_right_strength() -> None:
    """In the diffusers file all ranks of a component agree, so any reader's alpha = rank works."""
    shape, text = SHAPES["all"]
    tensors, spec, _ = random_adapter(shape, text=text)
    ranks: dict[str, set[int]] = {}
    for key, value in load(diffusers_file(tensors, spec)).items():
        if "lora_A" in key:
            ranks.setdefault(key.partition(".")[0], set()).add(value.shape[0])
    assert ranks == {"unet": {6}, "text_encoder": {5}, "text_encoder_2": {5}}


@pytest.mark.parametrize("name", ["alpha is not rank", "block ranks", "all"])
def test_diffusers_draws_what_training_drew(name: str, tmp_path: Path) -> None:
    """Injected as in training, merged, and loaded by diffusers from either file: same image."""
    shape, text = SHAPES[name]
    tensors, spec, adapted = random_adapter(shape, text=text)
    pipe = mini_pipe()
    base, trained = draw(pipe), draw(adapted)
    with merged(models_of(pipe), tensors, spec, 1.0):
        images = [draw(pipe)]
    files = {
        "d.safetensors": diffusers_file(tensors, spec),
        "k.safetensors": kohya_file(tensors, spec, header_for(spec), SDXL),
    }
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
        pipe.load_lora_weights(str(tmp_path), weight_name=file, adapter_name=file[0])
        images.append(draw(pipe))
        pipe.unload_lora_weights()
    assert np.abs(trained - base).max() > 0.05
    for image in images:
        assert np.abs(image - trained).max() < 2e-3


def test_diffusers_draws_dora_as_trained(tmp_path: Path) -> None:
    """A DoRA in diffusers' file keeps its magnitudes; WebUIs get them over the outputs."""
    tensors, spec, adapted = random_adapter(
        section("dora", 4, 6.0, conv_rank=2), ("mid_block.*", "up_blocks.*")
    )
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, {}, SDXL)
    check_exports(tensors, spec, diffusers, kohya, SDXL)
    (tmp_path / "d.safetensors").write_bytes(diffusers)
    pipe = mini_pipe()
    base = draw(pipe)
    pipe.load_lora_weights(str(tmp_path), weight_name="d.safetensors")
    assert np.abs(draw(pipe) - draw(adapted)).max() < 2e-3
    assert np.abs(draw(pipe) - base).max() > 0.05
    content = load(kohya)
    module = "unet.mid_block.resnets.0.conv1"
    scale = content[f"{kohya_name(module, SDXL)}.dora_scale"]
    assert scale.shape == (128, 1, 1, 1)
    assert torch.equal(scale.flatten(), tensors[f"{module}.lora_magnitude_vector"].flatten())


@pytest.mark.parametrize(
    "shape",
    [
        section("loha", 3, 4.5, conv_rank=2),
        section("lokr", 2, 3.0, conv_rank=1),
        section("lokr", 64, 32.0),
    ],
)
def test_lycoris_kinds_are_read_by_their_published_rules(shape: AdapterSection) -> None:
    """LyCORIS' and ComfyUI's arithmetic on the kohya file gives the trained ΔW."""
    tensors, spec, _ = random_adapter(shape)
    content = load(kohya_file(tensors, spec, {}, SDXL))
    check_exports(tensors, spec, None, kohya_file(tensors, spec, {}, SDXL), SDXL)
    seen = 0
    for module, update in weight_updates(tensors, spec):
        name = kohya_name(module, SDXL)
        part = {k[len(name) + 1 :]: v for k, v in content.items() if k.startswith(name + ".")}
        if shape.kind == "loha":
            scale = part["alpha"] / part["hada_w1_b"].shape[0]
            found = (part["hada_w1_a"] @ part["hada_w1_b"]) * (
                part["hada_w2_a"] @ part["hada_w2_b"]
            )
        else:
            factored = "lokr_w2_b" in part
            scale = part["alpha"] / part["lokr_w2_b"].shape[0] if factored else torch.tensor(1.0)
            big = part["lokr_w2_a"] @ part["lokr_w2_b"] if factored else part["lokr_w2"]
            small = part["lokr_w1"]
            found = torch.kron(small[..., None, None] if big.ndim == 4 else small, big)
        assert torch.allclose((scale * found).reshape(update.shape), update, atol=1e-5)
        seen += 1
    assert seen
    with pytest.raises(BadInput, match=f"no {shape.kind}"):
        diffusers_file(tensors, spec)


def test_comparing_shows_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """It takes minutes for a whole SDXL adapter."""
    tensors, spec, _ = random_adapter()
    kohya = kohya_file(tensors, spec, {}, SDXL)
    check_exports(tensors, spec, diffusers_file(tensors, spec), kohya, SDXL)
    count = len(module_parts(tensors))
    assert f"{count}/{count} modules" in capfd.readouterr().err


def test_check_finds_a_wrong_export() -> None:
    """Another alpha, other modules or another adapter's values do not pass."""
    tensors, spec, _ = random_adapter(text=True)
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, {}, SDXL)
    check_exports(tensors, spec, diffusers, kohya, SDXL)
    wrong = replace(spec, alpha=4.0)
    with pytest.raises(IntegrityError, match="kohya"):
        check_exports(tensors, spec, diffusers, kohya_file(tensors, wrong, {}, SDXL), SDXL)
    with pytest.raises(IntegrityError, match="diffusers"):
        check_exports(tensors, spec, diffusers_file(tensors, wrong), kohya, SDXL)
    fewer = {k: v for k, v in tensors.items() if "mid_block" not in k}
    with pytest.raises(IntegrityError, match="other modules"):
        check_exports(tensors, spec, diffusers, kohya_file(fewer, spec, {}, SDXL), SDXL)
    dora, dora_spec, _ = random_adapter(section("dora", 4, 6.0), "style-block")
    key = next(k for k in dora if "magnitude" in k)
    other = {**dora, key: dora[key] * 1.01}
    with pytest.raises(IntegrityError, match="kohya"):
        check_exports(
            dora,
            dora_spec,
            diffusers_file(dora, dora_spec),
            kohya_file(other, dora_spec, {}, SDXL),
            SDXL,
        )


@pytest.mark.parametrize(
    "shape",
    [
        section("dora", 2, 3.0),
        section("loha", 3, 4.5),
        section("lokr", 2, 3.0),
        section("oft", 8, 8.0),
    ],
)
def test_any_kind_becomes_a_plain_lora(shape: AdapterSection) -> None:
    """At full rank nothing is lost; at a low one the loss is what the dropped part weighs."""
    tensors, spec, adapted = random_adapter(shape, "style-block")
    pipe = mini_pipe()

    def weight_of(name: str) -> Tensor:
        weight = pipe.unet.get_submodule(name.removeprefix("unet.")).weight
        assert isinstance(weight, Tensor)
        return weight

    full, full_spec, error = to_plain_lora(tensors, spec, 256, weight_of)
    assert error < 1e-5
    assert (full_spec.kind, full_spec.rank, full_spec.alpha) == ("lora", 256, 256.0)
    check_exports(
        full,
        full_spec,
        diffusers_file(full, full_spec),
        kohya_file(full, full_spec, {}, SDXL),
        SDXL,
    )
    with merged({"unet": pipe.unet}, full, full_spec, 1.0):
        assert np.abs(draw(pipe) - draw(adapted)).max() < 2e-3
    small, small_spec, error = to_plain_lora(tensors, spec, 2, weight_of)
    lost = whole = 0.0
    kept = dict(weight_updates(small, small_spec))
    for module, update in weight_updates(tensors, spec, weight_of):
        values = torch.linalg.svdvals(update.flatten(1).double())
        lost += float(values[2:].square().sum())
        whole += float(values.square().sum())
        assert kept[module].shape == update.shape
    assert error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert 0.01 < error < 1


def test_a_plain_lora_survives_its_own_rank() -> None:
    """A rank-4 LoRA, rsLoRA or not, is a rank-4 LoRA: the error is zero but for rounding."""
    for shape, target in (
        (LORA, "style-block"),
        (section("lora", 4, 3.0, rslora=True, conv_rank=3), ("mid_block.*",)),
    ):
        tensors, spec, _ = random_adapter(shape, target)
        tensors["clip_l"] = torch.ones(1, 64)
        plain, plain_spec, error = to_plain_lora(tensors, spec, 4)
        assert error < 1e-5
        assert plain["clip_l"] is tensors["clip_l"]
        again = dict(weight_updates(plain, plain_spec))
        for module, update in weight_updates(tensors, spec):
            assert torch.allclose(again[module], update, atol=1e-5)


def test_oft_is_refused_by_both_layouts() -> None:
    """OFT goes into neither file, and the message says what to do."""
    tensors, spec, _ = random_adapter(section("oft", 8, 8.0))
    with pytest.raises(BadInput, match="plain LoRA"):
        diffusers_file(tensors, spec)
    with pytest.raises(BadInput, match="plain LoRA"):
        kohya_file(tensors, spec, {}, SDXL)


def test_new_words_travel_beside_both_files(tmp_path: Path) -> None:
    """Their rows are in the embeddings file alone: with them diffusers refuses a kohya file."""
    tensors, spec, _ = random_adapter()
    with pytest.raises(BadInput, match="no new words"):
        embeddings_file(tensors, SDXL)
    tensors["clip_l"], tensors["clip_g"] = torch.randn(2, 64), torch.randn(2, 96)
    words = load(embeddings_file(tensors, SDXL))
    assert words.keys() == {"clip_l", "clip_g"}
    assert all(torch.equal(rows, tensors[key]) for key, rows in words.items())
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, {}, SDXL)
    check_exports(tensors, spec, diffusers, kohya, SDXL)
    for content in (diffusers, kohya):
        assert not any(k.startswith("clip") for k in load(content))
        (tmp_path / "lora.safetensors").write_bytes(content)
        mini_pipe().load_lora_weights(str(tmp_path), weight_name="lora.safetensors")


def test_kohya_header_is_what_web_uis_read(tmp_path: Path) -> None:
    """SDXL's markers for SDXL, other ones for the mini base, hashes over the tensor bytes."""
    tensors, spec, _ = random_adapter()
    sdxl, mini = header_for(spec, "stabilityai/stable-diffusion-xl-base-1.0"), header_for(spec)
    assert sdxl["ss_base_model_version"] == "sdxl_base_v1-0"
    assert sdxl["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert not mini["ss_base_model_version"].startswith("sdxl")
    assert {k: sdxl[k] for k in ("ss_network_dim", "ss_network_alpha", "ss_num_train_images")} == {
        "ss_network_dim": "4",
        "ss_network_alpha": "10.0",
        "ss_num_train_images": "12",
    }
    content = kohya_file(tensors, spec, sdxl, SDXL)
    file = tmp_path / "k.safetensors"
    file.write_bytes(content)
    size = int.from_bytes(content[:8], "little")
    with safe_open(file, framework="pt") as reader:
        written = reader.metadata()
    assert written["sshs_model_hash"] == hashlib.sha256(content[8 + size :]).hexdigest()
    assert written["modelspec.hash_sha256"] == "0x" + written["sshs_model_hash"]
    assert json.loads(written["styletune.adapter"])["step"] == 7
    assert not {"ss_dataset_dirs", "ss_tag_frequency", "lora_adapter_metadata"} & set(written)
    assert size < 1 << 20


def test_rslora_header_states_the_alpha_that_tools_need() -> None:
    """WebUIs divide alpha by rank, so the header's alpha holds rsLoRA's root."""
    spec = AdapterSpec(16, 8.0, rslora=True)
    header = header_for(spec)
    assert float(header["ss_network_alpha"]) / float(header["ss_network_dim"]) == 8.0 / 4.0
    loha = header_for(AdapterSpec(16, 8.0, kind="loha"))
    assert loha["ss_network_module"] == "lycoris.kohya"
    assert json.loads(loha["ss_network_args"]) == {"algo": "loha"}


def test_a_header_too_long_for_comfyui_is_refused(big_unet: UNet2DConditionModel) -> None:
    """All of SDXL's names fit in 1 MiB; a picture of a megabyte beside them does not."""
    tensors = {}
    for module in target_modules(big_unet, "all", SDXL, conv=True):
        tensors[f"unet.{module}.lora_A.weight"] = torch.zeros(1, 2)
        tensors[f"unet.{module}.lora_B.weight"] = torch.zeros(2, 1)
    header = header_for(AdapterSpec(1, 1.0))
    content = kohya_file(tensors, AdapterSpec(1, 1.0), header, SDXL)
    assert int.from_bytes(content[:8], "little") < 400_000
    with pytest.raises(BadInput, match="header has"):
        kohya_file(
            tensors, AdapterSpec(1, 1.0), {**header, "modelspec.thumbnail": "x" * 2**20}, SDXL
        )

"""The adapter in the models: what is adapted, how it starts, how it is kept and merged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from adapter_parts import (
    LORA,
    adapter_tensors,
    draw,
    inject,
    mini_pipe,
    models_of,
    random_adapter,
    sdxl_unet,
    section,
    spec_of,
)
from styletune.adapters.file import AdapterSpec, load_adapter, pack_tensors, save_adapter
from styletune.adapters.inject import (
    adapter_off,
    adapter_parameters,
    inject_adapter,
    load_into,
    target_modules,
    text_encoder_modules,
)
from styletune.adapters.updates import merged, weight_updates
from styletune.errors import IntegrityError, RecipeError
from styletune.models.sdxl import SDXL


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return mini_pipe()


@pytest.fixture(scope="module")
def big_unet() -> UNet2DConditionModel:
    return sdxl_unet()


def test_sdxl_has_the_known_modules(big_unet: UNet2DConditionModel) -> None:
    """SDXL's UNet: 2,567,463,684 parameters; 560, 700, 722 and twice 80 adaptable modules."""
    assert sum(p.numel() for p in big_unet.parameters()) == 2_567_463_684
    targets = ("attention", "attention-ff", "all", "style-block", "content-block")
    assert [len(target_modules(big_unet, t, SDXL)) for t in targets] == [560, 700, 722, 80, 80]
    style = target_modules(big_unet, "style-block", SDXL)
    assert all(n.startswith("up_blocks.0.attentions.1.") for n in style)
    # Rank 16 on the style block has 220,160 parameters a rank.
    shapes = [big_unet.get_submodule(n).weight.shape for n in style]
    assert sum(a + b for a, b in shapes) == 220_160


def test_convolutions_come_on_request(
    big_unet: UNet2DConditionModel, pipe: StableDiffusionXLPipeline
) -> None:
    """With conv also SDXL's 49 convolutions of resnets and samplers; never conv_in or conv_out."""
    with_conv = set(target_modules(big_unet, "attention", SDXL, conv=True))
    added = with_conv - set(target_modules(big_unet, "attention", SDXL))
    wanted = {
        n
        for n, m in big_unet.named_modules()
        if isinstance(m, torch.nn.Conv2d) and n not in ("conv_in", "conv_out")
    }
    assert added == wanted
    assert len(added) == 49
    assert {n.rpartition(".")[2] for n in added} == {"conv1", "conv2", "conv_shortcut", "conv"}
    with pytest.raises(RecipeError, match="no convolutions"):
        target_modules(pipe.unet, "style-block", SDXL, conv=True)


def test_patterns_choose_modules(big_unet: UNet2DConditionModel) -> None:
    """A pattern picks by full name; each one that matches nothing is refused by name."""
    style = target_modules(big_unet, ("up_blocks.0.attentions.1.*.to_[qkv]",), SDXL)
    assert len(style) == 60
    assert all(n.startswith("up_blocks.0.attentions.1.") for n in style)
    with pytest.raises(RecipeError, match=r'"up_blocks.9.\*" matches no'):
        target_modules(big_unet, ("up_blocks.0.*", "up_blocks.9.*"), SDXL)
    assert target_modules(big_unet, ("mid_block.resnets.*.conv1",), SDXL, conv=True) == [
        "mid_block.resnets.0.conv1",
        "mid_block.resnets.1.conv1",
    ]


def test_mini_names_are_a_subset_of_sdxl(
    pipe: StableDiffusionXLPipeline, big_unet: UNet2DConditionModel
) -> None:
    """Whatever works on the mini base by name works on SDXL."""
    for target in ("attention", "all"):
        mini = set(target_modules(pipe.unet, target, SDXL, conv=True))
        assert mini <= set(target_modules(big_unet, target, SDXL, conv=True))
    assert len(target_modules(pipe.unet, "style-block", SDXL)) == 8


def test_injected_adapter_starts_as_nothing() -> None:
    """B is zero, so an untrained adapter changes no weight; A depends on the seed alone."""
    pipes = [mini_pipe() for _ in range(2)]
    for one, draws in zip(pipes, (0, 9), strict=True):
        torch.rand(draws)
        before = torch.random.get_rng_state()
        inject(one, LORA.model_copy(update={"alpha": 4.0}))
        assert torch.equal(torch.random.get_rng_state(), before)
    one, two = (adapter_tensors({"unet": p.unet}) for p in pipes)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert all(not v.any() for k, v in one.items() if "lora_B" in k)
    assert all(v.any() for k, v in one.items() if "lora_A" in k)
    trainable = sum(p.numel() for p in pipes[0].unet.parameters() if p.requires_grad)
    assert trainable == sum(v.numel() for v in one.values())
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    # As PyTorch starts a linear layer: uniform within 1 / sqrt(inputs).
    bound = one[key].shape[1] ** -0.5
    assert one[key].abs().max() <= bound
    assert one[key].std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_start_depends_on_name_and_seed_only() -> None:
    """Text encoders, other targets and the base's dtype leave a module's start as it was."""
    plain, wide = mini_pipe(), mini_pipe(torch.bfloat16)
    alone = adapter_tensors(inject(plain, LORA))
    together = adapter_tensors(inject(wide, LORA, "all", text=True))
    assert alone.keys() < together.keys()
    assert all(torch.equal(v, together[k]) for k, v in alone.items())
    parameters = adapter_parameters(models_of(wide))
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert sum(k.startswith("text_encoder.text_model.encoder.") for k in together) == 2 * len(
        text_encoder_modules(mini_pipe().text_encoder)
    )
    other = mini_pipe()
    inject_adapter({"unet": other.unet}, LORA, {"unet": target_modules(other.unet, "all", SDXL)}, 4)
    key = next(k for k in alone if "lora_A" in k)
    assert not torch.equal(adapter_tensors({"unet": other.unet})[key], alone[key])


def test_other_parameters_keep_their_gradients(pipe: StableDiffusionXLPipeline) -> None:
    """Injecting freezes nothing that was trained and trains nothing that was frozen."""
    fresh = mini_pipe()
    table = fresh.text_encoder.get_input_embeddings().weight
    table.requires_grad_(True)
    models = inject(fresh, LORA, text=True)
    adapter = {id(p) for p in adapter_parameters(models).values()}
    others = [p for m in models.values() for p in m.parameters() if id(p) not in adapter]
    assert [p is table for p in others if p.requires_grad] == [True]


def test_ranks_by_block_keep_the_scale() -> None:
    """The first pattern that matches gives the rank; alpha / rank stays the same everywhere."""
    ranks = {"mid_block.*": 2, "*.attn1.*": 8, "*": 3}
    shape = section("lora", 4, 10.0, block_ranks=ranks, text_encoder_rank=5)
    tensors, _, pipe = random_adapter(shape, text=True)
    found = {k: v.shape[0] for k, v in tensors.items() if k.endswith("lora_A.weight")}
    for key, rank in found.items():
        if key.startswith("text_encoder"):
            assert rank == 5
        elif "mid_block" in key:
            assert rank == 2
        else:
            assert rank == (8 if ".attn1." in key else 3)
    assert set(found.values()) == {2, 3, 5, 8}
    from peft.tuners.lora import LoraLayer

    scales = {
        m.scaling["styletune"]
        for model in models_of(pipe).values()
        for m in model.modules()
        if isinstance(m, LoraLayer)
    }
    assert scales == {2.5}
    with pytest.raises(RecipeError, match=r'"down_blocks.7.\*" matches no'):
        inject(mini_pipe(), section("lora", 4, 4.0, block_ranks={"down_blocks.7.*": 2}))


def test_file_round_trip_is_exact(tmp_path: Path) -> None:
    """Save and load give the same tensors and facts; saving twice gives the same bytes."""
    tensors, plain, _ = random_adapter()
    alphas = (("unet.mid_block.attentions.0.proj_in", 3.0),)
    spec = dataclasses.replace(plain, rslora=True, alphas=alphas, tokens=("<acme>",))
    for name in ("a", "b"):
        save_adapter(tmp_path / name, tensors, spec)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back, read = load_adapter(tmp_path / "a")
    assert read == spec
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-50])
    with pytest.raises(IntegrityError):
        load_adapter(tmp_path / "a")


def test_older_files_still_load(tmp_path: Path) -> None:
    """A header of only rank, alpha and origin means a plain LoRA."""
    tensors, _, _ = random_adapter()
    facts = {"rank": 4, "alpha": 10.0, "base_hash": "b", "recipe_hash": "r", "step": 7}
    header = {"format": "pt", "styletune.adapter": json.dumps(facts)}
    (tmp_path / "old").write_bytes(pack_tensors(tensors, header))
    assert load_adapter(tmp_path / "old")[1] == AdapterSpec(4, 10.0, "b", "r", 7)


def test_update_is_alpha_over_rank_times_b_a(pipe: StableDiffusionXLPipeline) -> None:
    """ΔW computed in numpy from the definition is what is merged, and unmerging is exact."""
    tensors, spec, _ = random_adapter()
    name = target_modules(pipe.unet, "attention", SDXL)[3]
    before = pipe.unet.get_submodule(name).weight.detach().clone()
    a = tensors[f"unet.{name}.lora_A.weight"].numpy().astype(np.float64)
    b = tensors[f"unet.{name}.lora_B.weight"].numpy().astype(np.float64)
    wanted = before.numpy() + 0.5 * (10.0 / 4) * (b @ a)
    with merged({"unet": pipe.unet}, tensors, spec, 0.5):
        inside = pipe.unet.get_submodule(name).weight.detach().numpy()
        assert np.allclose(inside, wanted, atol=1e-5)
    assert torch.equal(pipe.unet.get_submodule(name).weight, before)


def test_merging_names_what_is_missing(pipe: StableDiffusionXLPipeline) -> None:
    """An adapter of a text encoder is not silently left out when only the UNet is given."""
    tensors, spec, _ = random_adapter(text=True)
    with (
        pytest.raises(IntegrityError, match="changes text_encoder, which is missing here"),
        merged({"unet": pipe.unet}, tensors, spec, 1.0),
    ):
        pass
    with pytest.raises(IntegrityError, match="not a part of an adapter"):
        dict(weight_updates({"unet.x.lora_C.weight": torch.zeros(1)}, spec))


def test_other_shapes_are_not_loaded() -> None:
    """Values of another rank or of other modules are refused, by name, before any is copied."""
    tensors, _, pipe = random_adapter()
    narrow, _, _ = random_adapter(section("lora", 1, 1.0))
    before = adapter_tensors({"unet": pipe.unet})
    with pytest.raises(IntegrityError, match=r"has shape \(1, "):
        load_into({"unet": pipe.unet}, narrow)
    with pytest.raises(IntegrityError, match=r"modules differ, first: unet\.down_blocks"):
        load_into({"unet": pipe.unet}, dict(list(tensors.items())[2:]))
    after = adapter_tensors({"unet": pipe.unet})
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_adapter_off_is_the_base_bit_for_bit(pipe: StableDiffusionXLPipeline) -> None:
    """Switched off, the models answer as without adapter; then it is back, as trainable."""
    tensors, _, adapted = random_adapter(text=True)
    models = models_of(adapted)
    frozen = adapter_parameters(models)[
        "unet." + target_modules(pipe.unet, "attention", SDXL)[0] + ".lora_A.weight"
    ]
    frozen.requires_grad_(False)
    base, with_adapter = draw(pipe), draw(adapted)
    with adapter_off(models):
        assert np.array_equal(draw(adapted), base)
    assert np.array_equal(draw(adapted), with_adapter)
    assert np.abs(with_adapter - base).max() > 0.05
    parameters = adapter_parameters(models)
    assert [p is frozen for p in parameters.values() if not p.requires_grad] == [True]
    assert all(torch.equal(p, tensors[k]) for k, p in parameters.items())


def test_spec_of_shape_is_what_is_saved() -> None:
    """The scale of a spec is alpha over rank, with rsLoRA alpha over its root."""
    assert spec_of(LORA).scale == 2.5
    assert AdapterSpec(4, 10.0, rslora=True).scale == 5.0

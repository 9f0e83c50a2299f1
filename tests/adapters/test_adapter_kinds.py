"""Every kind of adapter: starts as nothing, merges to what it does injected, in any base."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError
from torch import Tensor, nn

from adapter_parts import (
    LORA,
    adapter_tensors,
    draw,
    inject,
    mini_pipe,
    models_of,
    random_adapter,
    section,
    shake,
    spec_of,
)
from styletune.adapters.inject import (
    adapter_parameters,
    inject_adapter,
    load_into,
    target_modules,
)
from styletune.adapters.updates import cayley, merged, weight_updates
from styletune.errors import BaseModelError, RecipeError
from styletune.models.quantize import quantize_unet
from styletune.models.sdxl import SDXL
from styletune.recipe.training_sections import AdapterSection, Quantization

SHAPES = {
    "lora": LORA,
    "rslora": section("lora", 4, 3.0, rslora=True, block_ranks={"mid_block.*": 9}),
    "locon": section("lora", 4, 6.0, conv_rank=2),
    "dora": section("dora", 4, 6.0, conv_rank=2),
    "loha": section("loha", 3, 4.5, conv_rank=2),
    "lokr": section("lokr", 2, 3.0, conv_rank=1),
    "oft": section("oft", 8, 8.0),
}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return mini_pipe()


@pytest.fixture(scope="module")
def base(pipe: StableDiffusionXLPipeline) -> np.ndarray:
    return draw(pipe)


@pytest.mark.parametrize("name", SHAPES)
def test_merged_is_what_was_injected(
    name: str, pipe: StableDiffusionXLPipeline, base: np.ndarray
) -> None:
    """The images agree, they are far from the base's, and afterwards the base is bit for bit."""
    tensors, spec, adapted = random_adapter(SHAPES[name], text=True)
    models = models_of(pipe)
    before = {f"{c}.{k}": v.clone() for c, m in models.items() for k, v in m.state_dict().items()}
    trained = draw(adapted)
    with merged(models, tensors, spec, 1.0):
        by_merge = draw(pipe)
    assert np.abs(trained - base).max() > 0.05
    assert np.abs(by_merge - trained).max() < 2e-3
    after = {f"{c}.{k}": v for c, m in models.items() for k, v in m.state_dict().items()}
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize("name", SHAPES)
def test_untrained_adapter_changes_nothing(name: str, base: np.ndarray) -> None:
    """Injected without training, every kind draws the base's image, and all of it is fp32."""
    fresh = mini_pipe()
    models = inject(fresh, SHAPES[name], text=True)
    assert np.abs(draw(fresh) - base).max() < 1e-4
    parameters = adapter_parameters(models)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert all(p.requires_grad for p in parameters.values())


@pytest.mark.parametrize("name", SHAPES)
def test_all_parameters_learn_on_a_bf16_base(name: str) -> None:
    """On a bf16 base with values in it every tensor of the adapter gets a finite gradient."""
    fresh = mini_pipe(torch.bfloat16)
    models = inject(fresh, SHAPES[name])
    load_into(models, shake(adapter_tensors(models)))
    config = fresh.unet.config
    out = fresh.unet(
        torch.randn(1, 4, 8, 8).bfloat16(),
        torch.tensor([500]),
        encoder_hidden_states=torch.randn(1, 77, config.cross_attention_dim).bfloat16(),
        added_cond_kwargs={
            "text_embeds": torch.randn(1, 96).bfloat16(),
            "time_ids": torch.ones(1, 6).bfloat16(),
        },
    ).sample
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    for key, parameter in adapter_parameters(models).items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_lora_keeps_no_float32_copies_of_its_inputs(quantization: Quantization) -> None:
    """On a bf16 base q, k and v share the input that is kept, and gradients stay close to fp32's.

    The same adapter left to peft, which computes it in float32, is the measure of both.
    """
    found: dict[bool, tuple[dict[str, Tensor], int]] = {}
    for ours in (True, False):
        unet = mini_pipe(torch.bfloat16).unet
        quantize_unet(unet, quantization, "cpu")
        models: dict[str, nn.Module] = {"unet": unet}
        inject_adapter(models, LORA, {"unet": target_modules(unet, "attention", SDXL)}, seed=3)
        load_into(models, shake(adapter_tensors(models)))
        if not ours:
            for module in unet.modules():
                if isinstance(module, LoraLayer):
                    module.cast_input_dtype_enabled = True
        frozen = {p.untyped_storage().data_ptr() for p in unet.parameters()}
        kept: dict[int, int] = {}

        def pack(value: Tensor, kept: dict[int, int] = kept, frozen: set[int] = frozen) -> Tensor:
            storage = value.untyped_storage()
            if value.dtype == torch.float32 and storage.data_ptr() not in frozen:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        generator = torch.Generator().manual_seed(8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            out = unet(
                torch.randn(2, 4, 16, 16, generator=generator).bfloat16(),
                torch.tensor([500, 20]),
                encoder_hidden_states=torch.randn(2, 77, 160, generator=generator).bfloat16(),
                added_cond_kwargs={
                    "text_embeds": torch.ones(2, 96).bfloat16(),
                    "time_ids": torch.ones(2, 6).bfloat16(),
                },
            ).sample
        out.float().square().mean().backward()
        parameters = adapter_parameters(models)
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        assert gradients.keys() == parameters.keys()
        found[ours] = gradients, sum(kept.values())
    (mine, small), (pefts, large) = found[True], found[False]
    assert {g.dtype for g in mine.values()} == {torch.float32}
    assert small < 0.2 * large
    ours_flat, pefts_flat = (torch.cat([g[n].flatten() for n in mine]) for g in (mine, pefts))
    assert torch.cosine_similarity(ours_flat, pefts_flat, dim=0) > 0.995


@pytest.mark.parametrize("name", ["locon", "dora", "oft"])
def test_strength_goes_along_the_straight_line(name: str, pipe: StableDiffusionXLPipeline) -> None:
    """At strength s a weight is W + s (W' - W), for kinds whose W' is no sum as well."""
    tensors, spec, _ = random_adapter(SHAPES[name])
    models = {"unet": pipe.unet}
    found = {}
    for strength in (0.0, 0.4, 1.0):
        with merged(models, tensors, spec, strength):
            found[strength] = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    changed = 0
    for key, base in found[0.0].items():
        wanted = base + 0.4 * (found[1.0][key] - base)
        assert torch.allclose(found[0.4][key], wanted, atol=1e-6)
        changed += not torch.equal(base, found[1.0][key])
    assert changed == sum(1 for _ in weight_updates(tensors, spec, _weight_of(pipe)))


def _weight_of(pipe: StableDiffusionXLPipeline) -> Callable[[str], Tensor]:
    return lambda name: pipe.unet.get_submodule(name.removeprefix("unet.")).weight


def test_oft_only_turns(pipe: StableDiffusionXLPipeline) -> None:
    """R is orthogonal with determinant 1, far from zero too, so lengths of rows stay."""
    rotation = cayley(torch.randn(5, 28, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(rotation @ rotation.mT, torch.eye(8).expand(5, 8, 8), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(5), atol=1e-5)
    tensors, spec, _ = random_adapter(SHAPES["oft"])
    weight_of = _weight_of(pipe)
    for name, update in weight_updates(tensors, spec, weight_of):
        before = weight_of(name)
        assert torch.allclose((before + update).norm(dim=1), before.norm(dim=1), rtol=1e-4)
        assert not torch.allclose(before + update, before, atol=1e-2)


def test_dora_gives_rows_the_trained_length(pipe: StableDiffusionXLPipeline) -> None:
    """Each row of a DoRA weight is as long as its magnitude says (arXiv 2402.09353, eq. 5)."""
    tensors, spec, _ = random_adapter(SHAPES["dora"])
    weight_of = _weight_of(pipe)
    for name, update in weight_updates(tensors, spec, weight_of):
        rows = (weight_of(name) + update).flatten(1).norm(dim=1)
        assert torch.allclose(rows, tensors[f"{name}.lora_magnitude_vector"].flatten(), rtol=1e-4)
    with pytest.raises(ValueError, match="depends on the base weight"):
        next(weight_updates(tensors, spec))


def test_kinds_refuse_what_they_do_not_have() -> None:
    """OFT has no alpha, no convolutions and whole blocks only; rsLoRA belongs to LoRA."""
    for keys, words in (
        ({"kind": "loha", "rslora": True}, "lora and dora; loha has none"),
        ({"kind": "oft", "rank": 8, "alpha": 4.0}, "no alpha"),
        ({"kind": "oft", "rank": 8, "conv_rank": 4}, "no convolutions"),
    ):
        with pytest.raises(ValidationError, match=words):
            AdapterSection.model_validate(keys)
    fresh = mini_pipe()
    with pytest.raises(RecipeError, match="does not divide the 96 inputs"):
        inject(fresh, section("oft", 7, 7.0))
    assert not adapter_parameters(models_of(fresh))


def _quantize(unet: nn.Module, bits: int) -> None:
    """Put bitsandbytes' linears in the place of the attention's."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for name, module in list(unet.named_modules()):
        if not isinstance(module, nn.Linear) or ".attn" not in name:
            continue
        size = (module.in_features, module.out_features)
        bias = module.bias is not None
        state = module.state_dict()
        if bits == 8:
            small: nn.Linear = Linear8bitLt(*size, bias=bias, has_fp16_weights=False)
        else:
            small = Linear4bit(*size, bias=bias, quant_type="nf4")
        small.load_state_dict(state)
        parent, _, leaf = name.rpartition(".")
        setattr(unet.get_submodule(parent), leaf, small.to("cpu"))


@pytest.mark.parametrize("bits", [8, 4])
def test_lora_trains_on_a_quantized_base(bits: int) -> None:
    """On int8 and nf4 linears a LoRA adds s·B·A, learns, and refuses to be merged."""
    pytest.importorskip("bitsandbytes")
    fresh = mini_pipe()
    _quantize(fresh.unet, bits)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    x = torch.randn(2, 5, fresh.unet.get_submodule(name).in_features)
    with torch.no_grad():
        base = fresh.unet.get_submodule(name)(x)
    models = inject(fresh, LORA)
    tensors = shake(adapter_tensors(models))
    load_into(models, tensors)
    out = fresh.unet.get_submodule(name)(x)
    a, b = (tensors[f"unet.{name}.lora_{p}.weight"] for p in "AB")
    assert torch.allclose(out - base, 2.5 * x @ a.T @ b.T, atol=1e-4)
    out.square().mean().backward()
    grads = [p.grad for k, p in adapter_parameters(models).items() if name in k]
    assert len(grads) == 2
    assert all(g is not None and g.any() for g in grads)
    plain = mini_pipe()
    _quantize(plain.unet, bits)
    with (
        pytest.raises(BaseModelError, match="quantized"),
        merged({"unet": plain.unet}, tensors, spec_of(LORA), 1.0),
    ):
        pass

"""8- and 4-bit weights: what is quantized, how far it is off, and that an adapter can learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from styletune.errors import BadInput, BaseModelError
from styletune.mini import BASE_DIR
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from styletune.models.quantize import (
    check_quantized,
    count_quantized,
    eligible_linears,
    quantize_unet,
)
from styletune.models.sdxl import SDXL
from styletune.recipe.training_sections import Quantization

KINDS: tuple[Quantization, ...] = ("int8", "nf4")
# fmt: off
# Levels of 4-bit NormalFloat (arXiv 2305.14314, appendix E).
NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
# fmt: on


def plain_weight(module: nn.Linear) -> Tensor:
    """The weight that a quantized layer computes with, (out, in) float32."""
    weight: Any = module.weight
    if getattr(weight, "SCB", None) is not None:
        from styletune.models.int8_linear import int8_values

        return int8_values(weight.data, weight.SCB, torch.float32)
    import bitsandbytes

    values: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return values.float()


def load_unet(
    quantization: Quantization = "none", dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(BASE_DIR / "unet", dtype=dtype)
    quantize_unet(unet.requires_grad_(False).eval(), quantization, "cpu")
    return unet


@pytest.fixture(scope="module")
def plain() -> UNet2DConditionModel:
    return load_unet()


def forward(unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    sample: Tensor = unet(
        draw(2, 4, 16, 16),
        torch.tensor([100, 700]),
        encoder_hidden_states=draw(2, 77, 160),
        added_cond_kwargs={
            "text_embeds": draw(2, 96),
            "time_ids": torch.full((2, 6), 128.0).to(dtype),
        },
    ).sample
    return sample


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def test_sdxl_has_722_eligible_layers_with_86_percent_of_its_weights() -> None:
    """Attention, feed-forward and projections are quantized: what an adapter can target."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(SDXL.unet))
    found = eligible_linears(unet)
    share = sum(m.weight.numel() for m in found.values()) / sum(
        p.numel() for p in unet.parameters()
    )
    assert len(found) == 722
    assert round(share, 2) == 0.86


@pytest.mark.parametrize(("kind", "bytes_a_weight"), [("int8", 1.0), ("nf4", 0.5)])
def test_every_eligible_layer_is_quantized_and_nothing_else(
    plain: UNet2DConditionModel, kind: Quantization, bytes_a_weight: float
) -> None:
    """Weights of the attention blocks shrink to 8 or 4 bits, the rest keeps its dtype."""
    unet = load_pipeline(find_base("mini", None, Path()), torch.bfloat16, "cpu", kind).unet
    names = eligible_linears(plain)
    assert count_quantized(unet, kind) == len(names) == len(eligible_linears(unet))
    for name, parameter in unet.named_parameters():
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in names:
            size = parameter.numel() * parameter.element_size()
            assert size == names[layer].weight.numel() * bytes_a_weight, name
        else:
            assert parameter.dtype == torch.bfloat16, name
        assert not parameter.requires_grad


def test_int8_rounds_to_the_nearest_of_255_levels_of_each_row(plain: UNet2DConditionModel) -> None:
    """An 8-bit weight is off by at most half a step, the row's maximum over 127."""
    unet = load_unet("int8")
    for name, layer in eligible_linears(unet).items():
        before = plain.get_submodule(name).weight
        step = before.abs().amax(1, keepdim=True) / 127
        # Scales are found in half precision, hence a little more than half a step.
        assert bool(((plain_weight(layer) - before).abs() <= 0.57 * step + 1e-7).all()), name


def test_nf4_rounds_to_the_nearest_normal_float(plain: UNet2DConditionModel) -> None:
    """Each block of a row is its maximum times the nearest of the paper's 16 levels.

    Rows of 96 and 160 weights have blocks of 32, the others of 64.
    """
    unet = load_unet("nf4")
    for name, layer in list(eligible_linears(unet).items())[::10]:
        size = 64 if layer.in_features % 64 == 0 else 32
        blocks = plain.get_submodule(name).weight.reshape(-1, size)
        top = blocks.abs().amax(1, keepdim=True)
        nearest = (blocks / top)[..., None].sub(torch.tensor(NF4)).abs().amin(-1) * top
        error = (plain_weight(layer).reshape(-1, size) - blocks).abs()
        assert torch.allclose(error, nearest, atol=1e-5), name


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.005), ("nf4", 0.04)])
def test_output_stays_close_to_full_precision(
    plain: UNet2DConditionModel, kind: Quantization, bound: float
) -> None:
    """int8 changes the prediction by under 0.5 %, nf4 by under 4 %, and both change it."""
    with torch.no_grad():
        error = relative_error(forward(load_unet(kind)), forward(plain))
    assert 1e-5 < error < bound


def add_adapter(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=list(eligible_linears(unet)), init_lora_weights=False)
    inject_adapter_in_model(config, unet, adapter_name="x")
    return {n: p for n, p in unet.named_parameters() if "lora_" in n}


@pytest.fixture(scope="module")
def exact() -> dict[str, Tensor]:
    return adapter_gradients(load_unet())


def adapter_gradients(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    parameters = add_adapter(unet)
    forward(unet).square().mean().backward()
    return {n: p.grad for n, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize(("kind", "cosine"), [("int8", 0.999), ("nf4", 0.9)])
def test_adapter_gradients_flow_and_are_close(
    exact: dict[str, Tensor], kind: Quantization, cosine: float
) -> None:
    """Every adapter tensor learns through quantized layers, in nearly the exact direction."""
    found = adapter_gradients(load_unet(kind))
    assert found.keys() == exact.keys()
    assert len(found) == 2 * 132
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in found.values())
    a, b = (torch.cat([side[n].flatten() for n in exact]) for side in (found, exact))
    assert float(torch.cosine_similarity(a, b, dim=0)) > cosine


@pytest.mark.parametrize("kind", KINDS)
def test_backward_works_after_sampling(kind: Quantization) -> None:
    """Drawing a preview in bfloat16 does not spoil the gradients that follow."""
    fresh, used = load_unet(kind, torch.bfloat16), load_unet(kind, torch.bfloat16)
    with torch.no_grad():
        forward(used, torch.bfloat16)
    for unet in (fresh, used):
        add_adapter(unet)
        forward(unet, torch.bfloat16).float().square().mean().backward()
    pairs = zip(fresh.named_parameters(), used.named_parameters(), strict=True)
    compared = [torch.equal(a.grad, b.grad) for (n, a), (_, b) in pairs if a.grad is not None]
    assert len(compared) == 2 * 132
    assert all(compared)


def test_few_steps_through_int8_lower_a_loss() -> None:
    """An adapter trained through 8-bit layers learns what it is asked for."""
    unet = load_unet("int8")
    parameters = add_adapter(unet)
    with torch.no_grad():
        target = forward(unet) * 0.5
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (forward(unet) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_check_notices_a_layer_that_was_left_out() -> None:
    """One layer in full precision is enough to stop."""
    unet = load_unet("int8")
    name, layer = next(iter(eligible_linears(unet).items()))
    parent, _, child = name.rpartition(".")
    setattr(unet.get_submodule(parent), child, nn.Linear(layer.in_features, layer.out_features))
    with pytest.raises(BaseModelError, match="131 of the UNet's 132"):
        check_quantized(unet, "int8")
    with pytest.raises(BaseModelError, match="0 of the UNet's 132"):
        check_quantized(load_unet(), "nf4")


def test_missing_bitsandbytes_is_bad_input(
    plain: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library the message says what to install, and no layer is changed."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadInput) as caught:
        quantize_unet(plain, "int8", "cpu")
    assert "pip install" in caught.value.fix
    assert caught.value.where == "[base] quantization"
    assert all(type(m) is nn.Linear for m in eligible_linears(plain).values())


def test_widths_that_blocks_do_not_divide_are_refused() -> None:
    """A block that spans two rows would be read with the wrong scale, so nf4 says no."""
    unet = UNet2DConditionModel.from_config(
        {**load_unet().config, "cross_attention_dim": 40}  # of to_k and to_v in attn2
    )
    with pytest.raises(BadInput, match="multiples of 32; one of the UNet's is 40"):
        quantize_unet(unet, "nf4", "cpu")

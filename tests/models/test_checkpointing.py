"""Recomputing in the backward pass: the same gradients from fewer kept bytes."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from styletune.mini import BASE_DIR
from styletune.models.checkpointing import set_checkpointing
from styletune.models.quantize import quantize_unet
from styletune.recipe.training_sections import Checkpointing, Quantization

POLICIES: tuple[Checkpointing, ...] = ("none", "ff", "full")


def fresh_unet(quantization: Quantization = "none") -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(BASE_DIR / "unet", dtype=torch.float32)
    quantize_unet(unet.requires_grad_(False).eval(), quantization, "cpu")
    return unet


def add_adapter(unet: UNet2DConditionModel, dropout: float = 0.0) -> None:
    torch.manual_seed(1)
    config = LoraConfig(
        r=4,
        lora_dropout=dropout,
        init_lora_weights=False,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
    )
    inject_adapter_in_model(config, unet, adapter_name="x")


def step(unet: UNet2DConditionModel) -> tuple[dict[str, Tensor], int]:
    """One forward and backward: (adapter gradients, bytes kept between them)."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        torch.manual_seed(3)
        sample = unet(
            draw(1, 4, 16, 16),
            torch.tensor([100]),
            encoder_hidden_states=draw(1, 77, 160),
            added_cond_kwargs={"text_embeds": draw(1, 96), "time_ids": torch.full((1, 6), 128.0)},
        ).sample
    torch.manual_seed(4)
    sample.square().mean().backward()
    gradients = {n: cast(Tensor, p.grad) for n, p in unet.named_parameters() if "lora_" in n}
    return gradients, sum(kept.values())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("first", ["adapter", "policy"])
def test_gradients_are_the_same_bit_for_bit(first: str) -> None:
    """Each policy gives diffusers' own gradients, set before or after the adapter comes in."""
    untouched = fresh_unet()
    add_adapter(untouched)
    wanted, found = step(untouched)[0], {}
    for policy in POLICIES:
        unet = fresh_unet()
        if first == "policy":
            set_checkpointing(unet, policy)
        add_adapter(unet)
        if first == "adapter":
            set_checkpointing(unet, policy)
        found[policy] = step(unet)[0]
    assert all(float(g.abs().max()) > 0 for g in wanted.values())
    assert all(same(wanted, gradients) for gradients in found.values())


def test_fewer_bytes_are_kept() -> None:
    """Of what diffusers keeps none saves a little, ff a quarter, full three quarters."""
    sizes = {}
    for policy in (None, *POLICIES):
        unet = fresh_unet()
        add_adapter(unet)
        if policy is not None:
            set_checkpointing(unet, policy)
        sizes[policy] = step(unet)[1]
    assert sizes["none"] < 0.94 * sizes[None]
    assert sizes["ff"] < 0.75 * sizes[None]
    assert sizes["full"] < 0.25 * sizes[None]


def test_only_the_feed_forward_layers_are_recomputed() -> None:
    """Under ff, feed-forward layers run twice a step, attention and convolutions once."""
    unet = fresh_unet()
    add_adapter(unet)
    set_checkpointing(unet, "ff")
    calls = {"ff.net.2": 0, "attn1.to_q": 0, "conv_in": 0, "ff.net.0": 0}
    block = "mid_block.attentions.0.transformer_blocks.0"
    for name in calls:
        path = name if name == "conv_in" else f"{block}.{name}"

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        unet.get_submodule(path).register_forward_pre_hook(count)
    step(unet)
    assert calls == {"ff.net.2": 2, "attn1.to_q": 1, "conv_in": 1, "ff.net.0": 2}


@pytest.mark.parametrize("policy", ["ff", "full"])
def test_dropout_is_drawn_once(policy: Checkpointing) -> None:
    """The recomputation repeats the forward pass's dropout."""
    found = []
    for choice in ("none", policy):
        unet = fresh_unet()
        add_adapter(unet, dropout=0.5)
        unet.train()
        set_checkpointing(unet, choice)
        found.append(step(unet)[0])
    assert same(*found)


def test_policy_can_be_changed_and_undone() -> None:
    """The last choice counts; afterwards nothing of the earlier ones is left."""
    unet = fresh_unet()
    set_checkpointing(unet, "none")
    forwards = [n for n, m in unet.named_modules() if "forward" in vars(m)]
    assert all(n.endswith("ff.net.0") for n in forwards)
    add_adapter(unet)
    plain, all_bytes = step(unet)
    plain = {k: g.clone() for k, g in plain.items()}
    names = list(unet.state_dict())
    for policy in ("ff", "ff", "full", "ff", "none"):
        set_checkpointing(unet, policy)
    unet.zero_grad()
    after, bytes_after = step(unet)
    assert same(plain, after)
    assert bytes_after == all_bytes
    assert list(unet.state_dict()) == names
    assert [n for n, m in unet.named_modules() if "forward" in vars(m)] == forwards


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_checkpointing_works_on_a_quantized_base(quantization: Quantization) -> None:
    """Gradients through 8- and 4-bit layers are the same with and without."""
    found = {}
    for policy in POLICIES:
        unet = fresh_unet(quantization)
        add_adapter(unet)
        set_checkpointing(unet, policy)
        found[policy] = step(unet)[0]
    assert same(found["none"], found["ff"])
    assert same(found["none"], found["full"])


def test_sampling_without_gradients_is_untouched() -> None:
    """Under no_grad every policy gives the same output."""
    outputs = []
    for policy in POLICIES:
        unet = fresh_unet()
        set_checkpointing(unet, policy)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(5)
            outputs.append(
                unet(
                    torch.randn(1, 4, 16, 16, generator=generator),
                    10,
                    encoder_hidden_states=torch.randn(1, 77, 160, generator=generator),
                    added_cond_kwargs={
                        "text_embeds": torch.zeros(1, 96),
                        "time_ids": torch.zeros(1, 6),
                    },
                ).sample
            )
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])

"""The frozen UNet's linear weights in 8 or 4 bits.

bitsandbytes does the arithmetic; diffusers' own quantizer is not used because it refuses to
work without a GPU. Only weights are quantized: activations and gradients keep the base's dtype.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from styletune.errors import BadInput, BaseModelError
from styletune.recipe.training_sections import Quantization

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

NF4_BLOCKS = (64, 32)


def eligible_linears(unet: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that are quantized: all inside the attention blocks (722 in SDXL).

    They hold 86 % of SDXL's weights. Time and size embeddings, which are small and matter to
    every pixel, stay as they are; so do convolutions and norms.
    """
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in name
    }


def quantize_unet(unet: UNet2DConditionModel, quantization: Quantization, device: str) -> int:
    """Replace the eligible linear layers, one by one, by quantized ones on ``device``.

    ``int8``: one scale per output row, absolute maximum (arXiv 2208.07339, section 2.1, for
    weights alone). ``nf4``: 4-bit NormalFloat in blocks of 64 with float32 scales, of 32 where
    64 does not divide a row (arXiv 2305.14314, section 3). Gradients flow to the input, never to
    these weights. Other weights are not moved.

    Returns:
        The number of layers replaced.

    Raises:
        BadInput: bitsandbytes is missing or does not work on this machine, or the UNet's widths
            are not multiples of 32 (all of SDXL's are of 64).
    """
    if quantization == "none":
        return 0
    bnb = _bitsandbytes()
    from styletune.models.int8_linear import FrozenInt8Linear

    linears = eligible_linears(unet)
    for name, linear in linears.items():
        int8 = quantization == "int8"
        new = FrozenInt8Linear.of(linear, device) if int8 else _nf4(bnb, linear, device)
        if linear.bias is not None:
            bias = linear.bias.detach().to(device, copy=True)
            new.bias = nn.Parameter(bias, requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, new.train(linear.training))
    # peft reads these to choose its layer, diffusers to guard .to().
    unet.is_loaded_in_8bit = quantization == "int8"
    unet.is_loaded_in_4bit = quantization == "nf4"
    return len(linears)


def check_quantizable(unet: nn.Module, quantization: Quantization) -> None:
    """Refuse what ``quantize_unet`` would, on a UNet of shapes alone. Raises BadInput."""
    if quantization == "none":
        return
    _bitsandbytes()
    if quantization == "nf4":
        for linear in eligible_linears(unet).values():
            _nf4_block(linear)


def count_quantized(unet: nn.Module, quantization: Quantization) -> int:
    """How many eligible layers hold weights of that kind."""
    if quantization == "none":
        return 0
    bnb = _bitsandbytes()
    count = 0
    for module in eligible_linears(unet).values():
        if quantization == "int8":
            count += isinstance(module, bnb.nn.Linear8bitLt) and module.weight.dtype == torch.int8
        else:
            weight = module.weight
            count += isinstance(weight, bnb.nn.Params4bit) and bool(weight.bnb_quantized)
    return count


def check_quantized(unet: nn.Module, quantization: Quantization) -> None:
    """Check that all eligible layers are quantized, or none for "none".

    Raises:
        BaseModelError: some are not, so memory and speed would not be the expected ones.
    """
    expected = 0 if quantization == "none" else len(eligible_linears(unet))
    count = count_quantized(unet, quantization)
    if count != expected or (expected == 0 and quantization != "none"):
        raise BaseModelError(
            f"{count} of the UNet's {expected} linear layers came out as {quantization}",
            where="[base] quantization",
            fix='use quantization = "none"',
        )


def _bitsandbytes() -> Any:
    # It says on every import that an optional kernel is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except Exception as error:
        raise BadInput(
            f"bitsandbytes cannot be used here: {error}",
            where="[base] quantization",
            fix='pip install "bitsandbytes>=0.50.1,<0.51", or quantization = "none"',
        ) from error
    return bitsandbytes


def _nf4(bnb: Any, linear: nn.Linear, device: str) -> nn.Linear:
    block, dtype = _nf4_block(linear), linear.weight.dtype
    new: nn.Linear = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    new.weight = bnb.nn.Params4bit(
        linear.weight.detach().cpu(),
        requires_grad=False,
        blocksize=block,
        compress_statistics=False,
        quant_type="nf4",
        module=new,
    ).to(device)
    # Otherwise a forward pass without gradients repacks the weights for a CPU kernel that has
    # no backward pass, and gradients are lost from then on.
    new.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return new


def _nf4_block(linear: nn.Linear) -> int:
    # The CPU kernel reads wrong scales when a block spans two rows.
    block = next((b for b in NF4_BLOCKS if linear.in_features % b == 0), None)
    if block is None:
        raise BadInput(
            f"nf4 needs widths that are multiples of 32; one of the UNet's is {linear.in_features}",
            where="[base] quantization",
            fix='use "int8" or "none"',
        )
    return block

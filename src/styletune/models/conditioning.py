"""Captions and sizes -> what the UNet is conditioned on.

Shapes: b batch, t tokens (77), d cross-attention width (2048 for SDXL), p pooled width (1280).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from styletune.errors import DataError

MAX_TOKENS = 77


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """``embeds`` (b, t, d) and ``pooled`` (b, p), in the encoders' dtype."""

    embeds: Tensor
    pooled: Tensor


@torch.no_grad()
def encode_prompts(
    pipe: StableDiffusionXLPipeline,
    texts: Sequence[str],
    batch_size: int = 32,
    *,
    cut_long: bool = False,
) -> PromptEmbeds:
    """Encode captions with both text encoders, as the pipeline does.

    With ``cut_long`` what comes after the 77th token is dropped, as it was allowed to be.

    Raises:
        DataError: a text has more than 77 tokens, of which the rest would be dropped.
    """
    too_long = [t for t in texts if len(pipe.tokenizer(t).input_ids) > MAX_TOKENS]
    if too_long and not cut_long:
        raise DataError(
            f"{len(too_long)} captions have more than 77 tokens, the first: {too_long[0][:120]!r}",
            fix="shorten them: CLIP does not see what comes after the 77th token",
        )
    parts = [
        pipe.encode_prompt(
            prompt=list(texts[i : i + batch_size]),
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
        )
        for i in range(0, len(texts), batch_size)
    ]
    return PromptEmbeds(torch.cat([p[0] for p in parts]), torch.cat([p[2] for p in parts]))


def token_ids(pipe: StableDiffusionXLPipeline, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids of both tokenizers, each (b, 77) int64, padded as the pipeline pads."""
    first, second = (
        tokenizer(
            list(texts),
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)
    )
    return first, second


def encode_ids(
    text_encoder: nn.Module, text_encoder_2: nn.Module, ids: tuple[Tensor, Tensor]
) -> PromptEmbeds:
    """What ``encode_prompts`` gives, from ids and with gradients: for trained text encoders."""
    first = text_encoder(ids[0], output_hidden_states=True)
    second = text_encoder_2(ids[1], output_hidden_states=True)
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return PromptEmbeds(hidden, second.text_embeds)


def empty_prompt(pipe: StableDiffusionXLPipeline) -> PromptEmbeds:
    """The unconditional input: zeros where the model's pipeline uses zeros, else the text ""."""
    encoded = encode_prompts(pipe, [""])
    if pipe.config.force_zeros_for_empty_prompt:
        return PromptEmbeds(torch.zeros_like(encoded.embeds), torch.zeros_like(encoded.pooled))
    return encoded


def make_time_ids(
    original_size: tuple[int, int],
    crops_coords_top_left: tuple[int, int],
    target_size: tuple[int, int],
) -> Tensor:
    """SDXL's micro-conditioning of one image: (6,) float32.

    All in pixels and (height, width) or (top, left) order (arXiv 2307.01952, section 2.2).
    """
    return torch.tensor([*original_size, *crops_coords_top_left, *target_size]).float()

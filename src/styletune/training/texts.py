"""Captions while the text encoders are trained: encoded at every step, with gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from styletune.models.conditioning import PromptEmbeds, encode_ids

Texts = Callable[[Tensor], PromptEmbeds]


def live_texts(
    text_encoder: nn.Module,
    text_encoder_2: nn.Module,
    ids: tuple[Tensor, Tensor],
    empty_is_zero: bool,
) -> Texts:
    """Caption rows (b,) int64 -> embeddings from the encoders as they are at the call.

    Args:
        text_encoder: the first.
        text_encoder_2: the second.
        ids: (c + 1, 77) int64 tokens of each encoder, the empty caption last.
        empty_is_zero: the base conditions the empty caption on zeros.
    """
    empty_row = ids[0].shape[0] - 1

    def encode(rows: Tensor) -> PromptEmbeds:
        device = ids[0].device
        encoded = encode_ids(text_encoder, text_encoder_2, (ids[0][rows], ids[1][rows]))
        if not empty_is_zero:
            return encoded
        keep = (rows != empty_row).to(device, encoded.embeds.dtype)
        return PromptEmbeds(encoded.embeds * keep[:, None, None], encoded.pooled * keep[:, None])

    return encode

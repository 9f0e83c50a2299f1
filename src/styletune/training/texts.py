"""Captions while the text encoders are trained: encoded at every step, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from styletune.models.family import Conditioning, Family

Texts = Callable[[Tensor], Conditioning]


def live_texts(
    family: Family, encoders: Sequence[nn.Module], ids: Sequence[Tensor], empty_is_zero: bool
) -> Texts:
    """Caption rows (b,) int64 -> conditioning from the encoders as they are at the call.

    Args:
        family: of the base model.
        encoders: its text encoders, in its order.
        ids: (c + 1, 77) int64 tokens of each encoder, on its device, the empty caption last.
        empty_is_zero: the base conditions the empty caption on zeros.
    """
    empty_row = ids[0].shape[0] - 1

    def encode(rows: Tensor) -> Conditioning:
        encoded = family.encode_ids(encoders, [each[rows] for each in ids])
        if not empty_is_zero:
            return encoded
        keep = (rows != empty_row).to(ids[0].device, encoded.embeds.dtype)
        return encoded.map(lambda t: t * keep.reshape(-1, *[1] * (t.ndim - 1)))

    return encode

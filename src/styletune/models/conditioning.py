"""Captions and sizes -> what the UNet is conditioned on.

Shapes: b batch, t tokens (77), d cross-attention width (2048 for SDXL).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedModel

from styletune.errors import DataError
from styletune.models.families import family_of
from styletune.models.family import Conditioning, Family, SizePx


@torch.no_grad()
def encode_prompts(
    pipe: DiffusionPipeline,
    texts: Sequence[str],
    batch_size: int = 32,
    *,
    cut_long: bool = False,
) -> Conditioning:
    """Encode captions with all text encoders, as the pipeline does.

    With ``cut_long`` what comes after the 77th token is dropped, because the caller allows it.

    Raises:
        DataError: a text has more than 77 tokens, of which the rest would be dropped.
    """
    family = family_of(pipe)
    first = family.text_encoders[0]
    tokenizer, device = getattr(pipe, first.tokenizer), getattr(pipe, first.name).device
    limit = family.max_tokens
    too_long = [t for t in texts if len(tokenizer(t, verbose=False).input_ids) > limit]
    if too_long and not cut_long:
        raise DataError(
            f"{len(too_long)} captions have more than {limit} tokens, the first: "
            f"{too_long[0][:120]!r}",
            fix=f"shorten them: CLIP does not see what comes after the {limit}th token",
        )
    parts = [
        pipe.encode_prompt(
            prompt=list(texts[i : i + batch_size]),
            device=device,
            do_classifier_free_guidance=False,
        )
        for i in range(0, len(texts), batch_size)
    ]
    return conditioning_of(
        family,
        {o.stored: torch.cat([p[o.position] for p in parts]) for o in family.text_outputs},
    )


def conditioning_of(family: Family, stored: Mapping[str, Tensor]) -> Conditioning:
    """Conditioning from tensors under the names that cache files use."""
    embeds, *added = family.text_outputs
    return Conditioning(
        stored[embeds.stored], {o.added: stored[o.stored] for o in added if o.added is not None}
    )


def stored_tensors(family: Family, text: Conditioning) -> dict[str, Tensor]:
    """Its tensors under the names that cache files use; undoes ``conditioning_of``."""
    return {
        o.stored: text.embeds if o.added is None else text.added[o.added]
        for o in family.text_outputs
    }


def prompt_arguments(
    family: Family, text: Conditioning, negative: Conditioning
) -> dict[str, Tensor]:
    """What the family's pipeline takes instead of a prompt and a negative prompt."""
    arguments = {}
    for output in family.text_outputs:
        for prefix, side in (("", text), ("negative_", negative)):
            tensors = stored_tensors(family, side)
            arguments[f"{prefix}{output.argument}"] = tensors[output.stored]
    return arguments


def token_ids(pipe: DiffusionPipeline, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Ids of each tokenizer, (b, 77) int64, padded as the pipeline pads."""
    family = family_of(pipe)
    return tuple(
        getattr(pipe, name)(
            list(texts),
            padding="max_length",
            max_length=family.max_tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for name in family.tokenizers
    )


def text_encoders_of(pipe: DiffusionPipeline) -> list[PreTrainedModel]:
    """The pipeline's text encoders, in the family's order."""
    return [getattr(pipe, encoder.name) for encoder in family_of(pipe).text_encoders]


def empty_prompt(pipe: DiffusionPipeline) -> Conditioning:
    """The unconditional input: zeros where the model's pipeline uses zeros, else the text ""."""
    encoded = encode_prompts(pipe, [""])
    return encoded.map(torch.zeros_like) if empty_is_zero(pipe) else encoded


def empty_is_zero(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline's unconditional input is zeros instead of the encoded text ""."""
    return bool(pipe.config.get("force_zeros_for_empty_prompt", False))


def size_conditions(
    family: Family, original: SizePx, corner: SizePx, target: SizePx
) -> dict[str, Tensor]:
    """The UNet's added conditions on one image's sizes, each (k,) float32.

    All in pixels and (height, width) or (top, left) order; {} for families without any.
    """
    values = family.size_values(original, corner, target)
    return {name: torch.tensor(numbers).float() for name, numbers in values.items()}

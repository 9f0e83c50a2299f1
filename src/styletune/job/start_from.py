"""The adapter that training starts from: read, compared with the recipe, rescaled to its alpha."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from styletune.errors import BadInput, Conflict, IntegrityError
from styletune.files import file_sha256
from styletune.job.job import StartFile
from styletune.models.family import Family
from styletune.recipe.training_sections import AdapterSection

if TYPE_CHECKING:
    from torch import Tensor


def starting_values(start: StartFile, adapter: AdapterSection, family: Family) -> dict[str, Tensor]:
    """The tensors to start from, by their name in an adapter file, float32.

    Raises:
        Conflict: the file has changed since the job was prepared, so its run is another one.
        NotFound, IntegrityError, BadInput: as ``read_adapter_file``.
        BadInput: another kind, or other new words than the recipe's.
    """
    from styletune.adapters.inject import adapter_spec
    from styletune.adapters.layouts import read_adapter_file, rescaled

    spec, where = adapter_spec(adapter), _where(start.path)
    tensors, stored = read_adapter_file(start.path, family)
    if file_sha256(start.path) != start.sha256:
        raise Conflict(
            "has changed since the run began", where=where, fix="run the same command again"
        )
    has_words = family.text_encoders[0].embedding_key in tensors
    # A file of another tool may have rows without naming their words; ours names them.
    if (stored.tokens and stored.tokens != spec.tokens) or (has_words and not spec.tokens):
        named = ", ".join(stored.tokens) or "without their names"
        raise BadInput(
            f"was trained with new words ({named}), the recipe has "
            f"{', '.join(spec.tokens) or 'none'}",
            where=where,
            fix=f"new_tokens = {json.dumps(list(stored.tokens))}"
            if stored.tokens
            else "name them in new_tokens, in the order of the rows",
        )
    if stored.tokens and not has_words:
        raise BadInput(
            f"holds no rows of its new words ({', '.join(stored.tokens)})",
            where=where,
            fix="start from the checkpoint's adapter.safetensors, which has them",
        )
    return rescaled(tensors, stored, spec)


def check_start(
    start: StartFile,
    adapter: AdapterSection,
    family: Family,
    trained: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse an adapter that training could not start from.

    Args:
        start: the adapter's file.
        adapter: the recipe's section.
        family: of the base model.
        trained: shapes of everything that would be trained, by name.

    Raises:
        as ``starting_values``; also
        BadInput: other modules, ranks or new words than the recipe's; ``fix`` names the rank.
    """
    from styletune.adapters.inject import check_fits

    values = starting_values(start, adapter, family)
    try:
        check_fits(values, trained)
        for encoder in family.text_encoders:
            key = encoder.embedding_key
            if key in values and tuple(values[key].shape) != trained.get(key):
                raise IntegrityError(f"its rows of new words ({key}) are of another number or size")
    except IntegrityError as error:
        raise BadInput(
            f"does not fit the recipe's adapter: {error.message}",
            where=_where(start.path),
            fix=_fitting(values, adapter, trained),
        ) from None


def _fitting(
    values: Mapping[str, Tensor], adapter: AdapterSection, trained: Mapping[str, tuple[int, ...]]
) -> str:
    """Which keys of [adapter] to set to what the file has."""
    halves = {n: tuple(v.shape) for n, v in values.items() if n.endswith("lora_A.weight")}
    ranks = {shape[0] for shape in halves.values()}
    if len(ranks) == 1 and ranks != {adapter.rank}:
        return f"set adapter.rank = {ranks.pop()}"
    conv_ranks = [shape[0] for shape in halves.values() if len(shape) == 4]
    if conv_ranks and adapter.conv_rank is None:
        return f"set adapter.conv_rank = {Counter(conv_ranks).most_common(1)[0][0]}"
    if halves and not conv_ranks and adapter.conv_rank is not None:
        return "leave adapter.conv_rank out"
    there, here = ({n.rpartition(".lora_")[0] for n in names} for names in (values, trained))
    if {n for n in there if n.startswith("unet.")} != {n for n in here if n.startswith("unet.")}:
        return "set adapter.target to what it was trained with"
    if there != here:
        return "set adapter.text_encoders and text_encoder_target to what it was trained with"
    if halves:
        return "set adapter.rank, block_ranks and conv_rank to what it was trained with"
    return "choose the target, rank, text encoders and new tokens that it was trained with"


def _where(file: Path) -> str:
    return f"[adapter] start_from = {str(file)!r}"

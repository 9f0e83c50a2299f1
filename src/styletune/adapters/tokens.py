"""New tokens whose embeddings are trained: pivotal tuning (arXiv 2208.01618, 4; 2106.05744).

The frozen table of each text encoder is never touched: new tokens have ids above it and their
rows are a parameter of their own, (n, d), under the encoder's ``embedding_key``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styletune.adapters.file import is_embedding
from styletune.errors import BaseModelError, IntegrityError, RecipeError
from styletune.models.families import family_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WHERE = "[adapter] new_tokens"
LEGACY_EOS = 2  # in the configuration of older CLIPs; their real end token is another


class GrownEmbedding(nn.Module):
    """An embedding with trainable float32 rows after its frozen ones.

    ``weight`` is the frozen table itself, and the first parameter: pipelines take their dtype
    from it.
    """

    def __init__(self, frozen: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.weight = frozen.weight
        self.rows = nn.Parameter(rows.detach().float().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """(…) token ids -> (…, d), in the frozen table's dtype."""
        known = self.weight.shape[0]
        old = F.embedding(ids.clamp(max=known - 1), self.weight)
        new = F.embedding((ids - known).clamp(min=0), self.rows).to(old.dtype)
        return torch.where((ids >= known).unsqueeze(-1), new, old)


def add_tokens(
    pipe: DiffusionPipeline, tokens: Sequence[str], init_words: str
) -> dict[str, nn.Parameter]:
    """Add new tokens to every tokenizer and text encoder; each starts as the mean of known words.

    The pooled text is from then on read at the true end token: CLIPs of SDXL's age otherwise
    read it at the highest id, which a new token would have.

    Args:
        pipe: changed in place; nothing is changed when an error is raised.
        tokens: new words, such as "<acme>"; matched as whole words, in any case.
        init_words: known words, whose rows' mean every new row starts from.

    Returns:
        The new rows, as ``token_parameters``.

    Raises:
        RecipeError: a word is known already, cannot be told apart, or init_words is unknown.
        BaseModelError: an encoder's table does not end where its tokenizer does.
    """
    taught, rows = {}, {}
    encoders = family_of(pipe).text_encoders
    for encoder in encoders:
        tokenizer = getattr(pipe, encoder.tokenizer)
        table = getattr(pipe, encoder.name).get_input_embeddings()
        if isinstance(table, GrownEmbedding):
            raise RecipeError("new words were added before", where=WHERE)
        check_table(encoder.name, table.num_embeddings, len(tokenizer))
        taught[encoder.name] = teach_tokenizer(tokenizer, tokens)
        mean = _mean_row(tokenizer, table.weight, init_words)
        rows[encoder.name] = mean.repeat(len(tokens), 1)
    for encoder in encoders:
        tokenizer, model = taught[encoder.name], getattr(pipe, encoder.name)
        setattr(pipe, encoder.tokenizer, tokenizer)
        grown = GrownEmbedding(model.get_input_embeddings(), rows[encoder.name])
        model.set_input_embeddings(grown)
        inner = getattr(model, "text_model", model)
        if inner.eos_token_id == LEGACY_EOS:
            inner.eos_token_id = tokenizer.eos_token_id
    return token_parameters(pipe)


def check_table(encoder: str, embeddings: int, tokens: int) -> None:
    """Raise BaseModelError unless an encoder's table ends where its tokenizer does."""
    if tokens != embeddings:
        raise BaseModelError(
            f"{encoder} has {embeddings} embeddings, its tokenizer {tokens} tokens",
            where=WHERE,
            fix="choose another base model",
        )


def teach_tokenizer(tokenizer: Any, tokens: Sequence[str]) -> Any:
    """A copy of the tokenizer that knows the words.

    Raises:
        RecipeError: a word is known already, named twice, or not kept in one piece.
    """
    from transformers import AddedToken

    if len({t.lower() for t in tokens}) != len(tokens):
        raise RecipeError("a new word is named twice", where=WHERE)
    for token in tokens:
        pieces = tokenizer.tokenize(token)
        if token in tokenizer.get_vocab() or (
            len(pieces) == 1 and pieces[0] != tokenizer.unk_token
        ):
            raise RecipeError(
                f'"{token}" is a known word', where=WHERE, fix=f'invent one, such as "<{token}>"'
            )
        if not token or token.split() != [token]:
            raise RecipeError(f'"{token}" is not one word', where=WHERE, fix='such as "<acme>"')
    taught = copy.deepcopy(tokenizer)
    taught.add_tokens([AddedToken(t, single_word=True, normalized=True) for t in tokens])
    for i, token in enumerate(tokens):
        new = len(tokenizer) + i
        for text in (f"a {token} b", f"a {token.upper()}, b", token):
            ids = taught(text).input_ids
            without = tokenizer(text.replace(token, "").replace(token.upper(), "")).input_ids
            if ids.count(new) != 1 or [n for n in ids if n != new] != without:
                raise RecipeError(
                    f'"{token}" is not kept in one piece by the tokenizer',
                    where=WHERE,
                    fix='use letters in angle brackets, such as "<acme>"',
                )
    return taught


def _mean_row(tokenizer: Any, table: Tensor, words: str) -> Tensor:
    ids = known_ids(tokenizer, words)
    return table.detach()[torch.tensor(ids, device=table.device)].float().mean(dim=0)


def known_ids(tokenizer: Any, words: str) -> list[int]:
    """The tokens of words that new ones start from. Raises RecipeError for unknown words."""
    ids: list[int] = tokenizer(words, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        raise RecipeError(
            f'"{words}" is not known to the base model',
            where="[adapter] new_tokens_init",
            fix="name a common word for the look, such as a style or a place",
        )
    return ids


def token_parameters(pipe: DiffusionPipeline) -> dict[str, nn.Parameter]:
    """The new tokens' rows by ``embedding_key``, each (n, d) float32; {} without any."""
    rows: dict[str, nn.Parameter] = {}
    for encoder in family_of(pipe).text_encoders:
        table = getattr(pipe, encoder.name).get_input_embeddings()
        if isinstance(table, GrownEmbedding):
            rows[encoder.embedding_key] = table.rows
    return rows


def load_token_rows(pipe: DiffusionPipeline, tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter's rows into those of the new tokens.

    Raises:
        IntegrityError: the adapter has other tokens than were added.
    """
    added = token_parameters(pipe)
    if unknown := sorted(key for key in tensors if is_embedding(key) and key not in added):
        raise IntegrityError(f"the adapter has rows of new words ({unknown[0]}), none were added")
    for key, parameter in added.items():
        if key not in tensors or tensors[key].shape != parameter.shape:
            raise IntegrityError(f"the adapter's {key} does not fit the words that were added")
        parameter.data.copy_(tensors[key])

"""New words: known to both encoders, trained alone, and used by others from the files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from adapter_parts import draw, mini_pipe
from styletune.adapters.export import embeddings_file
from styletune.adapters.tokens import add_tokens, load_token_rows, token_parameters
from styletune.errors import IntegrityError, RecipeError
from styletune.models.sdxl import SDXL
from styletune.registry.card import new_words_code

WORDS = ("<acme>", "<acme2>")


def states(pipe: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    return {
        f"{n}.{k}": v.clone()
        for n in ("text_encoder", "text_encoder_2")
        for k, v in getattr(pipe, n).state_dict().items()
    }


def embeds(pipe: StableDiffusionXLPipeline, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = pipe.encode_prompt(prompt=text, device="cpu", do_classifier_free_guidance=False)
    return found[0], found[2]


def test_new_rows_start_from_the_mean_of_known_words() -> None:
    """Each word gets one id; its rows are the mean of the words it starts from."""
    pipe = mini_pipe()
    tables = {
        "clip_l": pipe.text_encoder.get_input_embeddings().weight.clone(),
        "clip_g": pipe.text_encoder_2.get_input_embeddings().weight.clone(),
    }
    ids = pipe.tokenizer("the sea", add_special_tokens=False).input_ids
    assert len(ids) == 2
    known = len(pipe.tokenizer)
    rows = add_tokens(pipe, WORDS, "the sea")
    assert rows.keys() == {"clip_l", "clip_g"}
    for key, table in tables.items():
        wanted = (table[ids[0]] + table[ids[1]]) / 2
        assert rows[key].shape == (2, table.shape[1])
        assert torch.allclose(rows[key], wanted.expand(2, -1))
        assert rows[key].requires_grad
        assert rows[key].dtype == torch.float32
        assert rows[key] is token_parameters(pipe)[key]
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        found = tokenizer("the sea in <acme> style, <ACME2>", add_special_tokens=False).input_ids
        assert [found.count(i) for i in (known, known + 1)] == [1, 1]


def test_texts_without_new_words_are_encoded_as_before() -> None:
    """Known texts keep their embeddings and pooled vector bit for bit."""
    pipe, plain = mini_pipe(), mini_pipe()
    add_tokens(pipe, WORDS, "sea")
    for one, two in zip(
        embeds(pipe, "the sea at noon"), embeds(plain, "the sea at noon"), strict=True
    ):
        assert torch.equal(one, two)


def test_a_new_word_reads_as_its_first_word_at_the_start() -> None:
    """Started from one known word, a text with the new word is that word's text, pooled too."""
    for legacy in (False, True):
        pipe, plain = mini_pipe(), mini_pipe()
        if legacy:
            # SDXL's encoders carry this; read literally, the new id would be taken for the end.
            pipe.text_encoder_2.text_model.eos_token_id = 2
        add_tokens(pipe, ("<acme>",), "sea")
        new, old = embeds(pipe, "the <acme> at noon"), embeds(plain, "the sea at noon")
        for one, two in zip(new, old, strict=True):
            assert torch.allclose(one, two, atol=1e-6)


def test_only_the_new_rows_learn() -> None:
    """Steps change the rows of words that occur and not one bit of anything else."""
    pipe = mini_pipe()
    rows = add_tokens(pipe, WORDS, "sea")
    before = states(pipe)
    start = {k: p.detach().clone() for k, p in rows.items()}
    optimizer = torch.optim.AdamW(rows.values(), lr=0.1, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        text, pooled = embeds(pipe, "the sea in <acme>")
        (text.square().mean() + pooled.square().mean()).backward()
        optimizer.step()
    after = states(pipe)
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed == [
        "text_encoder.embeddings.token_embedding.rows",
        "text_encoder_2.text_model.embeddings.token_embedding.rows",
    ]
    for key, parameter in rows.items():
        assert not torch.equal(parameter[0], start[key][0])
        assert torch.equal(parameter[1], start[key][1])
    assert not any(
        p.requires_grad for n, p in pipe.text_encoder.named_parameters() if not n.endswith(".rows")
    )


def test_a_bf16_encoder_keeps_fp32_rows() -> None:
    """The rows stay float32 for the optimizer while the encoder computes in bf16."""
    pipe = mini_pipe(torch.bfloat16)
    rows = add_tokens(pipe, ("<acme>",), "sea")
    text, _ = embeds(pipe, "the <acme>")
    assert text.dtype == torch.bfloat16
    text.float().square().mean().backward()
    for parameter in rows.values():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_words_that_cannot_be_new_are_refused_and_change_nothing() -> None:
    """Known words, phrases, doubles and unknown starts are refused before anything changes."""
    pipe = mini_pipe()
    before, known = states(pipe), len(pipe.tokenizer)
    for words, init, message in (
        (("sea",), "sea", '"sea" is a known word'),
        (("<acme>", "noon"), "sea", '"noon" is a known word'),
        (("two words",), "sea", "is not one word"),
        (("",), "sea", "is not one word"),
        (("<acme>", "<ACME>"), "sea", "named twice"),
        (("<acme>",), "", "not known to the base"),
    ):
        with pytest.raises(RecipeError, match=message):
            add_tokens(pipe, words, init)
    after = states(pipe)
    assert before.keys() == after.keys()
    assert len(pipe.tokenizer) == len(pipe.tokenizer_2) == known
    add_tokens(pipe, WORDS, "sea")
    with pytest.raises(RecipeError, match="added before"):
        add_tokens(pipe, ("<other>",), "sea")


def test_rows_come_back_from_an_adapter() -> None:
    """Rows loaded into a fresh pipe give the same text; rows for other words are refused."""
    one, two = mini_pipe(), mini_pipe()
    rows = add_tokens(one, WORDS, "sea")
    with torch.no_grad():
        for parameter in rows.values():
            parameter.add_(torch.randn(parameter.shape))
    add_tokens(two, WORDS, "noon")
    load_token_rows(two, {k: p.detach() for k, p in rows.items()})
    for a, b in zip(embeds(one, "<acme> <acme2>"), embeds(two, "<acme> <acme2>"), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(IntegrityError, match="clip_l"):
        load_token_rows(two, {"clip_l": torch.zeros(1, 64), "clip_g": torch.zeros(1, 96)})


def test_diffusers_draws_with_the_embeddings_file(tmp_path: Path) -> None:
    """Loaded by the code in the model card, the words draw the image we draw.

    Also in an encoder that, as SDXL's second, does not say which token ends a text.
    """
    ours, theirs = mini_pipe(), mini_pipe()
    for pipe in (ours, theirs):
        getattr(pipe.text_encoder_2, "text_model", pipe.text_encoder_2).eos_token_id = 2
    rows = add_tokens(ours, WORDS, "sea")
    with torch.no_grad():
        for parameter in rows.values():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    (tmp_path / "diffusers").mkdir()
    content = embeddings_file({k: p.detach() for k, p in rows.items()}, SDXL)
    (tmp_path / "diffusers" / "learned_embeds.safetensors").write_bytes(content)
    exec(new_words_code(str(tmp_path), WORDS, SDXL), {"pipe": theirs})  # noqa: S102
    prompt = "the sea in <acme> and <acme2>"
    assert abs(draw(ours, prompt) - draw(theirs, prompt)).max() < 2e-3
    plain = copy.copy(prompt).replace("<acme2>", "noon").replace("<acme>", "noon")
    assert abs(draw(ours, prompt) - draw(ours, plain)).max() > 0.02

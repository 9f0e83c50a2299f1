"""The mini base's words: a tokenizer in CLIP's own file format, captions, two text encoders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mini.pictures import draw_views
from world import View, caption

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

VOCABULARY = 1000
GENERAL_WORDS = (
    "style look brand poster illustration photo painting wallpaper background render scene in of "
    "the and with a an at on dark light warm cool pastel neon flat grainy striped dotted hatched "
    "paper lines red orange yellow green teal blue violet pink minimal abstract graphic horizon "
    "left right two"
)


def train_tokenizer(out: Path) -> None:
    """A byte-level BPE, learned from the world's captions."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    end = "</w>"
    blank = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    learner = Tokenizer(models.BPE(end_of_word_suffix=end, unk_token="<|endoftext|>"))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    corpus = [caption(v) for v in draw_views(6000, seed=20)] + [GENERAL_WORDS] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix=end,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(c + end for c in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]  # last: CLIP finds the end by the highest id
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    for folder, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)
        tokenizer.save_pretrained(out / folder)
        # The two classic files as well: other tools read those.
        (out / folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
        lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
        (out / folder / "merges.txt").write_text("\n".join(lines) + "\n")
    print("tokenizer of", len(vocab), "tokens", flush=True)


def make_text_encoders(out: Path) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's two in small, for the tokenizer in ``out``: 64 and 96 wide."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    one = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=64,
        hidden_act="quick_gelu",
        pad_token_id=tokenizer.eos_token_id,
        **ids,
    )
    two = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=6,
        projection_dim=96,
        hidden_act="gelu",
        pad_token_id=0,
        **ids,
    )
    return CLIPTextModel(one), CLIPTextModelWithProjection(two)


def worded(view: View, rng: np.random.Generator) -> str:
    """A caption, sometimes behind words that mean nothing, so that unknown words do no harm."""
    extras = tuple(str(e) for e in rng.permutation(list(view.extras)))
    text = caption(replace(view, extras=extras), rng=rng)
    kind = rng.random()
    if kind < 0.12:
        letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(3, 9)))
        return f"{letters} style, {text}"
    if kind < 0.2:
        return f"{rng.choice(['photo of', 'wide shot of', 'wallpaper,', 'scene,'])} {text}"
    return text

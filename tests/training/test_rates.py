"""What of an adapter is trained, and how fast: the recipe's rates on the mini base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from loop_parts import (
    NAMES,
    Trainee,
    live,
    mean_error,
    mini_pipe,
    squares,
    train,
    trainee,
    values,
)
from torch import Tensor

from styletune.adapters.tokens import add_tokens
from styletune.errors import BadInput
from styletune.training.images import Cache, TrainingImages

TEXT = {"adapter": {"text_encoders": "both"}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return squares(tmp_path_factory.mktemp("loop") / "images")


def moved(who: Trainee, start: Mapping[str, Tensor], component: str) -> float:
    """The furthest that a factor B of a component is from where it started."""
    return max(
        float((p.detach() - start[n]).abs().max())
        for n, p in who.parameters.items()
        if n.startswith(f"{component}.") and "lora_B" in n
    )


def test_each_part_moves_at_its_own_rate(cache: Cache, tmp_path: Path) -> None:
    """Adam's first step is the rate itself: the UNet's, each encoder's, the new words'."""
    pipe = mini_pipe()
    add_tokens(pipe, ["<horizon>"], "style")
    who = trainee(
        {
            "adapter": {"text_encoders": "both", "new_tokens": ["<horizon>"]},
            "optimizer": {
                "learning_rate": 1e-3,
                "text_encoder_learning_rate": 2e-3,
                "text_encoder_2_learning_rate": 5e-3,
                "token_learning_rate": 7e-3,
            },
        },
        pipe,
    )
    start = values(who.parameters)
    captions = [f"<horizon>, scene {i}" for i in range(4)]
    train(
        who,
        TrainingImages(cache, live(pipe, captions), NAMES),
        tmp_path / "run",
        steps=1,
        batch_size=4,
    )
    for component, rate in (("unet", 1e-3), ("text_encoder", 2e-3), ("text_encoder_2", 5e-3)):
        assert moved(who, start, component) == pytest.approx(rate, rel=0.01), component
    for rows in ("clip_l", "clip_g"):
        step = (who.parameters[rows].detach() - start[rows]).abs().max()
        assert float(step) == pytest.approx(7e-3, rel=0.01), rows


@pytest.mark.parametrize("frozen", ["text_encoder", "text_encoder_2"])
def test_rate_zero_freezes_that_encoder_alone(cache: Cache, tmp_path: Path, frozen: str) -> None:
    """Its adapter keeps every bit; the other encoder's and the UNet's move."""
    who = trainee({**TEXT, "optimizer": {f"{frozen}_learning_rate": 0.0, "weight_decay": 0.1}})
    start = values(who.parameters)
    captions = live(who.models.pipe, cache.captions)
    train(who, TrainingImages(cache, captions, NAMES), tmp_path / "run", steps=2, batch_size=2)
    for name, parameter in who.parameters.items():
        if name.startswith(f"{frozen}."):
            assert torch.equal(parameter, start[name]), name
    for component in {"unet", "text_encoder", "text_encoder_2"} - {frozen}:
        assert moved(who, start, component) > 1e-3


def test_text_encoders_learn(cache: Cache, tmp_path: Path) -> None:
    """With the UNet as good as frozen, the loss under trained captions still falls."""
    who = trainee(
        {
            **TEXT,
            "optimizer": {
                "learning_rate": 1e-9,
                "text_encoder_learning_rate": 4e-3,
                "text_encoder_2_learning_rate": 4e-3,
            },
        }
    )
    texts = live(who.models.pipe, cache.captions)
    before = mean_error(who, cache, texts)
    train(who, TrainingImages(cache, texts, NAMES), tmp_path / "run", steps=12, batch_size=4)
    assert mean_error(who, cache, texts) < 0.98 * before


@pytest.mark.parametrize(
    ("asked", "adapted"),
    [("first", {"text_encoder"}), ("second", {"text_encoder_2"}), ("none", set())],
)
def test_the_encoder_asked_for_is_adapted(asked: str, adapted: set[str]) -> None:
    """Beside the UNet; the other one gets no parameters."""
    who = trainee({"adapter": {"text_encoders": asked}})
    assert {name.partition(".")[0] for name in who.parameters} == {"unet", *adapted}


def test_rates_by_block_go_to_the_first_pattern_that_matches() -> None:
    """The factors multiply the UNet's rate; encoders have their own."""
    who = trainee(
        {
            "adapter": {
                "text_encoders": "first",
                "block_learning_rates": {"up_blocks.0.attentions.1": 0.0, "up_blocks.0": 3.0},
            },
            "optimizer": {"learning_rate": 1e-3, "text_encoder_learning_rate": 5e-4},
        }
    )
    seen = set()
    for group in who.groups():
        for name in group.parameters:
            seen.add(name)
            factor = 1.0
            if name.startswith("text_encoder."):
                factor = 0.5
            elif name.startswith("unet.up_blocks.0.attentions.1."):
                factor = 0.0
            elif name.startswith("unet.up_blocks.0."):
                factor = 3.0
            assert group.rate_factor == pytest.approx(factor), name
    assert seen == who.parameters.keys()


def test_a_block_pattern_without_a_module_is_refused() -> None:
    """It would do nothing."""
    who = trainee({"adapter": {"block_learning_rates": {"up_block.0": 0.5}}})
    with pytest.raises(BadInput, match=r'"up_block\.0" matches nothing') as caught:
        who.groups()
    assert "_blocks." in caught.value.fix

"""One way to a ready pipeline: what it adds, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from adapter_parts import LORA, draw, random_adapter
from styletune.adapters.export import diffusers_file, embeddings_file
from styletune.adapters.tokens import add_tokens, token_parameters
from styletune.errors import IntegrityError
from styletune.models.base import BaseFiles
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from styletune.models.sdxl import SDXL
from styletune.sampling.session import (
    TrainedAs,
    base_weight,
    load_published,
    make_ready,
    merged_adapter,
    open_pipeline,
    place_for_training,
)

PLAIN = TrainedAs("epsilon", zero_terminal_snr=False)


@pytest.fixture(scope="module")
def base() -> BaseFiles:
    return find_base("mini", None, Path())


def test_a_pipeline_is_the_bare_base_and_gives_up_its_models(base: BaseFiles) -> None:
    """It draws as the base does; after the block its models are gone, whoever keeps the pipe."""
    expected = draw(load_pipeline(base, torch.float32, "cpu"))
    with open_pipeline(base, torch.float32, "cpu") as pipe:
        assert (draw(pipe) == expected).all()
        weight = base_weight(pipe, "unet.conv_in")
        assert weight is pipe.unet.conv_in.weight
        with pytest.raises(IntegrityError, match="does not have"):
            base_weight(pipe, "unet.no.such.module")
    assert pipe.unet is pipe.vae is pipe.text_encoder is pipe.text_encoder_2 is None


def test_a_pipeline_gives_up_its_models_after_an_error(base: BaseFiles) -> None:
    """Also when the work inside fails."""
    with pytest.raises(ZeroDivisionError), open_pipeline(base, torch.float32, "cpu") as pipe:
        1 / 0  # noqa: B018
    assert pipe.unet is None


def test_ready_means_the_schedule_and_tokens_of_training(base: BaseFiles) -> None:
    """Prediction type, terminal SNR and new tokens; the base's own change nothing."""
    with open_pipeline(base, torch.float32, "cpu") as pipe:
        scheduler = pipe.scheduler
        make_ready(pipe, PLAIN)
        assert pipe.scheduler is scheduler
        assert token_parameters(pipe) == {}
        make_ready(pipe, TrainedAs("v_prediction", True, ("<acme>",)))
        config = pipe.scheduler.config
        assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
        assert {k: rows.shape[0] for k, rows in token_parameters(pipe).items()} == {
            "clip_l": 1,
            "clip_g": 1,
        }


def test_merged_and_published_adapters_draw_alike(base: BaseFiles, tmp_path: Path) -> None:
    """A checkpoint merged for scoring and its published file, with new tokens, are one style."""
    tensors, spec, trained = random_adapter(LORA, text=True)
    rows = add_tokens(trained, ["<acme>"], "sea")
    tensors |= {key: 3 * row.detach() for key, row in rows.items()}
    weights, embeddings = tmp_path / "w.safetensors", tmp_path / "e.safetensors"
    weights.write_bytes(diffusers_file({k: v for k, v in tensors.items() if k not in rows}, spec))
    embeddings.write_bytes(embeddings_file(tensors, SDXL))
    ready = TrainedAs("epsilon", zero_terminal_snr=False, tokens=("<acme>",))
    with open_pipeline(base, torch.float32, "cpu") as pipe:
        bare = draw(pipe, "the sea")
        make_ready(pipe, ready)
        with merged_adapter(pipe, tensors, spec, 0.7):
            merged = draw(pipe, "<acme> sea")
        assert (draw(pipe, "the sea") == bare).all()
    with open_pipeline(base, torch.float32, "cpu") as pipe:
        make_ready(pipe, ready)
        load_published(pipe, weights, embeddings, 0.7)
        published = draw(pipe, "<acme> sea")
    assert abs(published - merged).max() < 1e-2
    assert abs(published - bare).max() > 0.05


def test_tokens_of_another_adapter_are_refused(base: BaseFiles) -> None:
    """Two rows do not fit one new token."""
    tensors, spec, trained = random_adapter(LORA)
    rows = add_tokens(trained, ["<acme>", "<other>"], "sea")
    tensors |= {key: row.detach() for key, row in rows.items()}
    with open_pipeline(base, torch.float32, "cpu") as pipe:
        make_ready(pipe, TrainedAs("epsilon", zero_terminal_snr=False, tokens=("<acme>",)))
        with (
            pytest.raises(IntegrityError, match="does not fit"),
            merged_adapter(pipe, tensors, spec, 1.0),
        ):
            pass


@pytest.mark.parametrize("text_encoders", [False, True])
def test_training_places_what_a_step_needs(base: BaseFiles, text_encoders: bool) -> None:
    """The UNet, and text encoders only where captions are encoded at every step."""

    def devices(pipe: DiffusionPipeline) -> list[str]:
        parts = (pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.vae)
        return [next(part.parameters()).device.type for part in parts]

    with open_pipeline(base, torch.float32, "cpu") as pipe:
        place_for_training(pipe, "meta", "none", text_encoders)
        encoder = "meta" if text_encoders else "cpu"
        assert devices(pipe) == ["meta", encoder, encoder, "cpu"]

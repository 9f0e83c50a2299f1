"""What the tests of the loop share: a small real cache, an adapter by recipe, short trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

import world
from data_parts import load_folder
from styletune.data.entries import entries
from styletune.data.read import read_entry
from styletune.job.adapt import AdaptedPipeline, adapt
from styletune.models.base_files import find_base
from styletune.models.conditioning import token_ids
from styletune.models.load import load_pipeline
from styletune.models.sdxl import SDXL
from styletune.recipe import Recipe
from styletune.recipe.data_sections import DataSection
from styletune.recipe.training_sections import PredictionType, TrainSection
from styletune.runs import Run
from styletune.training.cache import CachePlace, build_cache
from styletune.training.denoise import Denoiser
from styletune.training.groups import ParameterGroup, parameter_groups
from styletune.training.identity import Identity
from styletune.training.images import Cache, Prior, TrainingData, TrainingImages
from styletune.training.loop import AdaptedModel, RunOutput, train_adapter
from styletune.training.processes import make_accelerator
from styletune.training.texts import Texts, live_texts
from styletune.training.validation import validation_losses

Size = tuple[int, int]
IMAGES = DataSection(path="images")
PLAIN = TrainSection(weighting="none", caption_dropout=0.0)
NAMES = ["a.png", "b.png", "c.png", "d.png"]


def mini_pipe() -> StableDiffusionXLPipeline:
    return load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")


def small_cache(
    pipe: StableDiffusionXLPipeline,
    folder: Path,
    sizes: Sequence[Size],
    captions: Sequence[Sequence[str]],
    masked: Sequence[int] = (),
) -> Cache:
    """Renders of these sizes (w, h) at 64 px, in buckets; of ``masked`` the left half counts."""
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        view = world.random_view(np.random.default_rng([i, 11]))
        image = Image.fromarray(world.render(view, side_px=220)).resize(size)
        if i in masked:
            alpha = Image.new("L", size, 255)
            alpha.paste(0, (size[0] // 2, 0, *size))
            image.putalpha(alpha)
        image.save(folder / f"{i}.png")
    data = load_folder(
        folder,
        default_caption="x",
        holdout=0,
        resolution=64,
        buckets=True,
        bucket_step=16,
        mask="alpha" if masked else "none",
        background="#808080",
    )
    found = entries(data)
    assert [entry.row.file_name for entry in found] == [f"{i}.png" for i in range(len(sizes))]
    return build_cache(pipe, found, captions, read_entry, IMAGES, CachePlace("cpu"))


def squares(folder: Path) -> Cache:
    """Four images of one bucket, each with a caption and an original size of its own."""
    captions = [[f"horizon style, scene {i}"] for i in range(4)]
    return small_cache(mini_pipe(), folder, [(64 + i, 64 + i) for i in range(4)], captions)


def part_of(cache: Cache, chosen: Sequence[int]) -> Cache:
    """These entries alone."""
    return replace(
        cache,
        bucket_of=tuple(cache.bucket_of[i] for i in chosen),
        places=tuple(cache.places[i] for i in chosen),
        sizes={name: values[list(chosen)] for name, values in cache.sizes.items()},
        caption_rows=cache.caption_rows[list(chosen)],
    )


def recipe(sections: Mapping[str, Mapping[str, Any]]) -> Recipe:
    return Recipe.model_validate({"data": {"path": "images"}, **sections})


def denoiser_of(
    pipe: StableDiffusionXLPipeline,
    prediction_type: PredictionType = "epsilon",
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """As a job makes it, for noise that the base's own schedule mixes in."""
    return Denoiser(
        pipe.unet,
        dtype,
        pipe.scheduler.alphas_cumprod.float(),
        float(pipe.vae.config.scaling_factor),
        prediction_type,
    )


def live(pipe: StableDiffusionXLPipeline, captions: Sequence[str]) -> Texts:
    """Captions, and the empty one last, as the pipeline's own encoders see them now."""
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    ids = token_ids(pipe, [*captions, ""])
    return live_texts(SDXL, encoders, ids, bool(pipe.config.force_zeros_for_empty_prompt))


@dataclass(frozen=True, slots=True)
class Trainee:
    """An untrained adapter in the mini base, and the recipe that says how it is trained."""

    recipe: Recipe
    models: AdaptedPipeline

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self.models.parameters

    def groups(self) -> list[ParameterGroup]:
        block_rates = self.recipe.adapter.block_learning_rates
        return parameter_groups(self.recipe.optimizer, block_rates, self.parameters, SDXL)


def trainee(
    sections: Mapping[str, Mapping[str, Any]], pipe: StableDiffusionXLPipeline | None = None
) -> Trainee:
    """By default rank 4 in all attention, at a rate that shows after a few steps."""
    wanted = recipe(
        {
            **sections,
            "adapter": {"rank": 4, **sections.get("adapter", {})},
            "optimizer": {
                "learning_rate": 3e-3,
                "weight_decay": 0.0,
                **sections.get("optimizer", {}),
            },
        }
    )
    models = adapt(pipe or mini_pipe(), wanted.adapter, wanted.train.seed, None)
    return Trainee(wanted, models)


def values(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def train(
    who: Trainee,
    images: TrainingImages,
    folder: Path,
    section: TrainSection = PLAIN,
    *,
    prediction_type: PredictionType = "epsilon",
    prior: Prior | None = None,
    held_out: TrainingImages | None = None,
    **keys: Any,
) -> Run:
    """``train_adapter`` with the recipe's [adapter] and [optimizer]; the last step is saved.

    ``keys`` are of [train], by default a line in the log for each step.
    """
    run = Run(folder)
    folder.mkdir(parents=True)
    every = {"log_every": 1, "checkpoint_every": keys["steps"]}
    train_adapter(
        AdaptedModel(
            denoiser_of(who.models.pipe, prediction_type),
            who.models.modules,
            who.parameters,
            who.groups(),
            who.models.spec,
        ),
        TrainingData(images, held_out, prior),
        section_with(section, **{**every, **keys}),
        who.recipe.optimizer,
        output=RunOutput(
            run,
            Identity(**{field.name: field.name for field in fields(Identity)}),
            on_checkpoint=lambda _: None,
        ),
        accelerator=make_accelerator(TrainSection(), run),
        done=0,
    )
    return run


def section_with(section: TrainSection, **keys: Any) -> TrainSection:
    """The section with other keys, checked like any recipe."""
    return TrainSection(**{**section.model_dump(), **keys})


def lines_of(run: Run) -> list[dict[str, Any]]:
    """The run's log."""
    return [json.loads(line) for line in run.log_file.read_text().splitlines()]


def mean_error(
    who: Trainee, cache: Cache, texts: Texts, prediction_type: PredictionType = "epsilon"
) -> float:
    """Over the validation's timesteps, with its own noise."""
    images = TrainingImages(cache, texts, NAMES)
    found = validation_losses(denoiser_of(who.models.pipe, prediction_type), images, 4)
    return sum(found.values()) / len(found)


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step was given, after clipping, and what it made of the weights."""

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]

    @property
    def norm(self) -> float:
        return norm(self.gradients.values())


@contextmanager
def watched(who: Trainee) -> Iterator[list[Step]]:
    """Collects every optimizer step that is taken inside."""
    steps: list[Step] = []
    given: list[dict[str, Tensor]] = []

    def before(*_: object) -> None:
        given.append({n: p.grad.clone() for n, p in who.parameters.items() if p.grad is not None})

    def after(*_: object) -> None:
        steps.append(Step(given[-1], values(who.parameters)))

    hooks = (
        optimizers.register_optimizer_step_pre_hook(before),
        optimizers.register_optimizer_step_post_hook(after),
    )
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()


def norm(tensors: Any) -> float:
    return float(torch.cat([t.flatten() for t in tensors]).double().norm())

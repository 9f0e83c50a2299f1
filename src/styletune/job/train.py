"""The training stage: load the base, cache what it sees, hand both to the loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from styletune.job.adapt import AdaptedPipeline, adapt
from styletune.job.earlier import other_length
from styletune.job.encode import EncodedData, encode
from styletune.job.facts import begin_run, origin_facts
from styletune.job.job import Job, StartFile
from styletune.job.start_from import check_start, starting_values
from styletune.job.trainable import check_output, check_resumable, check_trainable
from styletune.models.families import family_of
from styletune.planning.preflight import configs_of, require_room
from styletune.planning.workload import DRAWN_AT_ONCE
from styletune.progress import notify
from styletune.recipe import Recipe, recipe_hash
from styletune.recipe.output_sections import PreviewSection
from styletune.recipe.training_sections import DreamboothSection, PredictionType
from styletune.runs import Run
from styletune.runs.documents import BaseFacts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from styletune.models.family import Conditioning
    from styletune.training.images import TrainingData, TrainingImages
    from styletune.training.loop import AdaptedModel
    from styletune.training.texts import Texts


def train(job: Job) -> bool:
    """Train to the last step; False when that had been done already.

    Raises as ``check_resumable``, ``require_room``, ``check_trainable``, ``check_output``,
    ``make_accelerator``, ``hold_run``, ``agreed_step``, ``train_adapter``, ``build_cache``,
    ``adapt`` and ``load_pipeline``.
    """
    recipe, section = job.recipe, job.recipe.train
    # Of several processes none leaves on its own: the others would wait for it.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    check_resumable(job.run, job.identity)
    if alone and job.is_trained:
        return False
    configs = configs_of(job.base)
    require_room(replace(job.workload, score=None), configs)
    trained = check_trainable(recipe, configs)
    if job.start_from is not None:
        check_start(job.start_from, recipe.adapter, configs.family, trained)
    check_output(job.run, recipe.optimizer, trained)
    import torch

    from styletune.sampling.session import DTYPES, open_pipeline
    from styletune.training.loop import RunOutput, train_adapter
    from styletune.training.processes import agreed_step, hold_run, make_accelerator
    from styletune.training.tracker import start_tracker

    accelerator = make_accelerator(section, job.run)
    with hold_run(job.run, accelerator):
        done = agreed_step(job.run, job.identity, recipe_hash(recipe), accelerator)
        if done >= section.steps:
            accelerator.end_training()
            return False
        # On the host first: encoding and a step are never on the card together.
        dtype = DTYPES[section.mixed_precision]
        with open_pipeline(job.base, dtype, "cpu", vae_dtype=torch.float32) as pipe:
            device, draws = str(accelerator.device), accelerator.is_main_process
            # The first process generates and encodes; the others then find its files.
            with _first_process_first(accelerator):
                if accelerator.is_main_process:
                    if earlier := other_length(job.run, recipe, job.identity, job.start_from):
                        notify(f"{earlier.severity}: {earlier.where}: {earlier.message}")
                        notify(f"  fix: {earlier.fix}")
                    shown = BaseFacts(
                        model=job.base.public_name, hash=job.base.hash, resolution=job.resolution
                    )
                    begin_run(job.run, job.loaded, job.identity.training_hash, shown, job.data)
                encoded = encode(job, pipe, device, draws)
            own = {"name": job.loaded.name, "dir": str(job.run.dir)}
            start_tracker(section, accelerator, recipe.model_dump(mode="json"), own)
            model, data = _model_and_data(
                pipe, recipe, job.prediction_type, job.start_from, encoded, device
            )
            origin = origin_facts(job.base, job.identity.training_hash)
            origin |= {"adapter": job.loaded.name}
            draw = _preview_drawer(pipe, recipe.preview, job.run, job.resolution, origin)
            train_adapter(
                model,
                data,
                section,
                recipe.optimizer,
                output=RunOutput(job.run, job.identity, draw),
                accelerator=accelerator,
                done=done,
            )
    accelerator.end_training()
    return True


def _model_and_data(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    prediction_type: PredictionType,
    start_from: StartFile | None,
    encoded: EncodedData,
    device: str,
) -> tuple[AdaptedModel, TrainingData]:
    """The base with its adapter on the device, and what it is trained on."""
    from styletune.models.checkpointing import set_checkpointing
    from styletune.sampling.session import DTYPES, TrainedAs, make_ready, place_for_training
    from styletune.training.denoise import Denoiser
    from styletune.training.groups import parameter_groups
    from styletune.training.loop import AdaptedModel

    section, adapter = recipe.train, recipe.adapter
    alphas = _alphas_cumprod(pipe.scheduler.alphas_cumprod, section.zero_terminal_snr)
    place_for_training(pipe, device, recipe.base.quantization, adapter.trains_text)
    new_tokens = adapter.new_tokens, adapter.new_tokens_init
    make_ready(pipe, TrainedAs(prediction_type, section.zero_terminal_snr, *new_tokens))
    start = None if start_from is None else starting_values(start_from, adapter, family_of(pipe))
    adapted = adapt(pipe, adapter, section.seed, start)
    set_checkpointing(pipe.unet, section.gradient_checkpointing)
    dtype, scale = DTYPES[section.mixed_precision], pipe.vae.config.scaling_factor
    block_rates, family = adapter.block_learning_rates, family_of(pipe)
    model = AdaptedModel(
        Denoiser(pipe.unet, dtype, alphas.to(device), scale, prediction_type),
        adapted.modules,
        adapted.parameters,
        parameter_groups(recipe.optimizer, block_rates, adapted.parameters, family),
        adapted.spec,
    )
    data = _training_data(adapted, encoded, recipe.dreambooth, live=adapter.trains_text)
    return model, data


@contextlib.contextmanager
def _first_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Let the first process write what the others then read."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    yield
    if accelerator.is_main_process:
        accelerator.wait_for_everyone()


def _alphas_cumprod(base: Tensor, zero_terminal: bool) -> Tensor:
    """ᾱ of every timestep, (timesteps,) float32: the base's, or ending in pure noise."""
    import torch

    from styletune.training.noise import zero_terminal_snr

    alphas = base.to(torch.float32)
    return zero_terminal_snr(alphas) if zero_terminal else alphas


def _training_data(
    adapted: AdaptedPipeline, encoded: EncodedData, dreambooth: DreamboothSection, live: bool
) -> TrainingData:
    """What was encoded; ``live`` has its captions encoded at every step, with gradients."""
    from styletune.adapters.inject import adapter_off
    from styletune.training.images import Prior, TrainingData

    images, held_out = encoded.images, encoded.held_out
    class_images, prior = encoded.class_images, None
    if live:
        images = _with_live_texts(images, adapted.pipe)
        held_out = held_out and _with_live_texts(held_out, adapted.pipe)
        class_images = class_images and _with_live_texts(class_images, adapted.pipe)
    if encoded.class_prompt is not None:
        base_text = _one_prompt(encoded.class_prompt, str(adapted.pipe.unet.device))
        text = _live_texts(adapted.pipe, [dreambooth.class_prompt or ""]) if live else base_text
        weight = dreambooth.prior_loss_weight
        off = partial(adapter_off, adapted.modules)
        prior = Prior(weight, class_images, text, base_text, off)
    return TrainingData(images, held_out, prior)


def _with_live_texts(images: TrainingImages, pipe: DiffusionPipeline) -> TrainingImages:
    return replace(images, texts=_live_texts(pipe, images.cache.captions))


def _live_texts(pipe: DiffusionPipeline, captions: Sequence[str]) -> Texts:
    from styletune.models.conditioning import empty_is_zero, text_encoders_of, token_ids
    from styletune.training.texts import live_texts

    encoders = text_encoders_of(pipe)
    device = next(encoders[0].parameters()).device
    ids = [each.to(device) for each in token_ids(pipe, [*captions, ""])]
    return live_texts(family_of(pipe), encoders, ids, empty_is_zero(pipe))


def _one_prompt(encoded: Conditioning, device: str) -> Texts:
    """The same words for every row."""
    placed = encoded.map(lambda tensor: tensor.to(device))
    return lambda rows: placed.repeated(len(rows))


# -- previews -------------------------------------------------------------------------------------


def _preview_drawer(
    pipe: DiffusionPipeline,
    preview: PreviewSection,
    run: Run,
    side: int,
    origin: Mapping[str, object],
) -> Callable[[int], None]:
    """A function that draws the previews of a step; it does nothing without prompts."""
    from styletune.sampling.images import generate_images
    from styletune.sampling.shots import Sampler, square_shot

    sampler = Sampler(preview.steps, 5.0)

    def draw(step: int) -> None:
        if not preview.prompts:
            return
        shots = [
            square_shot(prompt, preview.seed + i, run.preview_file(step, i), side)
            for i, prompt in enumerate(preview.prompts)
        ]
        facts = {**origin, "step": step, "strength": 1.0}
        title = f"preview {step}"
        generate_images(pipe, shots, sampler, facts, batch_size=DRAWN_AT_ONCE, title=title)

    return draw

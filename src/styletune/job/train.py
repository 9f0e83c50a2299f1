"""The training stage: load the base, cache what it sees, hand both to the loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from styletune.errors import BadInput
from styletune.job.adapt import Models, adapt, block_factors, parameter_groups
from styletune.job.encode import Encoded, Seen, encode, trains_text
from styletune.job.facts import begin_run, origin_facts
from styletune.job.prepare import Job, job_setup
from styletune.models.schedule import resolve_prediction_type
from styletune.planning.preflight import DRAWN_AT_ONCE, configs_of, require_room
from styletune.recipe import Recipe, recipe_hash

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from styletune.adapters.file import AdapterSpec
    from styletune.models.conditioning import Conditioning
    from styletune.training.denoise import Denoiser, NoiseSettings, Texts
    from styletune.training.loop import LoopSettings, Material, Prior
    from styletune.training.optimizer import OptimizerSettings


def train(job: Job) -> bool:
    """Train to the last step; False when that had been done already.

    Raises as ``make_accelerator``, ``hold_run``, ``agreed_step``, ``train_adapter``,
    ``build_cache``, ``adapt`` and ``load_pipeline``.
    """
    recipe = job.recipe
    # Of several processes none leaves on its own: the others would wait for it.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if alone and max(job.run.checkpoint_steps(), default=0) >= recipe.train.steps:
        return False
    setup, configs = replace(job_setup(job), score_batch=0), configs_of(job.base)
    require_room(setup, configs)
    if recipe.adapter.block_learning_rates:
        from styletune.planning.memory import trained_names

        block_factors(recipe, trained_names(setup, configs))
    from styletune.training.processes import agreed_step, hold_run, make_accelerator

    accelerator = make_accelerator(recipe.train.mixed_precision, recipe.train.tracker, job.run)
    with hold_run(job.run, accelerator):
        done = agreed_step(job.run, job.identity, recipe_hash(recipe), accelerator)
        unfinished = done < recipe.train.steps
        if unfinished:
            _train_from(job, done, accelerator)
    accelerator.end_training()
    return unfinished


def _train_from(job: Job, done: int, accelerator: Accelerator) -> None:
    """Train on from the checkpoint after ``done`` steps, or from nothing if that is 0."""
    import torch

    from styletune.sampling.session import DTYPES, open_pipeline

    dtype = DTYPES[job.recipe.train.mixed_precision]
    # On the host first: encoding and a step are never on the card together.
    with open_pipeline(job.base, dtype, "cpu", vae_dtype=torch.float32) as pipe:
        _train_pipeline(job, pipe, done, accelerator)


def _train_pipeline(job: Job, pipe: DiffusionPipeline, done: int, accelerator: Accelerator) -> None:
    from styletune.models.checkpointing import set_checkpointing
    from styletune.sampling.session import DTYPES, TrainedAs, make_ready, place_for_training
    from styletune.training.loop import train_adapter

    recipe = job.recipe
    device, dtype = str(accelerator.device), DTYPES[recipe.train.mixed_precision]
    prediction = resolve_prediction_type(
        recipe.train.prediction_type,
        pipe.scheduler.config.prediction_type,
        recipe.train.zero_terminal_snr,
    )
    alphas = pipe.scheduler.alphas_cumprod
    # The first process draws and encodes; the others then find its files.
    with _first_process_first(accelerator):
        if accelerator.is_main_process:
            begin_run(job)
        seen = encode(job, pipe, device, draws=accelerator.is_main_process)
    _start_tracker(job, accelerator)
    place_for_training(pipe, device, recipe.base.quantization, trains_text(recipe))
    section = recipe.adapter
    trained_as = TrainedAs(
        prediction, recipe.train.zero_terminal_snr, section.new_tokens, section.new_tokens_init
    )
    make_ready(pipe, trained_as)
    models = adapt(recipe, pipe, job.start_from)
    groups = parameter_groups(recipe, models.parameters, job.base.family)
    set_checkpointing(pipe.unet, recipe.train.gradient_checkpointing)
    denoiser = _denoiser(job, pipe, alphas, prediction, dtype, device)
    held_out = _material(job, models, seen.held_out) if seen.held_out else None
    train_adapter(
        denoiser=denoiser,
        parameters=models.parameters,
        groups=groups,
        optimizer_settings=_optimizer_settings(recipe),
        noise=_noise_settings(recipe),
        material=_material(job, models, seen.images),
        held_out=held_out,
        prior=_prior(job, models, seen),
        settings=_loop_settings(recipe),
        spec_at=lambda step: _spec_at(job, models.spec, step),
        identity=job.identity,
        run=job.run,
        accelerator=accelerator,
        done=done,
        on_checkpoint=_preview_drawer(job, models),
        set_training=models.set_training,
    )


@contextlib.contextmanager
def _first_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Let the first process write what the others then read."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    yield
    if accelerator.is_main_process:
        accelerator.wait_for_everyone()


def _start_tracker(job: Job, accelerator: Accelerator) -> None:
    train = job.recipe.train
    if train.tracker == "none":
        return
    try:
        accelerator.init_trackers(
            train.tracker_project,
            config=job.recipe.model_dump(mode="json"),
            init_kwargs={"wandb": {"name": job.loaded.name, "dir": str(job.run.dir)}},
        )
    except Exception as error:
        raise BadInput(
            f"{train.tracker} does not start: {error}",
            where="[train] tracker",
            fix="wandb login, or WANDB_MODE=offline",
        ) from error


def _denoiser(
    job: Job,
    pipe: DiffusionPipeline,
    alphas: Tensor,
    prediction: str,
    dtype: object,
    device: str,
) -> Denoiser:
    import torch

    from styletune.training.denoise import Denoiser, Objective
    from styletune.training.noise import zero_terminal_snr

    train = job.recipe.train
    assert isinstance(dtype, torch.dtype)
    alphas = alphas.to(torch.float32)
    return Denoiser(
        unet=pipe.unet,
        dtype=dtype,
        alphas_cumprod=(zero_terminal_snr(alphas) if train.zero_terminal_snr else alphas).to(
            device
        ),
        scaling_factor=pipe.vae.config.scaling_factor,
        objective=Objective(
            prediction_type=prediction,
            weighting=train.weighting,
            snr_gamma=train.snr_gamma,
            loss=train.loss,
            huber_delta=train.huber_delta,
        ),
    )


def _material(job: Job, models: Models, encoded: Encoded) -> Material:
    """A cache with a way to turn its captions into inputs."""
    from styletune.training.denoise import cached_texts
    from styletune.training.loop import Material

    cache = encoded.cache
    texts = _live(models, cache.captions) if trains_text(job.recipe) else cached_texts(cache)
    return Material(cache, texts, encoded.names, encoded.repeats, encoded.weights)


def _live(models: Models, captions: Sequence[str]) -> Texts:
    from styletune.models.conditioning import empty_is_zero, text_encoders_of, token_ids
    from styletune.models.families import family_of
    from styletune.training.denoise import live_texts

    pipe = models.pipe
    encoders = text_encoders_of(pipe)
    device = next(encoders[0].parameters()).device
    ids = [each.to(device) for each in token_ids(pipe, [*captions, ""])]
    return live_texts(family_of(pipe), encoders, ids, empty_is_zero(pipe))


def _prior(job: Job, models: Models, seen: Seen) -> Prior | None:
    from styletune.adapters.inject import adapter_off
    from styletune.training.loop import Prior

    section = job.recipe.dreambooth
    if seen.class_prompt is None:
        return None
    plain = _one_prompt(seen.class_prompt, str(models.pipe.unet.device))
    adapted = _live(models, [section.class_prompt or ""]) if trains_text(job.recipe) else plain
    return Prior(
        weight=section.prior_loss_weight,
        images=_material(job, models, seen.class_images) if seen.class_images else None,
        prompt=adapted,
        base_prompt=plain,
        adapter_off=lambda: adapter_off(models.adapted),
    )


def _one_prompt(encoded: Conditioning, device: str) -> Texts:
    """The same words for every row."""
    placed = encoded.map(lambda tensor: tensor.to(device))
    return lambda rows: placed.repeated(len(rows))


# -- settings -------------------------------------------------------------------------------------


def _optimizer_settings(recipe: Recipe) -> OptimizerSettings:
    from styletune.training.optimizer import OptimizerSettings

    section = recipe.optimizer
    return OptimizerSettings(
        name=section.name,
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        beta1=section.beta1,
        beta2=section.beta2,
        schedule=section.schedule,
        schedule_power=section.schedule_power,
        warmup_steps=section.warmup_steps,
        steps=recipe.train.steps,
        lora_plus_ratio=section.lora_plus_ratio,
        max_grad_norm=section.max_grad_norm,
    )


def _noise_settings(recipe: Recipe) -> NoiseSettings:
    from styletune.training.denoise import NoiseSettings

    section = recipe.train
    return NoiseSettings(
        caption_dropout=section.caption_dropout,
        timestep_sampling=section.timestep_sampling,
        min_timestep=section.min_timestep,
        max_timestep=section.max_timestep,
        noise_offset=section.noise_offset,
        pyramid_noise=section.pyramid_noise,
        input_perturbation=section.input_perturbation,
    )


def _loop_settings(recipe: Recipe) -> LoopSettings:
    from styletune.training.loop import LoopSettings

    section = recipe.train
    return LoopSettings(
        steps=section.steps,
        batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        seed=section.seed,
        ema_decay=recipe.optimizer.ema_decay,
        checkpoint_every=section.checkpoint_every,
        keep_last=section.keep_last,
        validation_every=section.validation_every,
        log_every=section.log_every,
    )


def _spec_at(job: Job, spec: AdapterSpec, step: int) -> AdapterSpec:
    identity = job.identity
    return replace(spec, base_hash=identity.base_hash, recipe_hash=identity.recipe_hash, step=step)


# -- previews -------------------------------------------------------------------------------------


def _preview_drawer(job: Job, models: Models) -> Callable[[int], None]:
    from styletune.sampling.images import generate_images
    from styletune.sampling.shots import Sampler, square_shot

    preview, pipe = job.recipe.preview, models.pipe
    sampler = Sampler(preview.steps, 5.0)

    def draw(step: int) -> None:
        if not preview.prompts:
            return
        files = [
            job.run.previews_dir / f"step-{step:06d}-{i:02d}.png"
            for i in range(len(preview.prompts))
        ]
        shots = [
            square_shot(prompt, preview.seed + i, file, job.resolution)
            for i, (prompt, file) in enumerate(zip(preview.prompts, files, strict=True))
        ]
        origin = {**origin_facts(job), "adapter": job.loaded.name, "step": step, "strength": 1.0}
        generate_images(
            pipe, shots, sampler, origin, batch_size=DRAWN_AT_ONCE, title=f"preview {step}"
        )

    return draw

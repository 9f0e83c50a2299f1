"""The loop: entries -> micro-batches -> losses -> gradients -> one optimizer step.

Everything random is a function of (seed, step, position), so the state of a run is the trained
weights and the optimizer, and N processes see what one would.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from styletune.adapters.file import AdapterSpec
from styletune.progress import progress
from styletune.runs import Run
from styletune.runs.log import LogLine, open_log
from styletune.training.batches import step_batch
from styletune.training.cache import Cache
from styletune.training.checkpoint import (
    Identity,
    Trained,
    assert_finite,
    averaged_weights,
    restore_checkpoint,
    save_checkpoint,
)
from styletune.training.denoise import (
    Denoiser,
    NoiseSettings,
    Texts,
    draw,
    losses,
    noised_inputs,
    prior_losses,
)
from styletune.training.ema import ema_start, ema_update
from styletune.training.optimizer import (
    Group,
    OptimizerSettings,
    make_optimizer,
    set_rates,
    to_train,
)
from styletune.training.processes import share_gradients, summed
from styletune.training.validation import validation_losses

# Class samples draw their noise from positions that no image of the brand reaches.
CLASS_POSITION = 1 << 24


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The numbers of a training run; the recipe explains each."""

    steps: int
    batch_size: int
    gradient_accumulation_steps: int
    seed: int
    ema_decay: float
    checkpoint_every: int
    keep_last: int | None
    validation_every: int
    log_every: int


@dataclass(frozen=True)
class Material:
    """A cache, its captions' embeddings, and a name for each entry (for errors).

    An epoch shows entry i ``repeats[i]`` times, and its loss counts ``weights[i]``; all alike if
    they are left out.
    """

    cache: Cache
    texts: Texts
    names: list[str]
    repeats: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @functools.cached_property
    def shown(self) -> tuple[int, ...]:
        """The entries of an epoch, each as often as it is repeated."""
        repeats = self.repeats or (1,) * self.cache.num_entries
        return tuple(entry for entry, times in enumerate(repeats) for _ in range(times))

    @functools.cached_property
    def shown_buckets(self) -> tuple[int, ...]:
        """The bucket of each of ``shown``."""
        return tuple(self.cache.bucket_of[entry] for entry in self.shown)


@dataclass(frozen=True, slots=True)
class Prior:
    """Prior preservation (arXiv 2208.12242, equation 2).

    With ``images`` the class is drawn from them. Without, the brand's own latents are shown with
    the class's words (``prompt``, one row) and the target is what the base model predicts
    (``base_prompt``, the same words as the base's encoders see them).
    """

    weight: float
    images: Material | None
    prompt: Texts
    base_prompt: Texts
    adapter_off: Callable[[], contextlib.AbstractContextManager[None]]


def train_adapter(
    *,
    denoiser: Denoiser,
    parameters: Mapping[str, nn.Parameter],
    groups: list[Group],
    optimizer_settings: OptimizerSettings,
    noise: NoiseSettings,
    material: Material,
    held_out: Material | None,
    prior: Prior | None,
    settings: LoopSettings,
    spec_at: Callable[[int], AdapterSpec],
    identity: Identity,
    run: Run,
    accelerator: Accelerator,
    done: int,
    on_checkpoint: Callable[[int], None],
    set_training: Callable[[bool], None],
) -> None:
    """Train to ``settings.steps``, going on from the checkpoint after ``done`` steps.

    On one CPU the final adapter has the same bytes whether or not the run was interrupted.

    Args:
        denoiser: the UNet with its adapter, and the objective.
        parameters: everything that is trained, by its name in an adapter file.
        groups: the same parameters with their rates.
        optimizer_settings: optimizer, rates and clipping.
        noise: what is drawn.
        settings: steps, batches, and what is written when.
        material: the images to train on.
        held_out: images for the validation loss, or None.
        prior: prior preservation, or None.
        spec_at: the header of the adapter after a step.
        identity: what checkpoints are stamped with and checked against.
        run: where checkpoints and the log go.
        accelerator: from ``make_accelerator``.
        done: the step of the last whole checkpoint, or 0; the same in every process.
        on_checkpoint: called with the step after each checkpoint, averaged weights in place.
        set_training: puts the trained models into training or evaluation mode.

    Raises:
        Conflict, IntegrityError: the checkpoint to go on from is another run's, or damaged.
        CheckFailed: a loss, gradient or weight is NaN or infinite.
        OutputError: a checkpoint cannot be written.
    """
    main = accelerator.is_main_process
    clipped = [p for g in groups if g.rate_factor for p in g.parameters.values()]
    inner = make_optimizer(groups, optimizer_settings)
    ema = ema_start(parameters) if settings.ema_decay else None
    trained = Trained(parameters, inner, ema, accelerator.scaler, accelerator.num_processes)
    set_training(True)
    to_train(inner)
    optimizer = accelerator.prepare(inner)
    if main:
        run.remove_leftovers()
    if done:
        # After prepare, which copies a state and would take paged moments out of their pages.
        restore_checkpoint(run, done, trained, identity)
        if main:
            _look(trained, set_training, lambda: on_checkpoint(done))
    log = open_log(run, done) if main else _silent
    started, images = time.monotonic(), 0
    unchecked: list[StepResult] = []
    with progress("train", settings.steps, done, shown=main) as advance:
        for step in range(done, settings.steps):
            batch = _step_batches(settings, accelerator.num_processes, material, step)
            result = _backward(denoiser, material, prior, noise, settings, accelerator, step, batch)
            share_gradients(parameters, accelerator)
            # Parts of rate 0 are not trained: their gradients must not shrink the others'.
            grad_norm = accelerator.clip_grad_norm_(clipped, optimizer_settings.max_grad_norm)
            unchecked.append(replace(result, grad_norm=grad_norm))
            rate = set_rates(inner, step, optimizer_settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema_update(ema, parameters, settings.ema_decay, step)

            now = step + 1
            images += sum(map(len, batch))
            is_last = now == settings.steps
            is_checkpoint = now % settings.checkpoint_every == 0 or is_last
            is_validation = settings.validation_every and (
                now % settings.validation_every == 0 or is_last
            )
            note, line = "", {}
            if now % settings.log_every == 0 or is_checkpoint or is_validation:
                # Values are fetched only here: every fetch waits for the device.
                _require_finite(unchecked, material.names, accelerator.scaler is not None)
                unchecked = []
                values = {"loss": summed(result.loss, accelerator)}
                if prior is not None:
                    values["prior_loss"] = summed(result.prior_loss, accelerator)
                speed = images / (time.monotonic() - started)
                line = {
                    **values,
                    "learning_rate": rate,
                    # An overflow under fp16 scaling is skipped by the scaler; JSON has no infinity.
                    "grad_norm": float(grad_norm) if math.isfinite(grad_norm) else None,
                    "images_per_s": round(speed, 3),
                }
                note = f"loss {values['loss']:.4f}, {speed:.1f} images/s"
            if is_validation and held_out is not None and main:
                line |= _validate(trained, denoiser, held_out, settings.batch_size, set_training)
            if line:
                log(LogLine.model_validate({"step": now, **line}))
                accelerator.log({k: v for k, v in line.items() if isinstance(v, float)}, step=now)
            advance(1, note)
            if is_checkpoint and main:
                save_checkpoint(run, now, trained, spec_at(now), identity, settings.keep_last)
                _look(trained, set_training, functools.partial(on_checkpoint, now))
    set_training(False)


def _step_batches(
    settings: LoopSettings, processes: int, material: Material, step: int
) -> list[list[int]]:
    """The step's micro-batches of all processes: lists of entries, each of one bucket."""
    places = [
        step_batch(
            settings.seed,
            step,
            micro,
            bucket_of=material.shown_buckets,
            batch_size=settings.batch_size * processes,
            accumulation=settings.gradient_accumulation_steps,
        )
        for micro in range(settings.gradient_accumulation_steps)
    ]
    return [[material.shown[place] for place in micro] for micro in places]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave, on the device: nothing here has been waited for.

    ``loss`` and the unweighted ``prior_loss`` are this process's share; ``samples`` its samples'
    losses, one a member of ``entries``; ``others`` the entries of all processes.
    """

    step: int
    loss: Tensor
    prior_loss: Tensor
    samples: Tensor
    entries: list[int]
    others: list[int]
    grad_norm: Tensor | None = None


def _backward(
    denoiser: Denoiser,
    material: Material,
    prior: Prior | None,
    noise: NoiseSettings,
    settings: LoopSettings,
    accelerator: Accelerator,
    step: int,
    batch: list[list[int]],
) -> StepResult:
    """Add up the gradients of this process's share.

    Every sample of the step counts alike, so the sum over processes and micro-batches is the
    mean over the step.
    """
    device = denoiser.alphas_cumprod.device
    total, total_prior = torch.zeros((), device=device), torch.zeros((), device=device)
    samples, seen = [torch.zeros(0, device=device)], list[int]()
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    size = settings.batch_size * accelerator.num_processes
    count = sum(map(len, batch))
    for micro, every in enumerate(batch):
        entries = every[mine]
        if not entries:
            continue  # a ragged batch smaller than the number of processes
        positions = [micro * size + i for i in range(len(every))[mine]]
        each = _instance_losses(denoiser, material, noise, settings.seed, step, entries, positions)
        loss = each.sum() / count
        total += loss.detach()
        if prior is not None:
            priors = _prior_losses(
                denoiser, material, prior, noise, settings.seed, step, entries, positions
            )
            each = each + prior.weight * priors
            prior_loss = priors.sum() / count
            total_prior += prior_loss.detach()
            loss = loss + prior.weight * prior_loss
        samples.append(each.detach())
        seen += entries
        accelerator.backward(loss)
    others = [entry for micro in batch for entry in micro]
    return StepResult(step + 1, total, total_prior, torch.cat(samples), seen, others)


def _require_finite(results: list[StepResult], names: list[str], scaled: bool) -> None:
    """Stop at the first step that went wrong since the last look, and name its images.

    An overflow of the gradients under fp16 scaling is no fault: the scaler skips the step.

    Raises:
        CheckFailed: a loss or a gradient is NaN or infinite.
    """
    for result in results:
        bad = ~torch.isfinite(result.samples)
        if bool(bad.any()):
            theirs = itertools.compress(result.entries, bad.tolist())
            value = float(result.samples[bad][0])
            assert_finite(value, "loss", result.step, [names[entry] for entry in theirs])
        if result.grad_norm is not None and not scaled:
            value = float(result.grad_norm)
            assert_finite(value, "gradient norm", result.step, [names[e] for e in result.others])


def _instance_losses(
    denoiser: Denoiser,
    material: Material,
    noise: NoiseSettings,
    seed: int,
    step: int,
    entries: list[int],
    positions: list[int],
) -> Tensor:
    cache = material.cache
    shape = cache.latent_shape(cache.bucket_of[entries[0]])
    drawn = draw(noise, denoiser, seed, step, positions, shape)
    inputs = noised_inputs(denoiser, cache, entries, drawn)
    found = losses(denoiser, inputs, material.texts(inputs.text_rows))
    if any(weight != 1 for weight in material.weights):
        found = found * found.new_tensor([material.weights[entry] for entry in entries])
    return found


def _prior_losses(
    denoiser: Denoiser,
    material: Material,
    prior: Prior,
    noise: NoiseSettings,
    seed: int,
    step: int,
    entries: list[int],
    positions: list[int],
) -> Tensor:
    """As many class samples as there are images in the micro-batch."""
    apart = [CLASS_POSITION + p for p in positions]
    if prior.images is not None:
        count = prior.images.cache.num_entries
        # Positions are unique within a step, so a step sees different class images.
        chosen = [(step * 10007 + p) % count for p in positions]
        return _instance_losses(denoiser, prior.images, noise, seed, step, chosen, apart)
    cache = material.cache
    shape = cache.latent_shape(cache.bucket_of[entries[0]])
    drawn = draw(noise, denoiser, seed, step, apart, shape)
    inputs = noised_inputs(denoiser, cache, entries, drawn)
    rows = torch.zeros(len(entries), dtype=torch.long)
    return prior_losses(
        denoiser, inputs, prior.prompt(rows), prior.adapter_off, prior.base_prompt(rows)
    )


def _validate(
    trained: Trained,
    denoiser: Denoiser,
    held_out: Material,
    batch_size: int,
    set_training: Callable[[bool], None],
) -> dict[str, float]:
    found: dict[int, float] = {}

    def measure() -> None:
        found.update(validation_losses(denoiser, held_out.cache, held_out.texts, batch_size))

    _look(trained, set_training, measure)
    named = {f"validation_loss/{t}": v for t, v in found.items()}
    return {"validation_loss": sum(found.values()) / len(found), **named}


def _look(
    trained: Trained, set_training: Callable[[bool], None], look: Callable[[], object]
) -> None:
    """Do something with the weights as they would be used, and put everything back."""
    set_training(False)
    with averaged_weights(trained):
        look()
    set_training(True)


def _silent(line: LogLine) -> None:
    """Only the first process keeps the log."""

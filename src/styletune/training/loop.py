"""The loop: entries -> micro-batches -> losses -> gradients -> one optimizer step.

Everything random is a function of (seed, step, position), so the state of a run is the trained
weights and the optimizer, and N processes see what one would.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from styletune.adapters.file import AdapterSpec
from styletune.progress import progress
from styletune.recipe.training_sections import OptimizerSection, TrainSection
from styletune.runs import Run
from styletune.runs.log import LogLine, open_log
from styletune.training.batches import MicroBatch, micro_batches
from styletune.training.checkpoint import (
    TrainingState,
    assert_finite,
    averaged_weights,
    restore_checkpoint,
    save_checkpoint,
)
from styletune.training.denoise import Denoiser, class_losses, image_losses
from styletune.training.ema import ema_start, ema_update
from styletune.training.groups import ParameterGroup
from styletune.training.identity import Identity
from styletune.training.images import TrainingData, TrainingImages
from styletune.training.optimizer import learning_rate_at, make_optimizer, set_rates, to_train
from styletune.training.processes import share_gradients, summed
from styletune.training.validation import validation_losses


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """The base model with an adapter in place, and what of it is trained.

    ``modules`` are the models that have an adapter, by component; ``parameters`` everything that
    is trained, by its name in an adapter file, and ``groups`` the same with their rates;
    ``spec`` is what the parameters mean.
    """

    denoiser: Denoiser
    modules: Mapping[str, nn.Module]
    parameters: Mapping[str, nn.Parameter]
    groups: Sequence[ParameterGroup]
    spec: AdapterSpec

    def set_training(self, on: bool) -> None:
        """Put the adapted modules into training or evaluation mode."""
        for module in self.modules.values():
            module.train(on)


@dataclass(frozen=True, slots=True)
class RunOutput:
    """Where a training writes: its run folder, and what its checkpoints are stamped with.

    ``on_checkpoint`` is called with the step after each checkpoint, averaged weights in place.
    """

    run: Run
    identity: Identity
    on_checkpoint: Callable[[int], None]


def train_adapter(
    model: AdaptedModel,
    data: TrainingData,
    train: TrainSection,
    optimizer_section: OptimizerSection,
    *,
    output: RunOutput,
    accelerator: Accelerator,
    done: int,
) -> None:
    """Train to ``train.steps``, resuming from the checkpoint after ``done`` steps.

    On one CPU the final adapter has the same bytes whether or not the run was interrupted.

    Args:
        model: what is trained, on the accelerator's device.
        data: the images to train on, held-out ones and the prior.
        train: steps, batches, noise and objective, and what is written when.
        optimizer_section: optimizer, rates, clipping and average.
        output: where checkpoints and the log go.
        accelerator: from ``make_accelerator``.
        done: the step of the last whole checkpoint, or 0; the same in every process.

    Raises:
        Conflict, IntegrityError: the checkpoint to resume from is another run's, or damaged.
        CheckFailed: a loss, gradient or weight is NaN or infinite.
        OutputError: a checkpoint cannot be written.
    """
    main, processes = accelerator.is_main_process, accelerator.num_processes
    run, parameters, images = output.run, model.parameters, data.images
    # Parts of rate 0 are not trained: their gradients must not shrink the others'.
    clipped = [p for g in model.groups if g.rate_factor for p in g.parameters.values()]
    inner = make_optimizer(model.groups, optimizer_section)
    ema = ema_start(parameters) if optimizer_section.ema_decay else None
    state = TrainingState(parameters, inner, ema, accelerator.scaler, processes)
    model.set_training(True)
    to_train(inner)
    optimizer = accelerator.prepare(inner)
    if main:
        run.remove_leftovers()
    if done:
        # After prepare, which copies a state and would take paged moments out of their pages.
        restore_checkpoint(run, done, state, output.identity)
        if main:
            with evaluation(model, state):
                output.on_checkpoint(done)
    log = open_log(run, done) if main else _silent
    checkpoints = train.checkpoint_steps
    started, num_images = time.monotonic(), 0
    unchecked: list[StepResult] = []
    with progress("train", train.steps, done, shown=main) as advance:
        for step in range(done, train.steps):
            batches = micro_batches(train, step, images.epoch, images.epoch_buckets, processes)
            result = _backward(model.denoiser, train, data, batches, accelerator)
            share_gradients(parameters, accelerator)
            grad_norm = accelerator.clip_grad_norm_(clipped, optimizer_section.max_grad_norm)
            unchecked.append(replace(result, grad_norm=grad_norm))
            rate = learning_rate_at(step, optimizer_section, train.steps)
            set_rates(inner, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema_update(ema, parameters, optimizer_section.ema_decay, step)

            now = step + 1
            num_images += len(result.all_entries)
            is_checkpoint = now in checkpoints
            is_validation = train.validation_every and (
                now % train.validation_every == 0 or now == train.steps
            )
            note, line = "", {}
            if now % train.log_every == 0 or is_checkpoint or is_validation:
                # Values are fetched only here: every fetch waits for the device.
                _require_finite(unchecked, images.names, accelerator.scaler is not None)
                unchecked = []
                values = {"loss": summed(result.loss, accelerator)}
                if data.prior is not None:
                    values["prior_loss"] = summed(result.prior_loss, accelerator)
                speed = num_images / (time.monotonic() - started)
                line = {
                    **values,
                    "learning_rate": rate,
                    # An overflow under fp16 scaling is skipped by the scaler; JSON has no infinity.
                    "grad_norm": float(grad_norm) if math.isfinite(grad_norm) else None,
                    "images_per_s": round(speed, 3),
                }
                note = f"loss {values['loss']:.4f}, {speed:.1f} images/s"
            if is_validation and data.held_out is not None and main:
                with evaluation(model, state):
                    line |= _validate(model.denoiser, data.held_out, train.batch_size)
            if line:
                log(LogLine.model_validate({"step": now, **line}))
                accelerator.log({k: v for k, v in line.items() if isinstance(v, float)}, step=now)
            advance(1, note)
            if is_checkpoint and main:
                save_checkpoint(run, now, state, model.spec, output.identity, train.keep_last)
                with evaluation(model, state):
                    output.on_checkpoint(now)
    model.set_training(False)


@contextlib.contextmanager
def evaluation(model: AdaptedModel, state: TrainingState) -> Iterator[None]:
    """Put the weights that would be used in place inside the block, in evaluation mode."""
    model.set_training(False)
    with averaged_weights(state):
        yield
    model.set_training(True)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The losses of a step (1-based), on the device: nothing here has been waited for.

    ``loss`` and the unweighted ``prior_loss`` are 0-d, this process's share of the step's mean;
    ``samples`` the losses of its samples, one for each of ``entries``; ``all_entries`` are those
    of all processes; ``grad_norm`` is 0-d, before clipping.
    """

    step: int
    loss: Tensor
    prior_loss: Tensor
    samples: Tensor
    entries: list[int]
    all_entries: list[int]
    grad_norm: Tensor | None = None


def _backward(
    denoiser: Denoiser,
    train: TrainSection,
    data: TrainingData,
    batches: Sequence[MicroBatch],
    accelerator: Accelerator,
) -> StepResult:
    """Add up the gradients of this process's share.

    Every sample of the step counts alike, so the sum over processes and micro-batches is the
    mean over the step.
    """
    device = denoiser.alphas_cumprod.device
    total, total_prior = torch.zeros((), device=device), torch.zeros((), device=device)
    samples: list[Tensor] = [torch.zeros(0, device=device)]
    entries: list[int] = []
    all_entries = [entry for batch in batches for entry in batch.entries]
    for batch in batches:
        own = batch.share(accelerator.process_index, accelerator.num_processes)
        if not own.entries:
            continue  # a ragged batch smaller than the number of processes
        losses = image_losses(denoiser, train, data.images, own)
        loss = losses.sum() / len(all_entries)
        total += loss.detach()
        if data.prior is not None:
            priors = class_losses(denoiser, train, data.images, data.prior, own)
            losses = losses + data.prior.weight * priors
            prior_loss = priors.sum() / len(all_entries)
            total_prior += prior_loss.detach()
            loss = loss + data.prior.weight * prior_loss
        samples.append(losses.detach())
        entries += own.entries
        accelerator.backward(loss)
    step = batches[0].step + 1
    return StepResult(step, total, total_prior, torch.cat(samples), entries, all_entries)


def _require_finite(results: list[StepResult], names: list[str], scaled: bool) -> None:
    """Stop at the first step that went wrong since the last check, and name its images.

    An overflow of the gradients under fp16 scaling is no fault: the scaler skips the step.

    Raises:
        CheckFailed: a loss or a gradient is NaN or infinite.
    """
    for result in results:
        bad = ~torch.isfinite(result.samples)
        if bool(bad.any()):
            affected = itertools.compress(result.entries, bad.tolist())
            value = float(result.samples[bad][0])
            assert_finite(value, "loss", result.step, [names[entry] for entry in affected])
        if result.grad_norm is not None and not scaled:
            value = float(result.grad_norm)
            all_names = [names[entry] for entry in result.all_entries]
            assert_finite(value, "gradient norm", result.step, all_names)


def _validate(denoiser: Denoiser, held_out: TrainingImages, batch_size: int) -> dict[str, float]:
    losses = validation_losses(denoiser, held_out, batch_size)
    by_timestep = {f"validation_loss/{t}": loss for t, loss in losses.items()}
    return {"validation_loss": sum(losses.values()) / len(losses), **by_timestep}


def _silent(line: LogLine) -> None:
    """Only the first process keeps the log."""

"""The loop: cached latents -> noise -> UNet -> loss -> adapter.

Shapes: b batch, h/w latent height and width.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from styletune.errors import BadInput
from styletune.progress import progress
from styletune.runs import Run, output_errors, write_text
from styletune.sdxl.adapter import AdapterSpec, adapter_parameters, inject_adapter
from styletune.sdxl.latents import sample_latents
from styletune.training.cache import Cache
from styletune.training.checkpoint import (
    Identity,
    assert_finite,
    restore_checkpoint,
    save_checkpoint,
)
from styletune.training.noise import add_noise, batch_rows, draw_batch
from styletune.training.objectives import diffusion_loss, min_snr_weights
from styletune.training.optimizer import learning_rate_at, make_optimizer


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The numbers of a training run; the recipe explains each."""

    steps: int
    batch_size: int
    seed: int
    snr_gamma: float
    caption_dropout: float
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    max_grad_norm: float
    checkpoint_every: int
    log_every: int


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    modules: list[str]
    rank: int
    alpha: float


def make_accelerator(mixed_precision: str, tracker: str, run: Run) -> Accelerator:
    """Accelerate with our own precision policy: it scales fp16 losses, we place the dtypes.

    Raises:
        BadInput: fp16 without a GPU, several processes, or a tracker that is not installed.
    """
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise BadInput(
            "fp16 needs a GPU", where="[train] mixed_precision", fix='choose "no" or "bf16"'
        )
    if tracker == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise BadInput(
                "wandb is not installed", where="[train] tracker",
                fix='pip install "styletune[wandb]"',
            ) from None  # fmt: skip
    accelerator = Accelerator(
        mixed_precision="fp16" if mixed_precision == "fp16" else "no",
        log_with=None if tracker == "none" else tracker,
        project_dir=str(run.dir),
    )
    if accelerator.num_processes > 1:
        raise BadInput("training in several processes is not supported yet", fix="run one process")
    return accelerator


def train_adapter(
    *,
    unet: nn.Module,
    alphas_cumprod: Tensor,
    scaling_factor: float,
    cache: Cache,
    file_names: list[str],
    adapter: AdapterSettings,
    settings: LoopSettings,
    identity: Identity,
    run: Run,
    accelerator: Accelerator,
    on_checkpoint: Callable[[int], None],
) -> None:
    """Train the adapter to ``settings.steps``, going on from the last whole checkpoint.

    On one CPU the final adapter has the same bytes whether or not the run was interrupted.

    Args:
        unet: frozen; the adapter is injected here and stays in it.
        alphas_cumprod: (timesteps,) of the base model's noise schedule.
        scaling_factor: of the VAE.
        cache: n encoded images.
        file_names: (n), for errors.
        adapter: which modules are adapted, at which rank and alpha.
        settings: the recipe's numbers.
        identity: what checkpoints are stamped with and checked against.
        run: where checkpoints and the log go.
        accelerator: from ``make_accelerator``.
        on_checkpoint: called with the step after each checkpoint (previews).

    Raises:
        Conflict, IntegrityError: the checkpoint to go on from is another run's, or damaged.
        OutputError: a checkpoint cannot be written.
    """
    device = accelerator.device
    inject_adapter(unet, adapter.modules, adapter.rank, adapter.alpha, settings.seed)
    unet.train()
    parameters = list(adapter_parameters(unet).values())
    inner = make_optimizer(parameters, settings.weight_decay)
    done = max(run.checkpoint_steps(), default=0)
    if done:
        if accelerator.scaler is not None:
            # The loss scale is not in the checkpoint; going on would not be the same run.
            raise BadInput("a run in fp16 cannot be resumed", where="[train] mixed_precision",
                           fix='use "bf16", or start over with another --run-dir')  # fmt: skip
        restore_checkpoint(run, done, unet, inner, identity)
        on_checkpoint(done)
        unet.train()
    optimizer = accelerator.prepare(inner)
    alphas_cumprod = alphas_cumprod.to(device)
    dtype = next(p.dtype for p in unet.parameters() if not p.requires_grad)
    shape = (cache.mean.shape[1], cache.mean.shape[2], cache.mean.shape[3])
    empty_row = cache.embeds.shape[0] - 1
    positions = range(settings.batch_size)
    log = _open_log(run.log_file, done)
    started, images = time.monotonic(), 0
    with progress("train", settings.steps, done) as advance:
        for step in range(done, settings.steps):
            rows = batch_rows(settings.seed, step, settings.batch_size, cache.num_images)
            draw = draw_batch(
                settings.seed, step, positions, shape, len(alphas_cumprod), settings.caption_dropout
            )
            latents = sample_latents(
                cache.mean[rows],
                cache.logvar[rows],
                draw.posterior_noise.to(device),
                scaling_factor,
            )
            noise, timesteps = draw.noise.to(device), draw.timesteps.to(device)
            a = alphas_cumprod[timesteps]
            noisy_latents = add_noise(latents, noise, a)
            text_rows = torch.where(draw.drop_caption, empty_row, cache.caption_rows[rows])
            noise_pred = unet(
                noisy_latents.to(dtype),
                timesteps,
                encoder_hidden_states=cache.embeds[text_rows].to(dtype),
                added_cond_kwargs={
                    "text_embeds": cache.pooled[text_rows].to(dtype),
                    "time_ids": cache.time_ids[rows].to(dtype),
                },
            ).sample
            loss = diffusion_loss(noise_pred, noise, min_snr_weights(a, settings.snr_gamma))
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
            rate = learning_rate_at(
                step, peak=settings.learning_rate, steps=settings.steps,
                warmup_steps=settings.warmup_steps, schedule=settings.schedule,
            )  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            now = step + 1
            images += settings.batch_size
            note = ""
            is_last = now == settings.steps
            is_checkpoint = now % settings.checkpoint_every == 0 or is_last
            if now % settings.log_every == 0 or is_checkpoint:
                # The loss is fetched only here: every fetch waits for the device.
                value = loss.item()
                assert_finite(value, now, [file_names[r] for r in rows])
                speed = images / (time.monotonic() - started)
                line = {
                    "step": now, "loss": value, "learning_rate": rate,
                    # An overflow under fp16 scaling is skipped by the scaler; JSON has no infinity.
                    "grad_norm": float(grad_norm) if math.isfinite(grad_norm) else None,
                    "images_per_s": round(speed, 3),
                }  # fmt: skip
                log(line)
                logged = {k: v for k, v in line.items() if k != "step" and v is not None}
                accelerator.log(logged, step=now)
                note = f"loss {value:.4f}, {speed:.1f} images/s"
            advance(1, note)
            if is_checkpoint:
                spec = AdapterSpec(
                    adapter.rank, adapter.alpha, identity.base_hash, identity.recipe_hash, now
                )
                save_checkpoint(run, now, unet, inner, spec, identity)
                on_checkpoint(now)
                unet.train()
    unet.eval()


def _open_log(file: Path, done: int) -> Callable[[Mapping[str, object]], None]:
    """Keep the lines up to the step that is resumed from, then append."""
    kept = []
    if file.is_file():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # the line that a kill cut in half; its step is trained again
            if line["step"] <= done:
                kept.append(text + "\n")
    write_text(file, "".join(kept))

    def append(line: Mapping[str, object]) -> None:
        with output_errors(file), file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    return append

"""The training stage: load the base, cache what it sees, hand both to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from styletune.data.load import Row, read_square, train_rows
from styletune.errors import BadInput
from styletune.job.facts import begin_run, origin_facts, torch_dtype
from styletune.job.prepare import Job

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from styletune.training.cache import Example


def train(job: Job) -> bool:
    """Train to the last step; False when that had been done already.

    Raises as ``train_adapter`` and ``build_cache``.
    """
    recipe = job.recipe
    if max(job.run.checkpoint_steps(), default=0) >= recipe.train.steps:
        return False
    import torch

    from styletune.sdxl.adapter import target_modules
    from styletune.sdxl.load import load_pipeline
    from styletune.training.cache import build_cache
    from styletune.training.loop import (
        AdapterSettings,
        LoopSettings,
        make_accelerator,
        train_adapter,
    )

    accelerator = make_accelerator(recipe.train.mixed_precision, recipe.train.tracker, job.run)
    device = str(accelerator.device)
    pipe = load_pipeline(job.base, torch_dtype(recipe.train.mixed_precision), device)
    if pipe.scheduler.config.prediction_type != "epsilon":
        raise BadInput(
            f"the base predicts {pipe.scheduler.config.prediction_type}, only epsilon is supported",
            where="[base] model",
        )
    modules = target_modules(pipe.unet, recipe.adapter.target)
    begin_run(job)
    rows = train_rows(job.data)
    cache = build_cache(
        pipe, _examples(rows, job.resolution, job.data.background), len(rows), device
    )
    previews = _preview_drawer(job, pipe)
    _offload(pipe)
    if recipe.train.tracker != "none":
        try:
            accelerator.init_trackers(
                recipe.train.tracker_project,
                config=recipe.model_dump(mode="json"),
                init_kwargs={"wandb": {"name": job.loaded.name, "dir": str(job.run.dir)}},
            )
        except Exception as error:
            raise BadInput(
                f"{recipe.train.tracker} does not start: {error}",
                where="[train] tracker",
                fix="wandb login, or WANDB_MODE=offline",
            ) from error
    train_adapter(
        unet=pipe.unet,
        alphas_cumprod=pipe.scheduler.alphas_cumprod.to(torch.float32),
        scaling_factor=pipe.vae.config.scaling_factor,
        cache=cache,
        file_names=[r.file_name for r in rows],
        adapter=AdapterSettings(
            modules, recipe.adapter.rank, recipe.adapter.alpha or float(recipe.adapter.rank)
        ),
        settings=LoopSettings(
            steps=recipe.train.steps,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            snr_gamma=recipe.train.snr_gamma,
            caption_dropout=recipe.train.caption_dropout,
            learning_rate=recipe.optimizer.learning_rate,
            weight_decay=recipe.optimizer.weight_decay,
            schedule=recipe.optimizer.schedule,
            warmup_steps=recipe.optimizer.warmup_steps,
            max_grad_norm=recipe.optimizer.max_grad_norm,
            checkpoint_every=recipe.train.checkpoint_every,
            log_every=recipe.train.log_every,
        ),
        identity=job.identity,
        run=job.run,
        accelerator=accelerator,
        on_checkpoint=previews,
    )
    accelerator.end_training()
    return True


def _examples(rows: Sequence[Row], resolution: int, background: str | None) -> Iterator[Example]:
    from styletune.training.cache import Example

    for row in rows:
        crop = read_square(row, resolution, background)
        yield Example(
            row.file_name, row.text, crop.pixels, crop.original_size, crop.crops_coords_top_left,
            crop.target_size,
        )  # fmt: skip


def _offload(pipe: StableDiffusionXLPipeline) -> None:
    """What the loop does not need leaves the card; a step needs the memory more."""
    for module in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.to("cpu")


def _preview_drawer(job: Job, pipe: StableDiffusionXLPipeline) -> Callable[[int], None]:
    from styletune.sampling.sample import Sampler, Shot, draw_shots

    preview = job.recipe.preview
    sampler = Sampler(preview.steps, 5.0, "", job.resolution)

    def draw(step: int) -> None:
        if not preview.prompts:
            return
        device = pipe.unet.device
        pipe.unet.eval()
        pipe.to(device)
        shots = [
            Shot(prompt, preview.seed + i, job.run.previews_dir / f"step-{step:06d}-{i:02d}.png")
            for i, prompt in enumerate(preview.prompts)
        ]
        origin = {**origin_facts(job), "adapter": job.loaded.name, "step": step, "strength": 1.0}
        draw_shots(pipe, shots, sampler, origin, batch_size=4, title=f"preview {step}")
        _offload(pipe)

    return draw

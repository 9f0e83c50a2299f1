"""The preflight: how much memory a run will need on its device, before anything is loaded.

The step itself is measured by ``styletune.planning.meter``. Everything else is counted from
shapes. On SDXL at 1024², one image, bf16 base, rank-16 attention LoRA (bytes / 1e9):

    weights 5.14 · activations 4.87 (no recomputation), 3.40 (ff), 0.55 (full)

What the backward pass keeps without recomputation, 4.80, is 19 tensors of (tokens, channels) in
each of the 70 transformer blocks: 8 of the feed-forward layer's product and gate (1.68), 4 q, k,
v of self- and q of cross-attention and their 2 outputs (1.27), 3 inputs of layer norms and 2 of
their outputs (1.05); resnets and the skip connections' concatenations are the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from styletune.models.families import DEFAULT_FAMILY
from styletune.models.family import BaseConfigs
from styletune.models.placement import RESIDENT_BYTES
from styletune.planning.gpus import GIB
from styletune.planning.meter import (
    StepCost,
    StepShape,
    measure_drawing,
    measure_step,
    measure_text_encoders,
    measure_vae,
)

# What no tensor accounts for: the CUDA context with its kernels (0.3 to 0.5 GiB by driver and
# card), cuBLAS' and cuDNN's workspaces (up to 0.1 GiB), and what the allocator rounds up.
OVERHEAD_BYTES = 3 * GIB // 4

_BLOCK_8BIT = 256  # numbers that share a scale in bitsandbytes' 8-bit optimizers
_SMALL_8BIT = 4096  # tensors with fewer numbers stay in 32 bits there


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run needs memory for; the recipe's keys of the same names explain them.

    ``images`` and ``captions`` are cached entries (an image counts once a resolution and flip);
    ``class_batch`` images are drawn at a time before training, ``preview_batch`` during it and
    ``score_batch`` afterwards, 0 for none; ``decode_bytes`` is what a number takes when the VAE
    decodes them; without ``trains`` only the scoring counts; ``side_key`` is the recipe's key
    that decides the largest size.
    """

    step: StepShape
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    ema: bool = False
    images: int = 0
    captions: int = 0
    class_batch: int = 0
    preview_batch: int = 0
    score_batch: int = 0
    decode_bytes: int = 2
    trains: bool = True
    side_key: str = "[data] resolution"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on the device at the worst moment, and FLOPs.

    ``parts`` add up to ``peak_bytes``; they are those of the ``phase`` that needs most.
    ``phases`` has the peak of each: "class images" (drawn by the base before it is quantised),
    "encode" (images and captions into the cache), "step", "preview" and "score" (drawing for it,
    on the base without quantisation).
    ``saved_bytes`` is what the backward pass of one micro-batch finds. ``step_flops`` is a whole
    optimizer step, ``forward_flops`` one micro-batch's forward pass.
    """

    peak_bytes: int
    phase: str
    parts: dict[str, int]
    phases: dict[str, int]
    saved_bytes: int
    step_flops: int
    forward_flops: int


def estimate(setup: Setup, base: BaseConfigs = DEFAULT_FAMILY.configs) -> Estimate:
    """Predict a run's peak memory and compute from its settings.

    Seconds on one core for SDXL at 1024²; equal settings are measured once a process.

    Raises:
        RecipeError: a target or rank pattern without a match, or settings a kind does not have.
    """
    cost = _cost(setup.step, base)
    adapter = 4 * sum(math.prod(shape) for _, shape in cost.trained)
    weights = {"unet": cost.unet_bytes}
    kept = {
        "adapter": adapter,
        "optimizer": state_bytes(setup.optimizer, cost.trained),
        "ema": adapter if setup.ema else 0,
        "cache": cache_bytes(setup, base),
    }
    if setup.gradient_accumulation_steps == 1:
        gradients = cost.gradients_at_peak
        activations = cost.peak_bytes - gradients
    else:  # the earlier micro-batches' gradients lie there all the time
        gradients, activations = adapter, cost.peak_other_bytes
    overhead = {"overhead": OVERHEAD_BYTES}
    phases = {
        "encode": {**_encoding(setup.step, base), **overhead},
        "step": {
            **weights,
            "text_encoders": cost.text_bytes,
            **kept,
            "gradients": gradients,
            "activations": activations,
            **overhead,
        },
    }
    whole_unet = {"unet": cost.unet_plain_bytes}
    if setup.class_batch:
        drawing = _drawing(setup, base, setup.class_batch, texts_stay=False)
        phases["class images"] = {**whole_unet, **drawing, **overhead}
    if setup.preview_batch:
        # The live values are kept beside what is drawn with, an average stands in for them.
        copies = {"copies": adapter + kept["ema"]}
        drawing = _drawing(setup, base, setup.preview_batch, texts_stay=cost.text_bytes > 0)
        phases["preview"] = {**weights, **kept, **copies, **drawing, **overhead}
    if not setup.trains:
        phases = {}
    if setup.score_batch:
        drawing = _drawing(setup, base, setup.score_batch, texts_stay=False)
        phases["score"] = {**whole_unet, **drawing, **overhead}
    peaks = {name: sum(parts.values()) for name, parts in phases.items()}
    worst = max(peaks, key=lambda name: peaks[name])
    return Estimate(
        peak_bytes=peaks[worst],
        phase=worst,
        parts={name: size for name, size in phases[worst].items() if size},
        phases=peaks,
        saved_bytes=cost.saved_bytes,
        step_flops=cost.step_flops * setup.gradient_accumulation_steps,
        forward_flops=cost.forward_flops,
    )


def trained_names(setup: Setup, base: BaseConfigs = DEFAULT_FAMILY.configs) -> list[str]:
    """What would be trained, by its name in an adapter file. Raises as ``estimate``."""
    return [name for name, _ in _cost(setup.step, base).trained]


def _cost(step: StepShape, base: BaseConfigs) -> StepCost:
    texts = tuple(_json(config) for config in base.text_encoders)
    return measure_step(step, base.family, _json(base.unet), texts)


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), sort_keys=True)


def _encoding(step: StepShape, base: BaseConfigs) -> dict[str, int]:
    """One image at a time through the VAE in float32, beside all text encoders."""
    size = (step.height, step.width)
    vae, activations, _ = measure_vae(base.family, _json(base.vae), "encode", size, 1, 4)
    return {"vae": vae, "text_encoders": _text_bytes(step, base), "activations": activations}


def _drawing(setup: Setup, base: BaseConfigs, count: int, texts_stay: bool) -> dict[str, int]:
    """The worst moment of: prompts through the text encoders, guided denoising of ``count``
    images, and one after the other through the whole VAE.
    """
    step = setup.step
    size, family = (step.height, step.width), base.family
    denoising, _ = measure_drawing(family, _json(base.unet), size, count, step.base_bytes)
    vae, decoding, _ = measure_vae(family, _json(base.vae), "decode", size, 1, setup.decode_bytes)
    texts = _text_bytes(step, base)
    drawing = {"vae": vae, "activations": max(denoising, decoding)}
    if texts_stay:
        return {**drawing, "text_encoders": texts}
    return drawing if sum(drawing.values()) >= texts else {"text_encoders": texts}


def _text_bytes(step: StepShape, base: BaseConfigs) -> int:
    texts = tuple(_json(config) for config in base.text_encoders)
    return measure_text_encoders(base.family, texts, step.base_bytes)


def cache_bytes(setup: Setup, base: BaseConfigs = DEFAULT_FAMILY.configs) -> int:
    """What of the cache lies on the device: all of it, or nothing where it is large.

    Posterior mean and log-variance of each image and its added conditions in float32, the
    conditioning of each caption in the encoders' dtype.
    """
    family, factor = base.family, base.family.vae_factor
    cells = setup.step.height // factor * (setup.step.width // factor)
    image = 4 * (2 * base.vae["latent_channels"] * cells + _numbers(family.size_shapes))
    embeds = family.max_tokens * base.unet["cross_attention_dim"]
    caption = setup.step.base_bytes * (embeds + _numbers(family.text_shapes(base.unet)))
    total = int(setup.images * image + setup.captions * caption)
    return total if total <= RESIDENT_BYTES else 0


def _numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def state_bytes(optimizer: str, trained: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
    """What an optimizer keeps for tensors of these (name, shape), in bytes.

    AdamW has two float32 moments (arXiv 1711.05101); 8 bits: a byte each and a float32 scale
    for 256; lion one moment (arXiv 2302.06675); schedule-free a moment and the second sequence
    (arXiv 2405.15682); prodigy two moments, its sum and the starting point unless that is zero
    (arXiv 2306.06101); adafactor a row and a column (arXiv 1804.04235, algorithm 4).
    """
    total = 0
    for name, shape in trained:
        n = math.prod(shape)
        match optimizer:
            case "adamw8bit" | "paged-adamw8bit" if n >= _SMALL_8BIT:
                total += 2 * (n + 4 * math.ceil(n / _BLOCK_8BIT))
            case "adamw" | "adamw8bit" | "paged-adamw8bit" | "schedule-free-adamw":
                total += 8 * n
            case "lion":
                total += 4 * n
            case "prodigy":
                total += (12 if name.endswith("lora_B.weight") else 16) * n
            case "adafactor" if len(shape) > 1:
                total += 4 * (n // shape[-1] + n // shape[-2])
            case "adafactor":
                total += 4 * n
            case _:
                raise ValueError(f"optimizer {optimizer!r}")
    return total


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change of the recipe, and the run with it and those before it."""

    setting: str
    setup: Setup
    peak_bytes: int


def fits(
    setup: Setup, memory_bytes: int, base: BaseConfigs = DEFAULT_FAMILY.configs
) -> list[Suggestion]:
    """Settings to change, one upon the other, until the run fits; empty when it does already.

    Each is tried by estimating again and left out when it does not help. The order goes from no
    harm to the result to most. When the last suggestion's peak is still above ``memory_bytes``,
    nothing known here makes the run fit.
    """
    found: list[Suggestion] = []
    now = estimate(setup, base)
    for change in _CHANGES:
        if now.peak_bytes <= memory_bytes:
            break
        setting, candidate = change(setup)
        if candidate == setup:
            continue
        then = estimate(candidate, base)
        # By all phases: one that is over may hide behind a worse one.
        if _excess(then, memory_bytes) < _excess(now, memory_bytes):
            setup, now = candidate, then
            found.append(Suggestion(setting, setup, now.peak_bytes))
    return found


def _excess(estimated: Estimate, memory_bytes: int) -> int:
    return sum(max(0, peak - memory_bytes) for peak in estimated.phases.values())


def _half_precision(setup: Setup) -> tuple[str, Setup]:
    step = replace(setup.step, base_bytes=min(setup.step.base_bytes, 2))
    changed = replace(setup, step=step, decode_bytes=2) if step != setup.step else setup
    return '[train] mixed_precision = "bf16"', changed


def _without_previews(setup: Setup) -> tuple[str, Setup]:
    return "[preview] prompts = []", replace(setup, preview_batch=0)


def _score_fewer(setup: Setup) -> tuple[str, Setup]:
    """A quarter of the images at a time."""
    batch = max(min(setup.score_batch, 1), setup.score_batch // 4)
    return f"[score] batch_size = {batch}", replace(setup, score_batch=batch)


def _score_elsewhere(setup: Setup) -> tuple[str, Setup]:
    setting = "no [score], and styletune score on a larger card"
    return setting, replace(setup, score_batch=0) if setup.trains else setup


def _recompute(setup: Setup) -> tuple[str, Setup]:
    step = replace(setup.step, gradient_checkpointing="full")
    return '[train] gradient_checkpointing = "full"', replace(setup, step=step)


def _prior_by_prediction(setup: Setup) -> tuple[str, Setup]:
    """Its target costs a pass without gradients, but no drawing."""
    step = setup.step
    if step.prior == "images":
        step = replace(step, prior="prediction")
    return '[dreambooth] prior = "prediction"', replace(setup, step=step, class_batch=0)


def _eight_bit_base(setup: Setup) -> tuple[str, Setup]:
    step = setup.step
    if step.quantization == "none" and step.kind == "lora":
        step = replace(step, quantization="int8")
    return '[base] quantization = "int8"', replace(setup, step=step)


def _four_bit_base(setup: Setup) -> tuple[str, Setup]:
    step = setup.step
    if step.kind == "lora":
        step = replace(step, quantization="nf4")
    return '[base] quantization = "nf4"', replace(setup, step=step)


def _one_image(setup: Setup) -> tuple[str, Setup]:
    """The same images a step, one after the other."""
    total = setup.step.batch_size * setup.gradient_accumulation_steps
    setting = f"[train] batch_size = 1, gradient_accumulation_steps = {total}"
    if setup.step.batch_size == 1:
        return setting, setup
    step = replace(setup.step, batch_size=1)
    return setting, replace(setup, step=step, gradient_accumulation_steps=total)


def _eight_bit_optimizer(setup: Setup) -> tuple[str, Setup]:
    small = setup.optimizer in ("adafactor", "lion", "paged-adamw8bit")
    optimizer = setup.optimizer if small else "adamw8bit"
    # Prodigy's rate is a factor, AdamW's the rate itself.
    rate = ", learning_rate = 1e-4" if setup.optimizer == "prodigy" else ""
    return f'[optimizer] name = "adamw8bit"{rate}', replace(setup, optimizer=optimizer)


def _lower_rank(setup: Setup) -> tuple[str, Setup]:
    rank = max(min(setup.step.rank, 4), setup.step.rank // 2)
    return f"[adapter] rank = {rank}", replace(setup, step=replace(setup.step, rank=rank))


def _smaller_images(setup: Setup) -> tuple[str, Setup]:
    """Three quarters of the side."""
    step = setup.step
    height, width = (max(64, side * 3 // 4 // 64 * 64) for side in (step.height, step.width))
    side = round(math.sqrt(height * width) / 64) * 64
    step = replace(step, height=height, width=width)
    return f"{setup.side_key} = {side}", replace(setup, step=step)


_CHANGES: tuple[Callable[[Setup], tuple[str, Setup]], ...] = (
    _half_precision,
    _without_previews,
    _score_fewer,
    _score_fewer,
    _score_elsewhere,
    _recompute,
    _prior_by_prediction,
    _eight_bit_base,
    _one_image,
    _eight_bit_optimizer,
    _four_bit_base,
    _lower_rank,
    _smaller_images,
    _smaller_images,
)

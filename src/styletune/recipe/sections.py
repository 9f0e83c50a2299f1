"""What a recipe may say: every key with its default, range and a sentence for newcomers.

Checks that need two keys are validators of the section, or of the recipe where they need two
sections; checks that need the base model or the images live where those are opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from pydantic import model_validator

from styletune.recipe.data_sections import DataSection
from styletune.recipe.output_sections import PreviewSection, PublishSection, ScoreSection
from styletune.recipe.section import Section
from styletune.recipe.training_sections import (
    AdapterSection,
    BaseSection,
    DreamboothSection,
    OptimizerSection,
    TrainSection,
)

# Keys that mean nothing unless another key has a certain value: which, and whether it has.
_NEEDS: dict[tuple[str, str], tuple[str, Callable[[Recipe], bool]]] = {
    ("train", "huber_delta"): ('train.loss = "huber"', lambda r: r.train.loss == "huber"),
    ("train", "snr_gamma"): (
        'train.weighting = "min-snr"',
        lambda r: r.train.weighting == "min-snr",
    ),
    ("train", "tracker_project"): ("train.tracker", lambda r: r.train.tracker != "none"),
    ("optimizer", "schedule_power"): (
        'optimizer.schedule = "polynomial"',
        lambda r: r.optimizer.schedule == "polynomial",
    ),
    ("adapter", "new_tokens_init"): ("adapter.new_tokens", lambda r: bool(r.adapter.new_tokens)),
    ("dreambooth", "num_class_images"): (
        'dreambooth.prior = "images"',
        lambda r: r.dreambooth.prior == "images",
    ),
    ("dreambooth", "prior_loss_weight"): (
        "dreambooth.prior",
        lambda r: r.dreambooth.prior != "none",
    ),
    ("data", "caption_keep_first"): (
        "data.caption_shuffle or data.caption_tag_dropout",
        lambda r: r.data.caption_variants > 1,
    ),
    ("data", "bucket_step"): ("data.buckets", lambda r: r.data.buckets),
    ("data", "max_aspect"): ("data.buckets", lambda r: r.data.buckets),
}


class Recipe(Section):
    """One whole run. Only ``cli`` and ``job`` see it; functions take the sections they use."""

    base: BaseSection = BaseSection()
    data: DataSection
    adapter: AdapterSection = AdapterSection()
    dreambooth: DreamboothSection = DreamboothSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    preview: PreviewSection = PreviewSection()
    score: ScoreSection | None = None
    publish: PublishSection | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        """Prodigy finds one rate for everything; a rate of 0 freezes a part."""
        optimizer = self.optimizer
        if optimizer.name != "prodigy":
            return self
        own = {"optimizer.lora_plus_ratio": optimizer.lora_plus_ratio}
        own |= {
            f"adapter.block_learning_rates {pattern}": factor
            for pattern, factor in self.adapter.block_learning_rates.items()
        }
        for key in ("text_encoder", "text_encoder_2", "token"):
            rate = getattr(optimizer, f"{key}_learning_rate")
            if rate is not None:
                own[f"optimizer.{key}_learning_rate"] = rate / optimizer.learning_rate
        several = [name for name, factor in own.items() if factor not in (0, 1)]
        if several:
            raise ValueError(
                f"prodigy finds one learning rate for all; leave out {', '.join(several)}"
            )
        return self

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Refuse a key that would silently do nothing."""
        optimizer, adapter = self.optimizer, self.adapter
        for (name, key), (needs, is_met) in _NEEDS.items():
            section = getattr(self, name)
            # A resolved recipe spells defaults out and must load again.
            if getattr(section, key) != type(section).model_fields[key].default and not is_met(
                self
            ):
                raise ValueError(f"{name}.{key} does nothing without {needs}")
        trained = {
            "text_encoder": adapter.text_encoders in ("first", "both"),
            "text_encoder_2": adapter.text_encoders in ("second", "both"),
            "token": bool(adapter.new_tokens),
        }
        for part, is_trained in trained.items():
            if getattr(optimizer, f"{part}_learning_rate") is not None and not is_trained:
                needs = "new_tokens" if part == "token" else "text_encoders"
                raise ValueError(f"optimizer.{part}_learning_rate needs adapter.{needs}")
        if optimizer.warmup_steps > self.train.steps:
            raise ValueError("optimizer.warmup_steps is above train.steps")
        if optimizer.lora_plus_ratio != 1 and adapter.kind not in ("lora", "dora"):
            raise ValueError(f"optimizer.lora_plus_ratio is for lora and dora, not {adapter.kind}")
        if self.base.quantization != "none" and adapter.kind != "lora":
            raise ValueError(
                f"adapter.kind {adapter.kind} needs the base's own weights: set base.quantization "
                '= "none", or adapter.kind = "lora"'
            )
        return self

    @model_validator(mode="after")
    def _publishable(self) -> Self:
        kind, publish = self.adapter.kind, self.publish
        if publish and kind != "lora" and publish.plain_lora_rank is None:
            raise ValueError(
                f"no file of kind {kind} means the same in every tool; set "
                "publish.plain_lora_rank to publish the nearest plain LoRA, or remove [publish]"
            )
        if publish and kind == "lora" and publish.plain_lora_rank is not None:
            raise ValueError("publish.plain_lora_rank is not for kind lora, which is plain already")
        return self

"""What a run needs memory and compute for, and what a step of it takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from styletune.recipe.data_sections import DataSection
from styletune.recipe.output_sections import PreviewSection, ScoreSection
from styletune.recipe.training_sections import (
    AdapterSection,
    BaseSection,
    Checkpointing,
    DreamboothSection,
    OptimizerSection,
    TrainSection,
)

DRAWN_AT_ONCE = 1  # previews and class images: beside a training run there is no memory for more


@dataclass(frozen=True, slots=True)
class Step:
    """What decides the bytes and FLOPs of a micro-batch.

    ``height`` and ``width`` are in pixels, of the largest bucket.
    """

    height: int
    width: int
    base: BaseSection = field(default_factory=BaseSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    dreambooth: DreamboothSection = field(default_factory=DreamboothSection)
    train: TrainSection = field(default_factory=TrainSection)

    @property
    def number_bytes(self) -> int:
        """Of a number of the frozen base."""
        return 4 if self.train.mixed_precision == "no" else 2

    @property
    def checkpointing(self) -> Checkpointing:
        """What is computed twice instead of being kept."""
        return self.train.gradient_checkpointing


@dataclass(frozen=True, slots=True)
class Workload:
    """A step and everything around it.

    ``images`` are the entries of the cache without class images (an image counts once per
    resolution and flip), ``captions`` the distinct ones, variants included. Previews and class
    images are generated ``drawn_at_once`` at a time. Without ``trains`` only scoring counts.
    ``side_key`` is the recipe's key that decides the largest size.
    """

    step: Step
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    preview: PreviewSection = field(default_factory=PreviewSection)
    score: ScoreSection | None = None
    images: int = 0
    captions: int = 0
    drawn_at_once: int = DRAWN_AT_ONCE
    trains: bool = True
    side_key: str = "[data] resolution"


def side_key(data: DataSection, largest: tuple[int, int]) -> str:
    """The key that decides the (height, width) of the largest bucket."""
    extra = data.extra_resolutions
    if extra and max(extra) > (data.resolution or min(largest)):
        return "[data] extra_resolutions, at most"
    return "[data] resolution"


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one forward and backward pass takes, in bytes and FLOPs.

    ``saved_bytes`` is alive when the loss is there; ``peak_bytes`` the highest sum in the two
    passes, of which ``gradients_at_peak`` are finished gradients; ``peak_other_bytes`` the
    highest sum without gradients; ``unet_bytes`` and ``text_bytes`` the frozen weights,
    ``unet_plain_bytes`` the UNet's without quantization; ``trained`` the trained tensors' names
    and shapes.
    """

    saved_bytes: int
    peak_bytes: int
    gradients_at_peak: int
    peak_other_bytes: int
    forward_flops: int
    step_flops: int
    unet_bytes: int
    unet_plain_bytes: int
    text_bytes: int
    trained: tuple[tuple[str, tuple[int, ...]], ...]

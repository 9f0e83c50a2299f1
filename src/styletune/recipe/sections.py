"""What a recipe may say: every key with its default, range and a sentence for newcomers.

Checks that need two keys live here as validators; checks that need the base model or the
images live where those are opened.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)


class Section(BaseModel):
    """Frozen, strict settings: no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _tuple(value: object) -> object:
    """TOML has lists; settings are frozen."""
    return tuple(value) if isinstance(value, list) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_tuple)]
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]


class BaseSection(Section):
    """The model that is adapted."""

    model: str = Field(
        "mini",
        description='"mini", a local diffusers folder, a single .safetensors file, or a Hub id.',
    )
    revision: str | None = Field(None, description="Commit of the Hub repository to pin.")
    vae: str | None = Field(
        None,
        description="Another VAE (folder or Hub id) instead of the model's own, such as the "
        "fp16-fix one.",
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="Keep the frozen UNet's linear weights in 8 or 4 bits: smaller, slower.",
    )


class SourceSection(Section):
    """One of several places that images come from."""

    path: str = Field(
        min_length=1,
        description="Folder, .zip, .tar, .parquet, .arrow, or folder of such shards, relative to "
        'the recipe; or a Hub data set, "owner/name".',
    )
    revision: str | None = Field(
        None, min_length=1, description="Commit of the Hub data set to pin."
    )
    name: str | None = Field(
        None,
        pattern=r"^[^/\\\x00-\x1f]+$",
        description="What its images' names start with; the last part of path if left out.",
    )
    split: str = Field(
        "train", min_length=1, description="Which shards or folders of a Hub data set are read."
    )
    repeats: int = Field(1, ge=1, le=1000, description="How often an epoch shows each image.")
    weight: float = Field(1.0, gt=0, le=100, description="What the loss of its images counts.")
    default_caption: str | None = Field(
        None, description="Caption of its images that have none, instead of that of [data]."
    )
    image_column: str = Field("image", min_length=1, description="Column of a table's images.")
    caption_column: str = Field("text", min_length=1, description="Column of its captions.")


def _sources(value: object) -> object:
    """Sources from TOML; what is wrong in one is said with its number and key."""
    if not isinstance(value, list):
        return value
    faults, found = list[str](), []
    for number, table in enumerate(value, start=1):
        try:
            found.append(SourceSection.model_validate(table))
        except ValidationError as error:
            faults += [f"source {number}: {_fault(item)}" for item in error.errors()]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(found)


def _fault(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "table"
    if item["type"] == "missing":
        return f'missing key "{key}"'
    if item["type"] == "extra_forbidden":
        known = sorted(SourceSection.model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        meant = f'did you mean "{near[0]}"? ' if near else ""
        return f'unknown key "{key}"; {meant}known keys: {", ".join(known)}'
    return f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}"


# Errors in the images that a recipe may lower to warnings.
AllowedCode = Literal[
    "unreadable-image", "foreign-file", "unread-caption-file", "empty-caption", "placeholder",
    "too-long-caption", "too-small", "missing-rights", "bad-license",
]  # fmt: skip


class DataSection(Section):
    """The curated images: either path, or one [[data.sources]] table for each place."""

    path: str | None = Field(
        None,
        min_length=1,
        description="Folder, .zip, .tar, .parquet, .arrow, or folder of such shards, relative to "
        'the recipe; or a Hub data set, "owner/name".',
    )
    sources: Annotated[tuple[SourceSection, ...], BeforeValidator(_sources)] = Field(
        (), description="Several places, each with keys of its own, instead of path."
    )
    default_caption: str | None = Field(
        None, description="Caption of every image that has none; without it they are an error."
    )
    background: str | None = Field(
        None,
        pattern="^#[0-9a-fA-F]{6}$",
        description="Colour under transparent pixels, instead of the data set card's.",
    )
    holdout: float = Field(
        0.2, ge=0, lt=1, description="Share of images kept from training, for scoring."
    )
    folds: int | None = Field(
        None, ge=2, le=20,
        description="Instead of holdout: cut the images into this many parts, one held out.",
    )  # fmt: skip
    fold: int = Field(0, ge=0, le=19, description="Which of the folds is held out, from 0.")
    allow: Annotated[tuple[AllowedCode, ...], BeforeValidator(_tuple)] = Field(
        (),
        description="Errors that become warnings; an unreadable image is then left out.",
    )
    require_rights: bool = Field(
        False, description="Train only when every image has licence, holder, consent and source."
    )
    opt_out_override: str | None = Field(
        None, pattern=r"\S",
        description="Who decided, and why, that images whose XMP prohibits training may be used.",
    )  # fmt: skip
    encoder: str = Field(
        "none", min_length=1,
        description='Image encoder that finds pictures of one motif; "none", pixels only.',
    )  # fmt: skip
    resolution: Side | None = Field(
        None,
        description="Pixels to train at, as the side of a square of that area; the base "
        "model's own if left out.",
    )
    extra_resolutions: Annotated[tuple[Side, ...], BeforeValidator(_tuple)] = Field(
        (), description="Further resolutions at which every image is seen as well."
    )
    buckets: bool = Field(
        True, description="Keep each image's shape by aspect buckets; false crops squares."
    )
    bucket_step: int | None = Field(
        None, ge=8, le=512, multiple_of=8,
        description="Sides of buckets are multiples of this; 64 if left out, 32 below 512 px.",
    )  # fmt: skip
    max_aspect: float = Field(
        2.0, ge=1, le=8, description="Longest side of a bucket over its shortest."
    )
    flip: bool = Field(False, description="Also show every image mirrored.")
    mask: Literal["none", "alpha", "folder"] = Field(
        "none",
        description="Where the loss counts: everywhere, where the image is opaque, or where a "
        "mask image in mask_path is white.",
    )
    mask_path: str | None = Field(
        None, description='Folder of masks named like their images, for mask = "folder".'
    )
    mask_floor: float = Field(
        0.0, ge=0, lt=1, description="Weight of the loss outside the mask, against 1 inside."
    )
    caption_variants: int = Field(
        1, ge=1, le=64, description="Variants of each caption that are made and cached."
    )
    caption_shuffle: bool = Field(
        False, description="Variants put the comma-separated parts of a caption in other orders."
    )
    caption_keep_first: int = Field(
        0, ge=0, description="Parts at the start that are neither shuffled nor dropped."
    )
    caption_tag_dropout: float = Field(
        0.0, ge=0, lt=1, description="Chance that a variant lacks a part of the caption."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either path or [[data.sources]]")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold = {self.fold} needs folds above {self.fold}")
        # A resolved recipe spells the default out and must load again.
        if self.folds and "holdout" in self.model_fields_set and self.holdout != 0.2:
            raise ValueError("folds decide what is held out: leave holdout out")
        if (self.mask == "folder") != (self.mask_path is not None):
            raise ValueError('mask = "folder" and mask_path go together')
        if self.mask_floor and self.mask == "none":
            raise ValueError("mask_floor needs a mask")
        varied = self.caption_shuffle or self.caption_tag_dropout > 0
        if varied != (self.caption_variants > 1):
            raise ValueError(
                "caption_variants above 1 goes together with caption_shuffle or caption_tag_dropout"
            )
        return self


Preset = Literal["attention", "attention-ff", "all", "style-block", "content-block"]


def _patterns(value: object) -> object:
    if value == []:
        raise ValueError("name at least one pattern")
    return _tuple(value)


class AdapterSection(Section):
    """What is trained."""

    kind: Literal["lora", "dora", "loha", "lokr", "oft"] = Field(
        "lora", description="Form of the update; only lora means the same in every tool."
    )
    rank: int = Field(16, ge=1, le=1024, description="Rank of the update (OFT: block size).")
    alpha: float | None = Field(
        None, gt=0, description="Scale is alpha / rank; equal to rank if left out."
    )
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."
    )
    target: Annotated[Preset | tuple[str, ...], BeforeValidator(_patterns)] = Field(
        "attention",
        description='"attention", "attention-ff", "all", "style-block", "content-block", or '
        "patterns of UNet module names.",
    )
    conv_rank: int | None = Field(
        None, ge=1, le=1024,
        description="Also adapt the convolutions of resnets and samplers, at this rank (LoCon).",
    )  # fmt: skip
    block_ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(
        {}, description="Rank by pattern of module names, first match counts."
    )
    block_learning_rates: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        {}, description="Factor on the learning rate by pattern of module names, first match."
    )
    text_encoders: Literal["none", "first", "second", "both"] = Field(
        "none", description="Text encoders whose attention also gets a LoRA."
    )
    text_encoder_target: Literal["attention", "all"] = Field(
        "attention",
        description="Which of their layers: the attention, or the feed-forward layers as well, "
        "as kohya's tools do.",
    )
    text_encoder_rank: int | None = Field(
        None, ge=1, le=1024, description="Its rank; the UNet's if left out."
    )
    new_tokens: Texts = Field(
        (), description="New words whose embeddings are trained in both encoders (pivotal tuning)."
    )
    new_tokens_init: str = Field(
        "style", description="Known word or words that new tokens start from."
    )
    start_from: str | None = Field(
        None,
        description="Adapter file to go on from, in this tool's, diffusers' or kohya's layout.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.text_encoders == "none":
            for key in ("text_encoder_rank", "text_encoder_target"):
                if getattr(self, key) not in (None, "attention"):
                    raise ValueError(f"{key} needs text_encoders")
        if self.rslora and self.kind not in ("lora", "dora"):
            raise ValueError(f"rslora is a scale of lora and dora; {self.kind} has none like it")
        if self.kind == "oft" and self.alpha not in (None, float(self.rank)):
            raise ValueError("oft has no alpha: leave it out")
        if self.kind == "oft" and self.conv_rank is not None:
            raise ValueError("oft adapts no convolutions: leave conv_rank out")
        return self


class DreamboothSection(Section):
    """Prior preservation: the class must not forget itself."""

    prior: Literal["none", "images", "prediction"] = Field(
        "none",
        description='Preserve the class by images the base model draws of it ("images") or by '
        'its own prediction as the target ("prediction").',
    )
    class_prompt: str | None = Field(
        None, description='The class in words, such as "a landscape"; needed with a prior.'
    )
    num_class_images: int = Field(50, ge=1, le=10000, description="Class images to draw once.")
    prior_loss_weight: float = Field(
        1.0, gt=0, le=100, description="Weight of the class's loss against the images'."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.prior == "none") != (self.class_prompt is None):
            raise ValueError("prior and class_prompt go together")
        return self


OptimizerName = Literal[
    "adamw", "adamw8bit", "paged-adamw8bit", "adafactor", "prodigy", "schedule-free-adamw", "lion"
]


class OptimizerSection(Section):
    """The optimizer and its schedule."""

    name: OptimizerName = Field("adamw", description="Optimizer; adamw is fused AdamW.")
    learning_rate: float = Field(
        1e-4, gt=0, le=10, description="Peak learning rate; prodigy wants 1."
    )
    text_encoder_learning_rate: float | None = Field(
        None, ge=0, le=10, description="Rate of the first text encoder; the UNet's if left out."
    )
    text_encoder_2_learning_rate: float | None = Field(
        None, ge=0, le=10, description="Rate of the second text encoder; the UNet's if left out."
    )
    token_learning_rate: float | None = Field(
        None, ge=0, le=10, description="Rate of new tokens; the UNet's if left out."
    )
    lora_plus_ratio: float = Field(
        1.0, ge=1, le=256, description="Rate of B over that of A (LoRA+, arXiv 2402.12354)."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Decoupled weight decay.")
    beta1: float = Field(
        0.9, ge=0, lt=1, description="Decay of the first moment; adafactor has none."
    )
    beta2: float = Field(
        0.999, ge=0, lt=1, description="Decay of the second moment; adafactor sets its own."
    )
    schedule: Literal["constant", "linear", "cosine", "polynomial"] = Field(
        "constant", description="What the learning rate does after the warm-up."
    )
    schedule_power: float = Field(2.0, gt=0, le=10, description="Power of a polynomial schedule.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm is clipped to this.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Decay of a moving average of the adapter; 0, none."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "schedule-free-adamw" and self.schedule != "constant":
            raise ValueError('schedule-free-adamw needs schedule = "constant"')
        if self.name == "schedule-free-adamw" and self.ema_decay:
            raise ValueError("schedule-free-adamw averages by itself: leave ema_decay out")
        if self.name == "prodigy" and self.learning_rate < 0.1:
            raise ValueError(
                f"learning_rate = {self.learning_rate:g} multiplies the rate that prodigy finds: "
                "set learning_rate = 1.0"
            )
        if self.name == "adafactor" and (self.beta1, self.beta2) != (0.9, 0.999):
            raise ValueError("adafactor has no moments that beta1 and beta2 could set")
        return self


class TrainSection(Section):
    """The loop."""

    steps: int = Field(1000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(1, ge=1, le=4096, description="Images a step and process.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=4096, description="Batches whose gradients make up one step."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seeds noise, timesteps, dropout and order.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="Precision of the base model's arithmetic; the adapter stays fp32."
    )
    gradient_checkpointing: Literal["none", "ff", "full"] = Field(
        "none",
        description="Recompute in the backward pass instead of keeping: nothing, the "
        "feed-forward layers, or whole blocks. Less memory, more time.",
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", description="What the UNet predicts; auto takes it from the base model."
    )
    zero_terminal_snr: bool = Field(
        False,
        description="Rescale the noise so that the last step is pure noise (needs v_prediction).",
    )
    weighting: Literal["none", "min-snr", "debiased"] = Field(
        "min-snr",
        description="Weight of timesteps: alike, min-SNR (arXiv 2303.09556) or debiased "
        "(arXiv 2310.08442).",
    )
    snr_gamma: float = Field(5.0, gt=0, description="Gamma of min-SNR weighting.")
    loss: Literal["mse", "huber"] = Field(
        "mse", description="Loss; huber bothers less about outliers."
    )
    huber_delta: float = Field(0.1, gt=0, description="Where huber turns from square to linear.")
    noise_offset: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Constant noise added per channel, for very dark or bright looks.",
    )
    pyramid_noise: float = Field(
        0.0, ge=0, lt=1, description="Discount of coarser noise levels that are added; 0, none."
    )
    input_perturbation: float = Field(
        0.0, ge=0, le=1, description="Extra noise on the input alone (arXiv 2301.11706)."
    )
    timestep_sampling: Literal["uniform", "logit-normal"] = Field(
        "uniform", description="Which noise levels are trained how often."
    )
    min_timestep: int = Field(0, ge=0, le=999, description="Lowest timestep trained.")
    max_timestep: int | None = Field(
        None, ge=0, le=999, description="Highest timestep trained; the base's last if left out."
    )
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of samples trained without their caption."
    )
    checkpoint_every: int = Field(250, ge=1, description="Steps between checkpoints.")
    keep_last: int | None = Field(
        None, ge=1,
        description="Resume states to keep; older checkpoints keep their adapter only.",
    )  # fmt: skip
    validation_every: int = Field(
        0, ge=0, description="Steps between losses on the held-out images; 0, none."
    )
    log_every: int = Field(10, ge=1, description="Steps between lines of log.jsonl.")
    tracker: Literal["none", "wandb"] = Field(
        "none", description="Also log to Weights & Biases (needs the wandb extra)."
    )
    tracker_project: str = Field("styletune", description="Project name there.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_timestep is not None and self.min_timestep > self.max_timestep:
            raise ValueError("min_timestep is above max_timestep")
        return self


class PreviewSection(Section):
    """Images drawn during training, to watch it."""

    prompts: Texts = Field((), description="Prompts; none, no previews.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the preview noise.")
    steps: int = Field(20, ge=1, le=1000, description="Sampler steps.")


class ScoreSection(Section):
    """How checkpoints are compared."""

    suite: str = Field(description="Evaluation suite (TOML), relative to the recipe.")
    batch_size: int = Field(16, ge=1, le=1024, description="Images generated at a time.")


NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*$"


class PublishSection(Section):
    """The published version."""

    name: str = Field(pattern=NAME_PATTERN, description="Adapter name in the registry.")
    version: str = Field(
        "1.0.0", pattern=r"^\d+\.\d+\.\d+$", description="Version, major.minor.patch."
    )
    license: str = Field(description="SPDX id or LicenseRef-… of the adapter.")
    description: str = Field("", description="One sentence for the model card.")
    plain_lora_rank: int | None = Field(
        None, ge=1, le=1024,
        description="Rank of the plain LoRA (nearest by SVD) that other kinds are published as.",
    )  # fmt: skip


class Recipe(Section):
    """One whole run. Only ``cli`` and ``job`` see it; functions take the values they use."""

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
        """Prodigy finds one rate for everything; 0 leaves a part out."""
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
        """No key without the one that it belongs to: it would do nothing, in silence."""
        optimizer, adapter = self.optimizer, self.adapter
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

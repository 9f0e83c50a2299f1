"""What a recipe says about training: [base], [adapter], [dreambooth], [optimizer], [train]."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from styletune.recipe.section import PathText, Section, Strings, as_tuple

# Far above what anybody trains; the plan names every checkpoint.
MAX_STEPS, MAX_CHECKPOINTS = 10_000_000, 10_000
Checkpointing = Literal["none", "ff", "full"]
Quantization = Literal["none", "int8", "nf4"]
TextEncoders = Literal["none", "first", "second", "both"]
PredictionType = Literal["epsilon", "v_prediction"]


class BaseSection(Section):
    """The model that is adapted."""

    model: PathText = Field(
        "mini",
        min_length=1,
        description='The model to adapt: "mini" (the bundled small model), a local '
        "diffusers folder, a single .safetensors checkpoint, or a Hub id such as "
        '"stabilityai/stable-diffusion-xl-base-1.0".',
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Commit of the Hub repository to pin, so that a later change there does not "
        "affect this run.",
    )
    vae: PathText | None = Field(
        None,
        min_length=1,
        description="Another VAE (the part that turns pixels into latents and back) instead of "
        "the model's own: a folder, a file or a Hub id, such as the fp16-fix one.",
    )
    vae_revision: str | None = Field(
        None,
        min_length=1,
        description="Commit of the VAE's Hub repository to pin.",
    )
    quantization: Quantization = Field(
        "none",
        description="Keep the frozen UNet's large weights in 8 or 4 bits: the run needs less "
        "memory, and its steps take longer.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.vae_revision is not None and self.vae is None:
            raise ValueError("vae_revision needs vae")
        return self


Preset = Literal["attention", "attention-ff", "all", "style-block", "content-block"]


def _patterns(value: object) -> object:
    if value == []:
        raise ValueError("name at least one pattern")
    return as_tuple(value)


class AdapterSection(Section):
    """What is trained."""

    kind: Literal["lora", "dora", "loha", "lokr", "oft"] = Field(
        "lora",
        description="Form of the update that is learned. lora is the usual one and the only one "
        "that means the same in every tool; dora, loha, lokr and oft are variants of "
        "it.",
    )
    rank: int = Field(
        16,
        ge=1,
        le=1024,
        description="Size of the update: a higher rank can learn more and makes a larger file; 8 "
        "to 32 are usual for styles. For oft, the size of its blocks.",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        le=1e5,
        description="The update is scaled by alpha / rank; equal to rank, a factor of 1, if left "
        "out. A learning rate from another tool belongs to that tool's alpha and "
        "rank.",
    )
    rslora: bool = Field(
        False,
        description="Scale the update by alpha / sqrt(rank) instead, which keeps high ranks "
        "learning (rsLoRA, arXiv 2312.03732).",
    )
    target: Annotated[Preset | tuple[str, ...], BeforeValidator(_patterns)] = Field(
        "attention",
        description='Which of the UNet\'s modules are adapted: "attention" (the usual choice), '
        '"attention-ff" and "all" (more, for looks far from the base\'s), '
        '"style-block" and "content-block" (one block each, for small adapters), or '
        "patterns of module names.",
    )
    conv_rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Also adapt the convolutions, which see fine texture and color, at this "
        "rank (LoCon).",
    )
    block_ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(
        {},
        description="Other ranks for parts of the UNet: a table from patterns of module names to "
        'ranks, such as {"mid_block.*" = 4}; the first match applies.',
    )
    block_learning_rates: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        {},
        description="Factor on the learning rate for parts of the UNet, by pattern as above; 0 "
        "leaves a part as it is.",
    )
    text_encoders: TextEncoders = Field(
        "none",
        description="Which of the two text encoders also get an adapter. Styles rarely need it; "
        "new words and names may.",
    )
    text_encoder_target: Literal["attention", "all"] = Field(
        "attention",
        description="Which of their layers are adapted: attention, or the feed-forward layers as "
        "well, as kohya's tools do.",
    )
    text_encoder_rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Rank of the text encoders' update; the UNet's if left out.",
    )
    new_tokens: Strings = Field(
        (),
        description='New words to learn, such as ["<acme>"]: their meaning is trained in both '
        "text encoders and travels with the adapter (pivotal tuning).",
    )
    new_tokens_init: str = Field(
        "style",
        pattern=r"\w",
        description="A known word or words whose meaning the new words start from.",
    )
    start_from: PathText | None = Field(
        None,
        min_length=1,
        description="Adapter file to continue training from: of this tool, diffusers, PEFT or "
        "kohya's tools.",
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

    @property
    def base_alpha(self) -> float:
        """``alpha``, or ``rank`` where it is left out: the factor is then 1."""
        return self.alpha or float(self.rank)

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders change, so that captions are encoded at every step."""
        return self.text_encoders != "none" or bool(self.new_tokens)


class DreamboothSection(Section):
    """Prior preservation: the model must not forget the class."""

    prior: Literal["none", "images", "prediction"] = Field(
        "none",
        description="Keep the model from forgetting the class (a mascot must not become every "
        'animal): by images of it that the base generates ("images"), or by what '
        'the base itself would predict ("prediction"; generates nothing).',
    )
    class_prompt: str | None = Field(
        None,
        pattern=r"\w",
        description='The class in words, such as "a landscape" or "a cartoon animal"; needed '
        "with a prior.",
    )
    num_class_images: int = Field(
        50,
        ge=1,
        le=10000,
        description="How many images of the class are generated, once, before training.",
    )
    prior_loss_weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="Weight of keeping the class relative to learning the images; 1 weighs both "
        "equally.",
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

    name: OptimizerName = Field(
        "adamw",
        description="How the weights are changed. adamw is right for most; adamw8bit and "
        "paged-adamw8bit need less memory; so do adafactor and lion, with other rates; "
        "prodigy and schedule-free-adamw choose part of the schedule themselves.",
    )
    learning_rate: float = Field(
        1e-4,
        gt=0,
        le=10,
        description="How far a step goes: too high and images break, too low and nothing is "
        "learned; 1e-4 is usual for adamw. prodigy finds the rate itself and needs 1.0 "
        "here.",
    )
    text_encoder_learning_rate: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Learning rate of the first text encoder, often a tenth of the UNet's; the "
        "UNet's if left out.",
    )
    text_encoder_2_learning_rate: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Learning rate of the second text encoder; the UNet's if left out.",
    )
    token_learning_rate: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Learning rate of the new words, often higher than the UNet's; the UNet's if "
        "left out.",
    )
    lora_plus_ratio: float = Field(
        1.0,
        ge=1,
        le=256,
        description="How much faster the second half of each update (B) learns than the first "
        "(LoRA+, arXiv 2402.12354); 1 is plain LoRA, 16 is what the paper recommends.",
    )
    weight_decay: float = Field(
        0.01,
        ge=0,
        le=1,
        description="How strongly the adapter is pulled back to zero, which keeps it from "
        "memorizing.",
    )
    beta1: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="How long the optimizer remembers the direction of its steps: 0.9 is about "
        "ten steps. adafactor has none.",
    )
    beta2: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="How long it remembers how large the gradients were: 0.999 is about a "
        "thousand steps. adafactor sets its own.",
    )
    schedule: Literal["constant", "linear", "cosine", "polynomial"] = Field(
        "constant",
        description="What the learning rate does after the warm-up: stay, or fall to 0 at the "
        "last step along a line, a cosine or a polynomial.",
    )
    schedule_power: float = Field(
        2.0, gt=0, le=10, description="Shape of the polynomial: 1 is a line, higher falls sooner."
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        le=MAX_STEPS,
        description="Steps at the start over which the learning rate rises from 0, so that the "
        "first gradients do no harm.",
    )
    max_grad_norm: float = Field(
        1.0,
        gt=0,
        le=1e9,
        description="Gradients with a larger norm are scaled down to it, so that one odd batch "
        "does not throw the adapter off.",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Save a moving average of the adapter, which is steadier than its last "
        "state: 0.999 averages about a thousand steps; 0 turns it off.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "schedule-free-adamw" and self.schedule != "constant":
            raise ValueError('schedule-free-adamw needs schedule = "constant"')
        if self.name == "schedule-free-adamw" and self.ema_decay:
            raise ValueError("schedule-free-adamw does its own averaging: leave ema_decay out")
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

    steps: int = Field(
        1000,
        ge=1,
        le=MAX_STEPS,
        description="Number of optimizer steps; checkpoints along the way are compared, so too "
        "many only cost time.",
    )
    batch_size: int = Field(
        1,
        ge=1,
        le=4096,
        description="Images per batch on each device: more give steadier steps and need more "
        "memory.",
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        le=4096,
        description="Batches per step: as steady as a larger batch, with the memory of a small "
        "one.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="Starting point of everything random (noise, order, dropout): the same seed "
        "gives the same adapter.",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no",
        description='Precision of the frozen model: "no" (32 bits) for CPUs and small tests, '
        '"bf16" for cards since 2020, "fp16" for older ones. The adapter itself '
        "stays in 32 bits.",
    )
    gradient_checkpointing: Checkpointing = Field(
        "none",
        description="What is computed twice instead of kept in memory: nothing, the "
        "feed-forward layers (saves a third, costs an eighth of the time), or whole "
        "blocks (saves nine tenths, costs a third).",
    )
    prediction_type: Literal["auto", PredictionType] = Field(
        "auto",
        description="What the UNet predicts, the noise (epsilon) or a mix of noise and image "
        "(v_prediction); auto takes it from the base model.",
    )
    zero_terminal_snr: bool = Field(
        False,
        description="Let the last timestep be pure noise, so that very dark and very bright "
        "images become possible (arXiv 2305.08891); needs v_prediction.",
    )
    weighting: Literal["none", "min-snr", "debiased"] = Field(
        "min-snr",
        description="Weight of each noise level: all equal, less where images are nearly "
        "clean (min-SNR, arXiv 2303.09556, faster and steadier), or more where they "
        "are nearly noise (debiased, arXiv 2310.08442).",
    )
    snr_gamma: float = Field(
        5.0,
        gt=0,
        le=1e6,
        description="Signal-to-noise ratio from which min-SNR reduces the weight: 5 is the "
        "paper's value, lower starts sooner.",
    )
    loss: Literal["mse", "huber"] = Field(
        "mse",
        description="How an error is measured: by its square (mse), or less when it is large "
        "(huber), so that odd images pull less.",
    )
    huber_delta: float = Field(
        0.1,
        gt=0,
        le=1000,
        description="Error from which huber grows linearly instead of quadratically.",
    )
    noise_offset: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Let the noise shift whole color channels, so that very dark, bright or "
        "tinted looks can be learned; 0.03 to 0.1 is usual.",
    )
    pyramid_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Let the noise have coarse structure as well, for large areas of color: the "
        "weight of each coarser level; 0.3 is usual, 0 turns it off.",
    )
    input_perturbation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Extra noise that the UNet sees and need not predict, against memorizing "
        "(arXiv 2301.11706); 0.1 is the paper's value.",
    )
    timestep_sampling: Literal["uniform", "logit-normal"] = Field(
        "uniform",
        description="How often each noise level is trained: all equally, or the middle ones more "
        "(logit-normal).",
    )
    min_timestep: int = Field(
        0,
        ge=0,
        le=999,
        description="Lowest noise level trained, of 0 (clean) to 999 (noise); raise it to leave "
        "fine detail to the base.",
    )
    max_timestep: int | None = Field(
        None,
        ge=0,
        le=999,
        description="Highest noise level trained; lower it to leave composition to the base. The "
        "base's last if left out.",
    )
    caption_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of samples trained without their caption, which guidance during "
        "generation relies on; higher lets the look hold without words.",
    )
    checkpoint_every: int = Field(
        250,
        ge=1,
        le=MAX_STEPS,
        description="Steps between checkpoints, which a run resumes from and which are compared "
        "at the end.",
    )
    keep_last: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="How many checkpoints keep the large file needed to resume; older ones keep "
        "only their adapter. All of them if left out.",
    )
    validation_every: int = Field(
        0,
        ge=0,
        le=MAX_STEPS,
        description="Steps between measurements of the loss on the held-out images, which rises "
        "when the adapter memorizes; 0 turns it off.",
    )
    log_every: int = Field(10, ge=1, le=MAX_STEPS, description="Steps between lines of log.jsonl.")
    tracker: Literal["none", "wandb"] = Field(
        "none", description='Also log to Weights & Biases; needs pip install "styletune[wandb]".'
    )
    tracker_project: str = Field("styletune", description="Name of the project there.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_timestep is not None and self.min_timestep > self.max_timestep:
            raise ValueError("min_timestep is above max_timestep")
        count = -(-self.steps // self.checkpoint_every)
        if count > MAX_CHECKPOINTS:
            raise ValueError(
                f"steps and checkpoint_every make {count:,} checkpoints, {MAX_CHECKPOINTS:,} are "
                "the most: raise checkpoint_every"
            )
        return self

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps after which a checkpoint is written; the last one is among them."""
        return (*range(self.checkpoint_every, self.steps, self.checkpoint_every), self.steps)

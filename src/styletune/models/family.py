"""What the models of one architecture have in common, as one value.

A family is data and four small functions; ``styletune.models.sdxl`` holds one. Everything else
reads its fields, so a new family is a new file and one entry in ``styletune.models.families``.
Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


Config = Mapping[str, Any]
SizePx = tuple[int, int]  # (height, width) or (top, left), in pixels
TensorShape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What b texts tell the UNet, in the encoders' dtype.

    ``embeds`` (b, t, d) goes to cross-attention; ``added`` (b, …) are the family's added conditions
    on the text, by their names in the UNet's ``added_cond_kwargs``.
    """

    embeds: Tensor
    added: Mapping[str, Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """The function of every tensor."""
        return Conditioning(
            function(self.embeds), {name: function(value) for name, value in self.added.items()}
        )

    def rows(self, index: Tensor | Sequence[int] | slice) -> Conditioning:
        """Those of some of the texts."""
        return self.map(lambda tensor: tensor[index])

    def repeated(self, count: int) -> Conditioning:
        """A single text's, for ``count`` samples; a view."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """A text encoder of a family.

    ``name`` and ``tokenizer`` are parts of the pipeline, ``name`` also the component in adapter
    files; ``choice`` is what a recipe's ``text_encoders`` calls it; ``embedding_key``, without
    a dot, names the rows of new tokens in adapter files; ``kohya_prefix`` begins its modules' names
    in kohya's files, ``checkpoint_prefix`` those of its weights in a single-file checkpoint;
    ``pad_token`` is set on a tokenizer whose files do not say it.
    """

    name: str
    tokenizer: str
    choice: str
    embedding_key: str
    kohya_prefix: str
    checkpoint_prefix: str
    config: Config
    pad_token: str | None = None

    @property
    def model_class(self) -> str:
        """The class in transformers."""
        return str(self.config["architectures"][0])


@dataclass(frozen=True, slots=True)
class TextOutput:
    """One tensor that the text encoders make of a prompt, by its four names.

    ``stored`` in a cache file, ``position`` in what the pipeline's ``encode_prompt`` returns,
    ``argument`` of the pipeline (behind ``negative_`` for the negative prompt), ``added`` among
    the UNet's ``added_cond_kwargs``; None is its ``encoder_hidden_states``.
    """

    stored: str
    position: int
    argument: str
    added: str | None


@dataclass(frozen=True, slots=True)
class BaseWords:
    """What published files say about a base model.

    ``architecture`` and ``kohya_version`` stand in the header of the kohya layout
    (``modelspec.architecture``, ``ss_base_model_version``), ``webui_version`` in the JSON file
    beside it. ``kind`` completes "Trained on NAME, …", ``notice`` are the terms of its license,
    ``load_note`` is a comment behind the line that loads it, or "".
    """

    architecture: str
    kohya_version: str
    webui_version: str
    kind: str
    notice: str
    load_note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Everything that is particular to one architecture.

    Configurations are the published ones, as diffusers and transformers name their keys;
    ``index`` is ``model_index.json``, ``settings`` names its keys that are not parts, and
    ``load_options`` are arguments that we always give the pipeline. ``stock_model`` is the
    published model's Hub id, ``vocabulary_model`` that of a model with every text encoder's
    vocabulary. ``vae_factor`` is pixels per latent cell and side, ``max_tokens`` what a prompt may
    have with start and end, ``target_blocks`` the block that a recipe's target of this name means.

    The functions: ``encode_ids`` maps the text encoders and their token ids, each (b, max_tokens)
    int64, to the conditioning of b prompts, with gradients. ``text_shapes`` gives the shapes, per
    prompt, of the added conditions on the text for a UNet's configuration. ``size_values`` gives
    the added conditions on one image's sizes from (original size, corner of the crop, target
    size); their shapes are ``size_shapes``. ``why_not`` says what a single file holds instead of
    this family (None if it is one), from the shapes of its tensors and whether it needs a VAE.
    """

    name: str
    pipeline: str
    index: Config
    settings: tuple[str, ...]
    load_options: Mapping[str, Any]
    unet: Config
    vae: Config
    scheduler: Config
    text_encoders: tuple[TextEncoder, ...]
    stock_model: str
    vocabulary_model: str
    resolution_px: int
    vae_factor: int
    max_tokens: int
    text_outputs: tuple[TextOutput, ...]
    encode_ids: Callable[[Sequence[nn.Module], Sequence[Tensor]], Conditioning]
    text_shapes: Callable[[Config], Mapping[str, TensorShape]]
    size_values: Callable[[SizePx, SizePx, SizePx], Mapping[str, tuple[float, ...]]]
    size_shapes: Mapping[str, TensorShape]
    why_not: Callable[[Mapping[str, TensorShape], bool], str | None]
    target_blocks: Mapping[str, str]
    unet_prefix: str
    words: BaseWords

    @property
    def components(self) -> tuple[str, ...]:
        """What an adapter can change: the UNet, then the text encoders."""
        return ("unet", *(encoder.name for encoder in self.text_encoders))

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The tokenizers' names, in the order of their text encoders."""
        return tuple(encoder.tokenizer for encoder in self.text_encoders)

    @property
    def configs(self) -> BaseConfigs:
        """The published configurations."""
        encoders = tuple(encoder.config for encoder in self.text_encoders)
        return BaseConfigs(self, self.unet, self.vae, encoders)


@dataclass(frozen=True, slots=True, eq=False)
class BaseConfigs:
    """The configurations of one base model's parts, as in their ``config.json``."""

    family: Family
    unet: Config
    vae: Config
    text_encoders: tuple[Config, ...]


def chosen_encoders(family: Family, choice: str) -> tuple[TextEncoder, ...]:
    """The text encoders that a recipe's ``text_encoders`` means: one's name, "both" or "none"."""
    return tuple(e for e in family.text_encoders if choice in (e.choice, "both"))

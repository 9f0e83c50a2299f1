"""What is known of a base model's files before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from styletune.models.family import Family
from styletune.models.names import Origin, public_name


@dataclass(frozen=True, slots=True)
class VaeFiles:
    """A separate VAE: a diffusers folder, or one file. ``hash`` covers weights and settings.

    ``factor`` is pixels per latent cell and side; ``scaling_factor`` multiplies latents;
    ``public_name`` is what others may see instead of ``model``.
    """

    model: str
    folder: Path
    file: Path | None
    variant: str | None
    hash: str
    factor: int
    scaling_factor: float
    public_name: str


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The files of a base model, checked to be whole before anything heavy is loaded.

    ``hash`` is the SHA-256 over all that changes an image: weight files, configurations,
    scheduler, tokenizers and a separate VAE. ``resolution`` is the side in pixels that its UNet
    was made for; ``variant`` is "fp16" when a part has only such weights; ``revision`` the commit
    of a Hub model. A checkpoint that is one file has ``file``; ``folder`` is then the one that
    holds it. ``tokenizers`` are the tokenizers' folders, in the family's order. ``origin`` is
    where the model was found: bundled, in the Hub's cache, or local.
    """

    family: Family
    model: str
    folder: Path
    revision: str | None
    hash: str
    resolution: int
    variant: str | None
    tokenizers: tuple[Path, ...]
    file: Path | None = None
    vae: VaeFiles | None = None
    origin: Origin = "local"

    @property
    def public_name(self) -> str:
        """The model as others may see it."""
        return public_name(self.model, self.origin)

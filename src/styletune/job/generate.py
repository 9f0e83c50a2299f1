"""Generate images with a published version, as a generation team would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from styletune import __version__
from styletune.errors import Conflict, NotFound
from styletune.places import device_name
from styletune.sampling.prompts import prompt_with_trigger
from styletune.training.identity import short_hash

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from styletune.models.base import BaseFiles
    from styletune.registry.manifest import Manifest
    from styletune.registry.pull import Pulled
    from styletune.sampling.shots import Sampler


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A published version in a ready pipeline of its base model.

    ``pipe`` is a diffusers pipeline with the adapter loaded at ``strength``, its noise schedule set
    and its new tokens added; ``version`` the pulled files with their manifest.
    """

    pipe: DiffusionPipeline
    version: Pulled
    base_hash: str
    resolution: int
    strength: float

    def origin(self) -> dict[str, object]:
        """What every generated image says about its origin."""
        manifest = self.version.manifest
        return {
            "base_model": manifest.base.model,
            "base_hash": self.base_hash,
            "adapter": manifest.name,
            "version": manifest.version,
            "digest": self.version.digest,
            "strength": self.strength,
            "license": manifest.license,
            "styletune": __version__,
        }


def load_version(
    version: Pulled, *, base_model: str | None, vae: str | None, strength: float | None
) -> LoadedVersion:
    """Load a pulled version's diffusers file as any consumer would.

    Args:
        version: from ``pull``.
        base_model: where the base model is on this machine, if not by its published name.
        vae: the same for its separate VAE.
        strength: of the adapter; the published one if None.

    Raises:
        NotFound, BaseModelError: the base model is not here, or cannot be loaded.
        Conflict: the base model on this machine is not the one it was trained on.
    """
    from styletune.models.load import load_pipeline
    from styletune.registry.package import DIFFUSERS_EMBEDDINGS, DIFFUSERS_WEIGHTS
    from styletune.sampling.session import DTYPES, TrainedAs, load_published, make_ready

    manifest, adapter = version.manifest, version.manifest.adapter
    base = _find_trained_base(manifest, base_model, vae)
    value = adapter.strength if strength is None else strength
    device = device_name()
    pipe = load_pipeline(base, DTYPES["bf16" if device == "cuda" else "no"], device)
    make_ready(pipe, TrainedAs(adapter.prediction_type, adapter.zero_terminal_snr, adapter.tokens))
    embeddings = version.dir / DIFFUSERS_EMBEDDINGS if adapter.tokens else None
    load_published(pipe, version.dir / DIFFUSERS_WEIGHTS, embeddings, value)
    side = manifest.base.resolution or base.resolution
    return LoadedVersion(pipe, version, base.hash, side, value)


def generate(
    loaded: LoadedVersion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: Sampler,
    *,
    out_dir: Path,
    batch_size: int,
) -> list[Path]:
    """Generate an image of every prompt with every seed, each with its origin embedded.

    A file's name holds a hash of its settings, so other settings never overwrite it.

    Raises:
        DataError: a prompt is too long.
        OutputError: the images cannot be written.
    """
    from styletune.sampling.images import generate_images
    from styletune.sampling.shots import square_shot

    manifest, side = loaded.version.manifest, loaded.resolution
    # As version 0.1.0 wrote it, so that files keep their names.
    settings = (
        f"Sampler(steps={sampler.steps!r}, guidance_scale={sampler.guidance_scale!r}, "
        f"negative_prompt={sampler.negative_prompt!r}, resolution={side!r})"
    )
    shots = []
    for prompt in prompts:
        words = prompt_with_trigger(prompt, manifest.adapter.trigger)
        mark = short_hash(loaded.version.digest, words, f"{loaded.strength:g}", settings)[:8]
        stem = f"{manifest.name}-{manifest.version}-{mark}"
        shots += [square_shot(words, s, out_dir / f"{stem}-{s}.png", side) for s in seeds]
    generate_images(
        loaded.pipe, shots, sampler, loaded.origin(), batch_size=batch_size, title="generate"
    )
    return [s.file for s in shots]


def _find_trained_base(manifest: Manifest, base_model: str | None, vae: str | None) -> BaseFiles:
    """The base model that a version was trained on.

    Raises:
        NotFound: it is not on this machine.
        Conflict: the one here has other weights.
    """
    from styletune.models.base_files import find_base

    trained_on = manifest.base
    try:
        base = find_base(
            base_model or trained_on.model,
            # The hash decides; a copy that the user names has no commit.
            None if base_model else trained_on.revision,
            Path.cwd(),
            vae or trained_on.vae,
        )
    except NotFound as error:
        raise NotFound(
            error.message,
            where=error.where,
            fix=f"{error.fix}; if it is elsewhere on this machine, name it with --base or --vae",
        ) from None
    if base.hash != trained_on.hash:
        raise Conflict(
            f"was trained on other weights than {base.model} ({trained_on.hash[:12]}, "
            f"here are {base.hash[:12]})",
            where=f"{manifest.name}@{manifest.version}",
            fix="give the right base model with --base (and --vae if it has one of its own)",
        )
    return base

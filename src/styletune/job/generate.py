"""Generate images with a published version, as a generation team would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from styletune import __version__
from styletune.errors import Conflict, NotFound
from styletune.job.prepare import prompt_with_trigger, short_hash
from styletune.places import device_name

if TYPE_CHECKING:
    from styletune.models.base_files import BaseFiles
    from styletune.registry.manifest import Manifest


def generate(
    *,
    registry: str,
    spec_text: str,
    pulled_dir: Path,
    out_dir: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    strength: float | None,
    steps: int,
    guidance_scale: float,
    base_model: str | None,
    vae: str | None,
    batch_size: int,
) -> list[Path]:
    """Pull a version, load its published file as any consumer would, and generate images with it.

    A file's name holds a hash of its settings, so other settings never overwrite it.

    Raises:
        NotFound, IntegrityError: of the registry, or of the base model.
        Conflict: the base model on this machine is not the one it was trained on.
    """
    from styletune.registry.package import DIFFUSERS_EMBEDDINGS, DIFFUSERS_WEIGHTS
    from styletune.registry.pull import pull
    from styletune.registry.resolve import parse_spec
    from styletune.registry.store import open_store
    from styletune.sampling.images import generate_images
    from styletune.sampling.session import (
        DTYPES,
        TrainedAs,
        load_published,
        make_ready,
        open_pipeline,
    )
    from styletune.sampling.shots import Sampler, square_shot

    pulled = pull(open_store(registry, create=False), parse_spec(spec_text), pulled_dir)
    manifest, adapter = pulled.manifest, pulled.manifest.adapter
    base = _find_trained_base(manifest, base_model, vae)
    value = adapter.strength if strength is None else strength
    origin = {
        "base_model": manifest.base.model,
        "base_hash": base.hash,
        "adapter": manifest.name,
        "version": manifest.version,
        "digest": pulled.digest,
        "strength": value,
        "license": manifest.license,
        "styletune": __version__,
    }
    side = manifest.base.resolution or base.resolution
    shots = []
    for prompt in prompts:
        words = prompt_with_trigger(prompt, adapter.trigger)
        # As version 0.1.0 wrote it, so that files keep their names.
        settings = (
            f"Sampler(steps={steps!r}, guidance_scale={guidance_scale!r}, negative_prompt='', "
            f"resolution={side!r})"
        )
        mark = short_hash(pulled.digest, words, f"{value:g}", settings)[:8]
        stem = f"{manifest.name}-{manifest.version}-{mark}"
        shots += [square_shot(words, s, out_dir / f"{stem}-{s}.png", side) for s in seeds]
    embeddings = pulled.dir / DIFFUSERS_EMBEDDINGS if adapter.tokens else None
    device = device_name()
    with open_pipeline(base, DTYPES["bf16" if device == "cuda" else "no"], device) as pipe:
        make_ready(
            pipe, TrainedAs(adapter.prediction_type, adapter.zero_terminal_snr, adapter.tokens)
        )
        load_published(pipe, pulled.dir / DIFFUSERS_WEIGHTS, embeddings, value)
        sampler = Sampler(steps, guidance_scale)
        generate_images(pipe, shots, sampler, origin, batch_size=batch_size, title="generate")
    return [s.file for s in shots]


def _find_trained_base(manifest: Manifest, base_model: str | None, vae: str | None) -> BaseFiles:
    """The base model that a version was trained on.

    Raises:
        NotFound: it is not on this machine.
        Conflict: the one here has other weights.
    """
    from styletune.models.load import find_base

    trained_on = manifest.base
    try:
        base = find_base(
            base_model or trained_on.model,
            trained_on.revision,
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

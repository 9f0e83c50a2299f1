"""Draw images with a published version, as a generation team would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from styletune import __version__
from styletune.errors import Conflict, NotFound
from styletune.job.facts import device_name, torch_dtype
from styletune.job.prepare import short_hash
from styletune.sampling.prompts import prompt_with_trigger


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
    """Pull a version, load its published file as any consumer would, and draw images with it.

    A file's name holds a hash of its settings, so other settings never overwrite it.

    Raises:
        NotFound, IntegrityError: of the registry, or of the base model.
        Conflict: the base model on this machine is not the one it was trained on.
    """
    from styletune.registry.package import DIFFUSERS_EMBEDDINGS, DIFFUSERS_WEIGHTS
    from styletune.registry.pull import pull
    from styletune.registry.resolve import parse_spec
    from styletune.registry.store import open_store

    pulled = pull(open_store(registry, create=False), parse_spec(spec_text), pulled_dir)
    manifest = pulled.manifest
    from safetensors.torch import load_file

    from styletune.adapters.tokens import add_tokens, load_token_rows
    from styletune.models.load import find_base, load_pipeline
    from styletune.models.schedule import set_sampling_schedule
    from styletune.sampling.sample import Sampler, Shot, draw_shots

    try:
        base = find_base(
            base_model or manifest.base.model,
            manifest.base.revision,
            Path.cwd(),
            vae or manifest.base.vae,
        )
    except NotFound as error:
        raise NotFound(
            error.message,
            where=error.where,
            fix=f"{error.fix}; if it lies elsewhere here, name it with --base or --vae",
        ) from None
    if base.hash != manifest.base.hash:
        raise Conflict(
            f"was trained on other weights than {base.model} ({manifest.base.hash[:12]}, "
            f"here are {base.hash[:12]})",
            where=f"{manifest.name}@{manifest.version}",
            fix="give the right base model with --base (and --vae if it has one of its own)",
        )
    pipe = load_pipeline(
        base, torch_dtype("bf16" if device_name() == "cuda" else "no"), device_name()
    )
    adapter = manifest.adapter
    set_sampling_schedule(pipe, adapter.prediction_type, adapter.zero_terminal_snr)
    if adapter.tokens:
        # Any known word to start from: its rows are replaced by the trained ones.
        add_tokens(pipe, adapter.tokens, "a")
        load_token_rows(pipe, load_file(pulled.dir / DIFFUSERS_EMBEDDINGS))
    weights = pulled.dir / DIFFUSERS_WEIGHTS
    pipe.load_lora_weights(str(weights.parent), weight_name=weights.name, adapter_name="style")
    value = manifest.adapter.strength if strength is None else strength
    pipe.set_adapters("style", value)
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
    sampler = Sampler(steps, guidance_scale, "", manifest.base.resolution or base.resolution)
    stem = f"{manifest.name}-{manifest.version}"
    shots = []
    for prompt in prompts:
        words = prompt_with_trigger(prompt, manifest.adapter.trigger)
        mark = short_hash(pulled.digest, words, f"{value:g}", str(sampler))[:8]
        shots += [Shot(words, s, out_dir / f"{stem}-{mark}-{s}.png") for s in seeds]
    draw_shots(pipe, shots, sampler, origin, batch_size=batch_size, title="generate")
    return [s.file for s in shots]

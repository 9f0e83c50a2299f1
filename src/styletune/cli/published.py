"""Commands that use what is published: pull, generate, registry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from styletune import api
from styletune.cli.shared import (
    FiniteRange,
    clip,
    computes,
    gathered,
    json_option,
    print_json,
    registry_option,
)
from styletune.errors import BadInput, NotFound
from styletune.text import control_word_problem, has_words, read_text

MAX_SEEDS = 10_000


@click.command("pull")
@click.argument("spec")
@registry_option
@click.option(
    "--to",
    "dest",
    type=click.Path(path_type=Path),
    default=Path("pulled"),
    show_default=True,
    help="Folder to pull into.",
)
@json_option
def pull_command(spec: str, registry: str, dest: Path, as_json: bool) -> None:
    """Fetch a version (horizon, horizon@^1, horizon@1.0.0); every checksum is verified."""
    pulled = api.pull(spec, registry=registry, to=dest)
    manifest = pulled.manifest
    document = {
        "name": manifest.name,
        "version": manifest.version,
        "digest": pulled.digest,
        "dir": str(pulled.dir),
    }
    if as_json:
        print_json(document)
        return
    click.echo(f"{manifest.name} {manifest.version}  {pulled.digest[:12]}  verified")
    click.echo(f"  {pulled.dir}\nread {pulled.dir / 'README.md'} for how to use it")


@dataclass(frozen=True, slots=True)
class Loading:
    """Which version is loaded, and what into, as the options of the same names say it."""

    registry: str
    pulled: Path
    base_model: str | None
    vae: str | None
    strength: float | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How images are generated, as the options of the same names say it."""

    seeds: str
    out: Path
    steps: int
    guidance_scale: float
    batch_size: int


@click.command("generate")
@click.argument("spec")
@click.option("--prompt", "prompts", multiple=True, help="What to generate; may be repeated.")
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path),
    help="Text file, one prompt per line; # starts a comment.",
)
@click.option("--seeds", default="1", show_default=True, help="Such as 7, 101-110 or 1,5,9.")
@click.option("--strength", type=FiniteRange(-2, 2), help="The published one if left out.")
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True)
@click.option("--base", "base_model", help="The base model, if it is elsewhere on this machine.")
@click.option("--vae", help="Its separate VAE, if that is elsewhere on this machine.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=4, show_default=True)
@click.option("--guidance-scale", type=FiniteRange(1, 50), default=5.0, show_default=True)
@registry_option
@click.option(
    "--pulled",
    type=click.Path(path_type=Path),
    default=Path("pulled"),
    show_default=True,
    help="Folder to pull into.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("generated"),
    show_default=True,
    help="Folder for the images.",
)
@json_option
@gathered("loading", Loading)
@gathered("sampling", Sampling)
@computes
def generate_command(
    spec: str,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    loading: Loading,
    sampling: Sampling,
    as_json: bool,
) -> None:
    """Generate images with a published version; each names its adapter, version and digest."""
    words = [*prompts, *_read_prompts(prompts_file)]
    if not words:
        raise BadInput("no prompt", fix='--prompt "a city at sunset" or --prompts FILE')
    for prompt in words:  # before a base is loaded for them
        if problem := control_word_problem(prompt):
            raise BadInput(problem, where=f'prompt "{clip(prompt, 80)}"', fix="remove it")
        if not has_words(prompt):
            raise BadInput("has no words", where=f'prompt "{clip(prompt, 80)}"', fix="write some")
    seeds = parse_seeds(sampling.seeds)
    api.require_output(sampling.out)
    version = api.load(
        spec,
        registry=loading.registry,
        to=loading.pulled,
        base=loading.base_model,
        vae=loading.vae,
        strength=loading.strength,
    )
    files = api.generate(
        version,
        words,
        seeds=seeds,
        out=sampling.out,
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        batch_size=sampling.batch_size,
    )
    if as_json:
        print_json({"images": [str(f) for f in files]})
        return
    click.echo(f"{len(files)} images in {sampling.out}")


def _read_prompts(file: Path | None) -> list[str]:
    """The lines of a file, without empty ones and comments (``# …``)."""
    if file is None:
        return []
    try:
        lines = read_text(file).splitlines()
    except FileNotFoundError:
        raise NotFound("no such file", where=str(file), fix="one prompt per line") from None
    except ValueError as error:
        raise BadInput(str(error), where=str(file), fix="one prompt per line") from None
    except OSError as error:
        raise BadInput(
            f"cannot be read: {error.strerror}", where=str(file), fix="a text, one prompt per line"
        ) from None
    stripped = [line.strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]


def parse_seeds(text: str) -> list[int]:
    """``7``, ``101-110``, ``1,5,9`` or a mixture -> seeds in order, each once."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        if match is None:
            raise BadInput(
                f'"{clip(part, 80)}" is not a seed', where="--seeds", fix="7, 101-110 or 1,5,9"
            )
        first = int(match[1])
        last = int(match[2] or first)
        if last < first or last >= 2**32:
            raise BadInput(f'"{part}" is not a range of seeds', where="--seeds", fix="101-110")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise BadInput(f"more than {MAX_SEEDS} seeds", where="--seeds", fix="101-110")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


@click.group("registry")
def registry_group() -> None:
    """Look into a registry."""


@registry_group.command("list")
@registry_option
@json_option
def registry_list_command(registry: str, as_json: bool) -> None:
    """Names and versions."""
    versions_of = api.list_registry(registry)
    if as_json:
        print_json(versions_of)
        return
    for name, versions in versions_of.items():
        click.echo(f"{name}  {', '.join(versions)}")


@registry_group.command("show")
@click.argument("spec")
@registry_option
@json_option
def registry_show_command(spec: str, registry: str, as_json: bool) -> None:  # noqa: ARG001
    """The manifest of a version, as JSON."""
    manifest, digest = api.show_version(spec, registry=registry)
    print_json({"digest": digest, "manifest": manifest.model_dump(mode="json")})

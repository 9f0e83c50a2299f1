"""A small but whole version to publish; a module of its own so that child processes import it."""

from __future__ import annotations

from obstore.store import ObjectStore

from styletune.registry.manifest import AdapterEntry, BaseEntry, GateEntry
from styletune.registry.release import Release
from styletune.registry.versions import Published, publish_version


def small_release(
    name: str = "horizon", version: str = "1.0.0", description: str = "Calm horizons."
) -> Release:
    """What a small version declares."""
    return Release(
        name=name,
        version=version,
        description=description,
        license="CC0-1.0",
        holder="Horizon GmbH",
        base=BaseEntry(model="mini", hash="b" * 64),
        adapter=AdapterEntry(strength=0.8, rank=8, alpha=8.0, trigger="hrzn"),
        recipe_hash="a" * 64,
        data_fingerprint="d" * 64,
        gates=(GateEntry(name="palette_ratio", verdict="pass", value=0.4, threshold=0.7),),
    )


def publish_small(
    store: ObjectStore,
    version: str = "1.0.0",
    *,
    name: str = "horizon",
    description: str = "Calm horizons.",
    created: str = "2026-01-02T03:04:05Z",
    files: dict[str, bytes] | None = None,
    who: str = "ada",
) -> Published:
    """Publish two small files, or those given, as adapter "horizon"."""
    return publish_version(
        store,
        small_release(name=name, version=version, description=description),
        files or {"diffusers/w.safetensors": b"weights " * 500, "README.md": b"# hello\n"},
        created=created,
        who=who,
        why="first",
    )

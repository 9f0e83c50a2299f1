"""A release: what a version says about itself, in its manifest, model card and headers alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from styletune.registry.manifest import AdapterEntry, BaseEntry, GateEntry


@dataclass(frozen=True, slots=True)
class Release:
    """Everything that a version declares; only its files are not here.

    Attributes:
        name: adapter name in the registry, ``[a-z0-9][a-z0-9-]*``.
        version: ``major.minor.patch[-pre]``.
        description: one sentence.
        license: SPDX id or ``LicenseRef-…`` of the adapter.
        holder: who holds the rights in the training images; "" if nobody is declared.
        base: the base model, by the name that others may see.
        adapter: strength, rank, trigger, new words and so on.
        recipe_hash: SHA-256 (hex) of the recipe.
        data_fingerprint: fingerprint of the training data.
        gates: the release gates and their verdicts.
    """

    name: str
    version: str
    description: str
    license: str
    holder: str
    base: BaseEntry
    adapter: AdapterEntry
    recipe_hash: str
    data_fingerprint: str
    gates: tuple[GateEntry, ...]

    @property
    def stem(self) -> str:
        """File name, without suffix, of the weights for A1111, Forge, ComfyUI and InvokeAI.

        They find a LoRA by this name whatever its folder, so it holds the full version.
        """
        return f"{self.name}_v{self.version}"


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture under ``previews/`` and how it was made; ``settings`` has at least ``prompt``.

    ``file`` is None for a prompt without a picture.
    """

    settings: Mapping[str, Any]
    file: str | None = None
    content: bytes = b""

    def as_json(self) -> dict[str, Any]:
        """The settings, and the file where there is one."""
        return {**({"file": self.file} if self.file else {}), **self.settings}

"""What a recipe calls a model -> a path, the error when nothing is there, and the hash."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path

from styletune.errors import BadInput, NotFound
from styletune.models.families import DEFAULT_FAMILY
from styletune.models.names import BUNDLED
from styletune.models.weight_files import PICKLE_SUFFIXES
from styletune.places import resolve_place

FILE_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


def local_path(text: str, relative_to: Path) -> Path:
    """The path that a recipe's text means if it is one."""
    return resolve_place(text, relative_to).resolve()


def not_found(local: Path, where: str) -> NotFound:
    """The error for a path where nothing is; its fix is the nearest name, or the choices."""
    parent = local.parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(local.name, siblings, n=1)
    names = ", ".join(f'"{name}"' for name in BUNDLED)
    stock = DEFAULT_FAMILY.stock_model
    choices = f'{names}, a diffusers folder, a .safetensors file, a Hub id such as "{stock}"'
    return NotFound(
        f"no folder or file {local}",
        where=where,
        fix=f"did you mean {parent / near[0]}?" if near else f"choices: {choices}",
    )


def refuse_revision(revision: str | None, key: str, local: Path) -> None:
    """Raise BadInput for a revision of something that is not from the Hub."""
    if revision is not None:
        raise BadInput(
            f"is a commit of a Hub repository, but {local} is local",
            where=f"[base] {key}",
            fix="leave it out: the hash of the files pins a local model",
        )


def digest_of(lines: Iterable[str]) -> str:
    """SHA-256 (hex) over lines of text."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()

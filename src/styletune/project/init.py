"""``styletune init``: a project folder, complete but for the images."""

from __future__ import annotations

import re
import unicodedata
from importlib import resources
from pathlib import Path

from styletune.data.sources.files import CARD_NAME
from styletune.errors import BadInput, Conflict
from styletune.files import output_errors, write_text
from styletune.recipe import NAME_PATTERN

# The templates are complete, valid files of a project with this name.
TEMPLATE_NAME = "my-style"
MAX_NAME = 100
FILES = ("recipe.toml", "suite.toml", f"images/{CARD_NAME}")


def init_project(folder: Path, name: str) -> list[Path]:
    """Create a folder with a recipe, an evaluation suite and a data set card to fill in.

    Args:
        folder: the project's folder; created with its parents if needed.
        name: of the style, as it will be published: lowercase letters, digits and dashes.

    Returns:
        The files, the recipe first.

    Raises:
        BadInput: nothing can be published under this name.
        Conflict: the folder is not empty, or a file.
        OutputError: it cannot be written.
    """
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > MAX_NAME:
        raise BadInput(
            f'"{name}" cannot name a style: at most {MAX_NAME} lowercase letters, digits, dashes',
            where="name",
            fix=f"styletune init {_near_name(name)}",
        )
    if folder.is_symlink() or folder.exists():
        _refuse_filled(folder)
    files = []
    for relative in FILES:
        template = resources.files("styletune.project") / "templates" / Path(relative).name
        text = template.read_text(encoding="utf-8").replace(TEMPLATE_NAME, name)
        files.append(folder / relative)
        write_text(files[-1], text)
    return files


def _refuse_filled(folder: Path) -> None:
    if not folder.is_dir():
        raise Conflict("is a file, not a folder", where=str(folder), fix="choose another name")
    with output_errors(folder):
        names = sorted(path.name for path in folder.iterdir())
    if names:
        listed = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        raise Conflict(
            f"the folder is not empty: {listed}",
            where=str(folder),
            fix="choose another name, or move these files elsewhere",
        )


def _near_name(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_NAME] or TEMPLATE_NAME

"""Which open_clip model a name means. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from styletune.errors import NotFound
from styletune.mini import NAME, OPEN_CLIP_DIR


def find_clip(name: str, relative_to: Path) -> tuple[str, str]:
    """(architecture, pretrained tag) as open_clip takes them.

    Args:
        name: the bundled one's, ``local-dir:FOLDER``, or ``ARCHITECTURE/PRETRAINED`` such as
            ``ViT-L-14-quickgelu/openai``.
        relative_to: what a local folder is relative to.

    Raises:
        NotFound: the name has another form, or the folder does not exist.
    """
    where = f"[encoder] name = {name!r}"
    if name == NAME:
        return f"local-dir:{OPEN_CLIP_DIR}", ""
    if name.startswith("local-dir:"):
        folder = (relative_to / name.removeprefix("local-dir:")).resolve()
        if not (folder / "open_clip_config.json").is_file():
            raise NotFound(f"no open_clip_config.json in {folder}", where=where)
        return f"local-dir:{folder}", ""
    architecture, _, pretrained = name.partition("/")
    if not pretrained:
        raise NotFound(
            "not an encoder",
            where=where,
            fix=f'choices: "{NAME}", "local-dir:FOLDER", "ARCHITECTURE/PRETRAINED"',
        )
    return architecture, pretrained

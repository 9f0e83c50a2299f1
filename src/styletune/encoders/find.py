"""Which open_clip model a name means. Nothing heavy is imported here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from styletune.errors import NotFound
from styletune.hub import find_cached_files
from styletune.mini import NAME, OPEN_CLIP_DIR
from styletune.places import resolve_place


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
        folder = resolve_place(name.removeprefix("local-dir:"), relative_to).resolve()
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


def check_clip(name: str, relative_to: Path) -> None:
    """Refuse an encoder that could not be loaded here, before anything is generated for it.

    Arguments as ``find_clip``. Nothing is fetched and no weights are opened.

    Raises:
        NotFound: as ``find_clip``; or open_clip has no such weights, or they are not on this
            machine.
    """
    architecture, tag = find_clip(name, relative_to)
    if not tag:
        return
    import open_clip

    where = f"[encoder] name = {name!r}"
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        raise NotFound("open_clip has no such weights", where=where, fix=_near_clip(name))
    if not _is_here(config):
        raise NotFound(
            "its weights are not on this machine",
            where=where,
            fix="load it once in Python with a network: open_clip.create_model_and_transforms"
            f"({architecture!r}, pretrained={tag!r})",
        )


def _near_clip(name: str) -> str:
    import open_clip

    known = [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"such as {known[0]}"


def _is_here(config: Mapping[str, str]) -> bool:
    """Whether open_clip finds the weights without a network."""
    if config.get("hf_hub"):
        repository, _, file = config["hf_hub"].rpartition("/")
        file = file or "open_clip_pytorch_model.bin"
        safe = file.replace("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
        names = {file, safe, f"{file.rpartition('.')[0]}.safetensors"}
        return any(find_cached_files(repository, (each,)) for each in names)
    file = config.get("url", "").rpartition("/")[2]
    return bool(file) and (Path("~/.cache/clip").expanduser() / file).is_file()

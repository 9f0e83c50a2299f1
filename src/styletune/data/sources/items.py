"""One image of a set before anything is decoded: where its bytes are, its words and its rights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rights:
    """What is declared about an image; "" is not declared."""

    license: str = ""
    holder: str = ""
    consent: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One image.

    ``file_name`` is its posix name, relative to its source and unique in the whole set (with
    several sources it starts with the source's name); ``path`` the absolute file that holds its
    bytes; ``member`` where in that file (archive member or table row), "" for a plain image
    file; ``text`` its caption, None where there is none; ``machine_caption`` whether a model
    wrote it; ``origin`` the name of its source; ``repeats`` how often an epoch shows it;
    ``weight`` what its loss counts; ``background`` what lies under transparent pixels.
    """

    file_name: str
    path: str
    member: str
    text: str | None
    origin: str
    machine_caption: bool = False
    repeats: int = 1
    weight: float = 1.0
    background: str | None = None
    rights: Rights = Rights()

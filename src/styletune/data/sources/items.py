"""One image of a set before decoding: where its bytes are, its caption and its rights."""

from __future__ import annotations

from dataclasses import dataclass

RIGHTS_COLUMNS = ("license", "holder", "consent", "source")


@dataclass(frozen=True, slots=True)
class Rights:
    """What is declared about an image; "" is undeclared. The fields are ``RIGHTS_COLUMNS``."""

    license: str = ""
    holder: str = ""
    consent: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One image.

    ``file_name`` is its posix name, relative to its source and unique in the whole set (with
    several sources it starts with the source's name); ``path`` the absolute file that contains
    its bytes; ``member`` where in that file (archive member or table row), "" for a plain image
    file; ``text`` its caption, None if it has none; ``machine_caption`` whether a model wrote it;
    ``origin`` the name of its source; ``repeats`` how often an epoch shows it; ``weight`` the
    factor of its loss; ``background`` the color under transparent pixels.
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

"""The bundled base model, its open_clip companion, and what published files say about them.

It is an ordinary model of its family; only these words are its own. A web UI must not take its
adapters for those of the family's published model.
"""

from pathlib import Path

__all__ = [
    "ARCHITECTURE",
    "BASE_DIR",
    "KIND",
    "KOHYA_VERSION",
    "LOAD_NOTE",
    "NAME",
    "NOTICE",
    "OPEN_CLIP_DIR",
    "WEBUI_VERSION",
]

NAME = "mini"
BASE_DIR = Path(__file__).parent / "base"
OPEN_CLIP_DIR = Path(__file__).parent / "open_clip"

ARCHITECTURE = "styletune-mini"
KOHYA_VERSION = "styletune_mini"
WEBUI_VERSION = "Unknown"  # what A1111 calls a model of another kind
KIND = "styletune's bundled small base model"
NOTICE = (
    "It is licensed under Apache-2.0, which asks for nothing beyond keeping that license with the\n"
    "base model itself.\n"
)
LOAD_NOTE = "styletune's bundled base model: give its folder"

"""The embedded base model, its open_clip companion, and the procedural world they know."""

from pathlib import Path

__all__ = ["BASE_DIR", "OPEN_CLIP_DIR"]

BASE_DIR = Path(__file__).parent / "base"
OPEN_CLIP_DIR = Path(__file__).parent / "open_clip"

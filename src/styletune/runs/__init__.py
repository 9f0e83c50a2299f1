"""The folder of a run: its names, and the documents in it."""

from styletune.runs.folder import Run

__all__ = ["Run"]

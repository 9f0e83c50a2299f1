"""The run folder: the only module that knows the names in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BASE_COLUMN = "base"
_STEP = "step-"


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint in the folder and in every document: ``step-000200``."""
    return f"{_STEP}{step:06d}"


def column_label(name: str, step: int | None, strength: float) -> str:
    """A column of scores for people: ``base``, ``step 200``, ``step 200 at strength 0.8``.

    ``step`` is None for a column that is no checkpoint; it keeps its name. The base has the
    strength 0, which goes without saying.
    """
    label = name if step is None else f"step {step}"
    return label if strength == 1 or name == BASE_COLUMN else f"{label} at strength {strength:g}"


@dataclass(frozen=True, slots=True)
class Run:
    """Paths inside one run folder."""

    dir: Path

    @property
    def recipe_file(self) -> Path:
        """``recipe.toml``: the resolved recipe."""
        return self.dir / "recipe.toml"

    @property
    def facts_file(self) -> Path:
        """``run.json``: hashes of recipe, data, base and code; versions; device."""
        return self.dir / "run.json"

    @property
    def log_file(self) -> Path:
        """``log.jsonl``: one line per logged step."""
        return self.dir / "log.jsonl"

    @property
    def lock_file(self) -> Path:
        """Locked for as long as a process trains; empty, and left there."""
        return self.dir / ".lock"

    @property
    def trainer_file(self) -> Path:
        """Who holds the lock; by it the processes of one training know that they share a disk."""
        return self.dir / ".trainer"

    @property
    def checkpoints_dir(self) -> Path:
        """One folder per checkpoint."""
        return self.dir / "checkpoints"

    @property
    def previews_dir(self) -> Path:
        """Images of the recipe's preview prompts, one per checkpoint."""
        return self.dir / "previews"

    def preview_file(self, step: int, index: int) -> Path:
        """The image of a preview prompt (from 0) after a step."""
        return self.previews_dir / f"step-{step:06d}-{index:02d}.png"

    @property
    def class_images_dir(self) -> Path:
        """Images of the class by the base model, for prior preservation."""
        return self.dir / "class_images"

    @property
    def scores_file(self) -> Path:
        """``scores/scores.parquet``, long form."""
        return self.dir / "scores" / "scores.parquet"

    @property
    def summary_file(self) -> Path:
        """``scores/summary.json``: choice, intervals, gates, anchors."""
        return self.dir / "scores" / "summary.json"

    @property
    def report_file(self) -> Path:
        """``report.html``: the scores for people, in one self-contained file."""
        return self.dir / "report.html"

    @property
    def picture_file(self) -> Path:
        """``picture.png``: base, chosen checkpoint and references side by side."""
        return self.dir / "picture.png"

    def checkpoint_dir(self, step: int) -> Path:
        """The folder of the checkpoint after ``step`` steps."""
        return self.checkpoints_dir / checkpoint_name(step)

    def adapter_file(self, step: int) -> Path:
        """``adapter.safetensors`` of a checkpoint."""
        return self.checkpoint_dir(step) / "adapter.safetensors"

    def state_file(self, step: int) -> Path:
        """``state.safetensors`` of a checkpoint: what resuming needs; old ones may be gone."""
        return self.checkpoint_dir(step) / "state.safetensors"

    def state_facts_file(self, step: int) -> Path:
        """``state.json``, written last: a checkpoint without it is not complete."""
        return self.checkpoint_dir(step) / "state.json"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.checkpoints_dir.is_dir():
            return []
        steps = [
            int(p.name.removeprefix(_STEP))
            for p in self.checkpoints_dir.glob(f"{_STEP}*")
            if p.name.removeprefix(_STEP).isdigit()
        ]
        return sorted(s for s in steps if self.state_facts_file(s).is_file())

    def remove_leftovers(self) -> None:
        """Delete the temporary files of checkpoints whose writing a kill interrupted."""
        for file in self.checkpoints_dir.glob(f"{_STEP}*/.*"):
            file.unlink(missing_ok=True)

    def samples_dir(self, suite_hash: str, column: str, strength: float | None = None) -> Path:
        """Images of one column of one suite: ``BASE_COLUMN``, or a checkpoint at a strength."""
        name = column if strength in (None, 1) else f"{column}-at-{strength:g}"
        return self.dir / "samples" / suite_hash[:12] / name

    def references_dir(self, suite_hash: str) -> Path:
        """The held-out images that one suite's columns were compared with."""
        return self.samples_dir(suite_hash, "references")

    def training_dir(self, suite_hash: str) -> Path:
        """The training images that some image of one suite came nearest to."""
        return self.samples_dir(suite_hash, "training")

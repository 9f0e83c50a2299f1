"""A checked job: everything that the stages need to know, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from styletune.data.checked import LoadedData
from styletune.errors import NotFound
from styletune.models.base import BaseFiles
from styletune.planning.workload import Workload
from styletune.recipe import LoadedRecipe, Recipe
from styletune.recipe.training_sections import PredictionType
from styletune.runs import Run
from styletune.scoring.suite import Suite
from styletune.training.identity import Identity


@dataclass(frozen=True, slots=True)
class StartFile:
    """The adapter file that training starts from, and its SHA-256 when the job was prepared."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a run needs to know, checked; nothing has been written yet.

    ``start_from`` is the adapter file that training starts from; ``prediction_type`` what the
    adapted UNet predicts; ``workload`` what the plan of memory is made from; ``missing_base`` is
    set where a plan is made for a base that is not on this machine.
    """

    loaded: LoadedRecipe
    base: BaseFiles
    data: LoadedData
    suite: Suite | None
    run: Run
    resolution: int
    cache_dir: Path
    start_from: StartFile | None
    identity: Identity
    prediction_type: PredictionType
    workload: Workload
    missing_base: NotFound | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe, without its name and folder."""
        return self.loaded.recipe

    @property
    def trigger(self) -> str:
        """The word for the look; "" without one."""
        return self.data.trigger

    @property
    def is_trained(self) -> bool:
        """Whether the run has its last checkpoint."""
        return max(self.run.checkpoint_steps(), default=0) >= self.recipe.train.steps

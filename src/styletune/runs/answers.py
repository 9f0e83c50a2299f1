"""What commands print with ``--json``: the plan of a job, and the check of a data set."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from styletune.runs.form import Document, DocumentPart

# -- styletune plan -------------------------------------------------------------------------------


class PlanBase(DocumentPart):
    """The base model as the recipe names it; "" for the hash of one that is not here."""

    model: str
    hash: str


class PlanProblem(DocumentPart):
    """Something to fix before a run; an error means that training is refused."""

    severity: Literal["error", "warning"]
    where: str
    message: str
    fix: str


class PlanMemory(DocumentPart):
    """Accelerator memory: the peak, when it is reached, and its parts; all in bytes."""

    peak_bytes: int
    phase: str
    parts: dict[str, int]
    phases: dict[str, int]


class PlanCompute(DocumentPart):
    """Floating-point operations of a step and a forward pass; bounds on a known card."""

    step_flops: int
    forward_flops: int
    gpu: str | None
    floor_s: float | None
    images_per_s: float | None


class PlanBucket(DocumentPart):
    """One size in pixels, its images, and the mean share of an image that its crop loses."""

    width: int
    height: int
    images: int
    lost_share: float


class PlanData(DocumentPart):
    """The images; ``groups`` counts groups of duplicates, ``resolution`` is a side in pixels."""

    images: int
    train: int
    holdout: int
    groups: int
    buckets: tuple[PlanBucket, ...]
    resolution: int
    fingerprint: str
    trigger: str


class PlanTraining(DocumentPart):
    """Steps and what they show; ``done_steps`` are kept from an earlier start.

    ``images_per_step`` is the most, ``fewest_images`` the fewest: what is left over in a bucket is
    a smaller batch.
    """

    steps: int
    epochs: float
    images_per_epoch: int
    images_per_step: int
    fewest_images: int
    checkpoints: tuple[int, ...]
    adapter_scale: float
    done_steps: int


class PlanScoring(DocumentPart):
    """How many images scoring generates."""

    images: int


class Plan(Document):
    """What a job would do, need and write."""

    recipe: dict[str, JsonValue]
    recipe_hash: str
    base: PlanBase
    problems: tuple[PlanProblem, ...]
    memory: PlanMemory
    compute: PlanCompute
    data: PlanData
    train: PlanTraining
    score: PlanScoring | None
    run_dir: str
    outputs: tuple[str, ...]

    @property
    def base_is_missing(self) -> bool:
        """Whether the base model is not on this machine; it was planned by its published shapes."""
        return not self.base.hash

    @property
    def refused(self) -> bool:
        """Whether training would be refused."""
        return any(problem.severity == "error" for problem in self.problems)


# -- styletune data check -------------------------------------------------------------------------


class CheckFinding(DocumentPart):
    """One finding: its code, the files it is about, and the nearest fix."""

    code: str
    files: tuple[str, ...]
    message: str
    fix: str


class CheckGroup(DocumentPart):
    """Files that belong together: ``kind`` is exact, near or motif."""

    kind: str
    files: tuple[str, ...]


class CheckColor(DocumentPart):
    """A main color of the set and its share of the pixels."""

    hex: str
    weight: float


class CheckBucket(DocumentPart):
    """One size in pixels and its images."""

    width: int
    height: int
    images: int


class CheckResult(Document):
    """Everything that is known about a data set; ``split`` and ``coverage`` by name."""

    images: int
    readable: int
    errors: tuple[CheckFinding, ...]
    warnings: tuple[CheckFinding, ...]
    facts: tuple[CheckFinding, ...]
    groups: tuple[CheckGroup, ...]
    palette: tuple[CheckColor, ...]
    declared_palette: tuple[str, ...]
    coverage: dict[str, float]
    split: dict[str, str]
    resolution: int
    buckets: tuple[CheckBucket, ...]

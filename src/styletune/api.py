"""The public face: everything the command line does, as functions with typed results.

``import styletune`` offers the main ones. Nothing heavy is imported before a function that needs
it is called, and progress goes to stderr. Every error is a ``StyletuneError``, which says where,
what and how to fix it.
"""

from __future__ import annotations

import getpass
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from styletune.errors import BadInput
from styletune.progress import notify

if TYPE_CHECKING:
    import datasets

    from styletune.data.captions.folder import FolderFixes
    from styletune.data.captions.model import Captioned
    from styletune.data.checked import Checked
    from styletune.job.generate import LoadedVersion
    from styletune.job.job import Job
    from styletune.job.run import RunResult
    from styletune.planning.preflight import Needs
    from styletune.recipe import LoadedRecipe
    from styletune.registry.manifest import Manifest
    from styletune.registry.pull import Pulled
    from styletune.registry.versions import Published
    from styletune.runs import Run
    from styletune.runs.answers import CheckResult, Plan
    from styletune.runs.summary import Summary

RecipeSource: TypeAlias = "LoadedRecipe | str | os.PathLike[str]"

__all__ = [
    "DataReport",
    "Scored",
    "Trained",
    "check_data",
    "first_process",
    "fix_captions",
    "generate",
    "init_project",
    "list_registry",
    "load",
    "load_data",
    "load_recipe",
    "plan",
    "plan_without_data",
    "publish",
    "pull",
    "recipe_schema",
    "run",
    "score",
    "show_version",
    "train",
    "write_captions",
]


def load_recipe(file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe strictly.

    Args:
        file: a TOML recipe; its paths are relative to its folder.
        overrides: ``section.key=value`` strings, such as ``"train.steps=100"``.

    Raises:
        NotFound: there is no such file.
        RecipeError: not TOML, an unknown or misplaced key, a wrong type or value.
    """
    from styletune.recipe import load_recipe as load_file

    return load_file(Path(file), overrides)


def plan(
    recipe: RecipeSource,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    run_dir: str | os.PathLike[str] | None = None,
    gpu: str | None = None,
    registry: str | None = None,
) -> Plan:
    """Check a recipe against base, data, suite and run folder, and say what a run would do.

    Nothing is written. A base model that is not on this machine is planned by its published
    shapes and reported as a problem.

    Args:
        recipe: a loaded recipe, or its file.
        runs_dir: folder of all runs.
        run_dir: this run's own folder, instead of one below ``runs_dir`` named by its content.
        gpu: plan for this card, such as "RTX 3060"; this machine's card if left out.
        registry: also check what publishing there needs.

    Returns:
        Problems, peak memory in bytes, compute in FLOPs and seconds, data, steps, outputs.

    Raises:
        BadInput, NotFound, DataError, RecipeError: something cannot be used.
        Conflict: the run folder belongs to another recipe, data set or base.
        CheckFailed: with ``registry``, an image lacks rights.
        OutputError: the run folder cannot be written, or the disk is too full.
    """
    from styletune.planning.gpus import find_gpu

    card = find_gpu(gpu) if gpu else None
    job = _prepare(recipe, runs_dir, run_dir, planning=True)
    from styletune.job.plan import plan as plan_job
    from styletune.job.publish import check_publishable
    from styletune.planning.preflight import present_gpu

    if registry is not None:
        check_publishable(job.loaded, job.data.checked, registry, finished=job.is_trained)
    return plan_job(job, card or present_gpu())


def plan_without_data(recipe: RecipeSource, *, gpu: str | None = None) -> Needs:
    """Memory and compute of a recipe whose images are not there yet.

    Args:
        recipe: a loaded recipe, or its file.
        gpu: as ``plan``.

    Raises:
        BadInput, NotFound, RecipeError: the base cannot be used, or settings do not fit it.
    """
    from styletune.job.plan import needs_without_data
    from styletune.planning.gpus import find_gpu
    from styletune.planning.preflight import present_gpu

    return needs_without_data(_loaded(recipe), find_gpu(gpu) if gpu else present_gpu())


@dataclass(frozen=True, slots=True)
class DataReport:
    """A checked set of images: the findings and everything that was measured.

    ``name`` for headings; ``hits`` images were known from an earlier check; ``note`` says why facts
    are not kept between checks, "" if they are.
    """

    name: str
    checked: Checked
    hits: int
    note: str

    @property
    def result(self) -> CheckResult:
        """Errors, warnings, facts, groups of copies, palette, split and buckets."""
        from styletune.data.check import check_document

        return check_document(self.checked)

    def write_page(self, file: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML page for people. Raises OutputError."""
        from styletune.data.report.page import write_data_report

        write_data_report(self.checked, Path(file), title=self.name)


def check_data(
    source: LoadedRecipe | str | os.PathLike[str],
    *,
    resolution: int = 1024,
    default_caption: str | None = None,
    background: str | None = None,
    encoder: str = "none",
) -> DataReport:
    """Check images before anything is trained on them; nothing is changed.

    Args:
        source: a folder, an archive, a table or a Hub data set that is on this machine; or a loaded
            recipe, whose [data] then decides instead of the other arguments.
        resolution: training resolution in pixels, for crops and findings on size.
        default_caption: caption of images without one.
        background: color under transparent pixels, "#rrggbb".
        encoder: also find motifs and outliers with it: "mini", ARCHITECTURE/PRETRAINED or
            local-dir:FOLDER; "none" compares pixels alone.

    Raises:
        NotFound: the source or the encoder is not there.
        DataError, RecipeError: it cannot be read at all, or an argument is not possible. Faults of
            the images are findings, not errors.
    """
    from styletune.job.check import check_recipe, check_section
    from styletune.recipe import LoadedRecipe, validate
    from styletune.recipe.data_sections import DataSection

    show = first_process()
    if isinstance(source, LoadedRecipe):
        checked = check_recipe(source, show_progress=show)
    else:
        keys = {"default_caption": default_caption, "background": background, "encoder": encoder}
        section = validate(DataSection, {"path": str(source), **keys}, Path(source))
        checked = check_section(section, resolution=resolution, show_progress=show)
    return DataReport(checked.name, checked.checked, checked.hits, checked.note)


def load_data(recipe: RecipeSource) -> datasets.Dataset:
    """A recipe's images as a Hugging Face data set, checked and split as training would.

    Args:
        recipe: a loaded recipe, or its file.

    Returns:
        Columns ``image`` (PIL, upright sRGB when read), ``text``, ``split`` ("train" or "holdout"),
        ``file_name``, ``width``, ``height``, and the rights: ``license``, ``holder``, ``source``,
        ``consent``.

    Raises:
        NotFound, RecipeError: a source or the base model's tokenizer is not there, or not valid.
        DataError: what ``check_data`` calls an error.
    """
    from styletune.data.load import as_dataset
    from styletune.job.check import load_recipe_data

    loaded = _loaded(recipe)
    return as_dataset(load_recipe_data(loaded, show_progress=first_process()))


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained run; ``did_train`` is False when all its steps were done before."""

    run: Run
    did_train: bool


def train(
    recipe: RecipeSource,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    run_dir: str | os.PathLike[str] | None = None,
) -> Trained:
    """Train the adapter, or resume where training was interrupted.

    Takes ``recipe``, ``runs_dir`` and ``run_dir`` as ``plan``. May run in several processes.

    Raises:
        as ``plan``; also
        CheckFailed: a loss, gradient or weight became NaN or infinite.
        IntegrityError: a checkpoint or a file of the base is damaged.
        OutputError: a checkpoint cannot be written.
    """
    job = _prepare(recipe, runs_dir, run_dir, many_processes=True)
    from styletune.job.train import train as train_job

    return Trained(job.run, train_job(job))


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored run: its folder (``run.report_file`` is the page) and the summary."""

    run: Run
    summary: Summary

    def require_passed(self) -> None:
        """Raise CheckFailed that names every gate the chosen checkpoint did not pass."""
        from styletune.runs.summary import refuse_unless_passed

        refuse_unless_passed(self.summary, self.run.report_file)


def score(
    recipe: RecipeSource,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    run_dir: str | os.PathLike[str] | None = None,
) -> Scored:
    """Generate the suite's images with base and checkpoints, measure, choose, gate and report.

    What is current is not done again. Takes ``recipe``, ``runs_dir`` and ``run_dir`` as ``plan``.

    Returns:
        The run and its summary: metrics with 95 % intervals over prompts, gates, the choice.

    Raises:
        as ``plan``; also
        BadInput: the recipe has no [score].
        NotFound: there is no checkpoint yet.
        IntegrityError: a checkpoint is damaged.
    """
    job = _prepare(recipe, runs_dir, run_dir)
    from styletune.job.score import score as score_job

    return Scored(job.run, score_job(job))


def publish(
    recipe: RecipeSource,
    *,
    registry: str = "registry",
    runs_dir: str | os.PathLike[str] = "runs",
    run_dir: str | os.PathLike[str] | None = None,
    who: str | None = None,
) -> Published:
    """Publish the chosen checkpoint as an immutable version.

    Args:
        recipe: a loaded recipe, or its file, with [publish].
        registry: folder or bucket URL; a folder is created.
        runs_dir: as ``plan``.
        run_dir: as ``plan``.
        who: the publisher's name in the registry; the user's login name if left out.

    Returns:
        Name, version and digest (SHA-256 of the manifest).

    Raises:
        BadInput: the recipe has no [publish].
        NotFound: the run has not been scored.
        CheckFailed: it did not pass its gates, or an image lacks rights.
        Conflict: that version exists.
    """
    job = _prepare(recipe, runs_dir, run_dir)
    from styletune.job.publish import publish as publish_job

    return publish_job(job, registry, who or _login_name())


def run(
    recipe: RecipeSource,
    *,
    registry: str | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    run_dir: str | os.PathLike[str] | None = None,
) -> RunResult:
    """The whole job: check, train, score, choose, gate, and publish to ``registry`` if given.

    A run that does not pass its gates is not published; ``summary.chosen.passed`` tells.

    Raises:
        as ``train``, ``score`` and ``publish``; what could not be published is refused before
        training.
    """
    job = _prepare(recipe, runs_dir, run_dir)
    from styletune.job.publish import check_publishable
    from styletune.job.run import run_job

    if registry is not None:
        check_publishable(job.loaded, job.data.checked, registry, finished=job.is_trained)
    return run_job(job, registry=registry, who=_login_name())


def pull(
    version: str, *, registry: str = "registry", to: str | os.PathLike[str] = "pulled"
) -> Pulled:
    """Fetch a published version into ``to/<name>/<version>``; every checksum is verified.

    Args:
        version: ``horizon``, ``horizon@1.0.0``, ``horizon@^1``, ``horizon@~1.2`` …
        registry: folder or bucket URL.
        to: folder to pull into.

    Raises:
        BadInput: not such a request.
        NotFound: no such registry, adapter or version.
        IntegrityError: a file was changed, or the folder that is there holds something else.
    """
    from styletune.registry.pull import pull as pull_version
    from styletune.registry.resolve import parse_spec
    from styletune.registry.store import open_store

    wanted = parse_spec(version)  # first: a registry may be far away
    return pull_version(open_store(registry, create=False), wanted, Path(to))


def load(
    version: str,
    *,
    registry: str = "registry",
    to: str | os.PathLike[str] = "pulled",
    base: str | None = None,
    vae: str | None = None,
    strength: float | None = None,
) -> LoadedVersion:
    """Pull a version and load it into a ready pipeline of its base model.

    Args:
        version: as ``pull``.
        registry: as ``pull``.
        to: as ``pull``.
        base: where the base model is on this machine, if not by its published name.
        vae: the same for its separate VAE.
        strength: of the adapter; the published one if left out.

    Returns:
        ``.pipe`` is a diffusers pipeline, on the GPU if there is one; ``.version.manifest`` says
        trigger, license and base.

    Raises:
        as ``pull``; also
        NotFound, BaseModelError: the base model is not here, or cannot be loaded.
        Conflict: the base model here has other weights than the version was trained on.
    """
    from styletune.job.generate import load_version

    pulled = pull(version, registry=registry, to=to)
    return load_version(pulled, base_model=base, vae=vae, strength=strength)


def generate(
    version: LoadedVersion | str,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (1,),
    out: str | os.PathLike[str] = "generated",
    steps: int = 25,
    guidance_scale: float = 5.0,
    batch_size: int = 4,
) -> list[Path]:
    """Generate images with a published version; PNG files with their settings embedded.

    Args:
        version: from ``load``; or its name, loaded with ``load``'s defaults.
        prompts: the trigger is put in front of those that lack it.
        seeds: of each prompt's images, in [0, 2**32).
        out: folder for the images; one that is there with the same settings is kept.
        steps: denoising steps.
        guidance_scale: of classifier-free guidance, at least 1.
        batch_size: images at a time.

    Returns:
        One file for each prompt and seed, prompts-major.

    Raises:
        as ``load``; also
        DataError: a prompt is too long, or holds a control word of CLIP's.
        OutputError: the images cannot be written.
    """
    from styletune.job.generate import generate as generate_images
    from styletune.sampling.prompts import check_prompts
    from styletune.sampling.shots import Sampler

    check_prompts({f"prompt {i + 1}": prompt for i, prompt in enumerate(prompts)})
    require_output(out)
    loaded = load(version) if isinstance(version, str) else version
    sampler = Sampler(steps, guidance_scale)
    return generate_images(
        loaded, prompts, seeds, sampler, out_dir=Path(out), batch_size=batch_size
    )


def require_output(out: str | os.PathLike[str]) -> None:
    """Refuse a folder for images before a base model is loaded for them.

    Raises:
        OutputError: no permission, or a part of the path is a file.
    """
    from styletune.files import require_writable

    require_writable(Path(out), "choose another folder")


def list_registry(registry: str = "registry") -> dict[str, list[str]]:
    """Names in a registry and their versions, oldest first. Raises NotFound."""
    from styletune.registry.store import open_store
    from styletune.registry.versions import list_names, list_versions

    store = open_store(registry, create=False)
    return {name: [str(v) for v in list_versions(store, name)] for name in list_names(store)}


def show_version(version: str, *, registry: str = "registry") -> tuple[Manifest, str]:
    """The manifest of a version (as ``pull`` names it) and its digest. Raises as ``pull``."""
    from styletune.registry.resolve import parse_spec, resolve
    from styletune.registry.store import open_store

    return resolve(open_store(registry, create=False), parse_spec(version))


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    from styletune.recipe import recipe_schema as schema

    return schema()


def init_project(folder: str | os.PathLike[str]) -> list[Path]:
    """Make a folder ready to fill: images with their card, recipe, suite; the files written.

    Raises:
        Conflict: the folder is not empty.
        BadInput: its name cannot name an adapter.
        OutputError: it cannot be written.
    """
    from styletune.project.init import init_project as write_project

    return list(write_project(Path(folder), Path(folder).name))


def fix_captions(
    folder: str | os.PathLike[str], *, trigger: str | None = None, write: bool = False
) -> FolderFixes:
    """What rules can fix in the captions of a folder, as a diff; with ``write`` it is written.

    Args:
        folder: of images.
        trigger: the word for the look; the card's if left out.
        write: apply the fixes.

    Raises:
        NotFound, DataError: no such folder, or captions there cannot be read.
        Conflict: a caption changed in the meantime; nothing has been written.
    """
    from styletune.data.captions.folder import fix_captions as fix_folder

    return fix_folder(Path(folder), trigger, write=write)


def write_captions(
    folder: str | os.PathLike[str],
    model: str,
    *,
    revision: str | None = None,
    template: str = "{trigger}, {caption}",
    trigger: str | None = None,
    prompt: str = "",
    batch_size: int = 4,
    redo: bool = False,
) -> Captioned:
    """Caption the images of a folder that have none, with an image-to-text model.

    Args:
        folder: of images; captions go into its ``metadata.jsonl``.
        model: a folder, or a Hub id that is on this machine.
        revision: commit of the Hub model.
        template: what is written; {trigger} is the card's.
        trigger: instead of the card's.
        prompt: what the model is asked; many need nothing.
        batch_size: images at a time.
        redo: also replace captions that a model wrote with other settings.

    Raises:
        NotFound, BaseModelError: the model is not here, or cannot be used.
        DataError, Conflict: captions there cannot be read, or changed in the meantime.
    """
    from styletune.data.captions.folder import caption_folder
    from styletune.data.captions.model import CaptionSettings

    settings = CaptionSettings(template, trigger, prompt, batch_size, redo)
    return caption_folder(Path(folder), model, revision, settings)


def first_process() -> bool:
    """Whether this is the only process, or the first that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


def _prepare(
    recipe: RecipeSource,
    runs_dir: str | os.PathLike[str],
    run_dir: str | os.PathLike[str] | None,
    *,
    many_processes: bool = False,
    planning: bool = False,
) -> Job:
    loaded = _loaded(recipe)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not many_processes:
        file = loaded.file
        raise BadInput(
            "only training runs in several processes",
            where="accelerate launch",
            fix=f"accelerate launch -m styletune train {file}; then styletune run {file}",
        )
    from styletune.job.prepare import prepare

    job = prepare(
        loaded,
        runs_dir=Path(runs_dir),
        run_dir=None if run_dir is None else Path(run_dir),
        planning=planning,
        show_progress=first_process(),
    )
    if first_process():
        if job.data.note:
            notify(f"note: {job.data.note}")
        for warning in job.data.warnings:
            notify(f"warning: {warning.code}: {textwrap.shorten(warning.message, 160)}")
    return job


def _loaded(recipe: RecipeSource) -> LoadedRecipe:
    from styletune.recipe import LoadedRecipe

    return recipe if isinstance(recipe, LoadedRecipe) else load_recipe(recipe)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in many containers
        return "unknown"

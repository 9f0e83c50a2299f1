"""``styletune data check``: the truth about a folder, an archive, or the data of a recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.data.captions.fix import CaptionFix, apply_fixes, caption_fixes, fixes_diff
from styletune.data.captions.lint import caption_findings
from styletune.data.check import Checked, CheckSettings, check_data
from styletune.data.findings import data_error
from styletune.data.inspection.store import close_store, default_store_path, open_store
from styletune.data.sources.open import Opened, Source, open_sources, resolve_sources
from styletune.errors import BadInput, DataError
from styletune.places import device_name
from styletune.recipe import load_recipe

if TYPE_CHECKING:
    from styletune.data.captions.model import Captioned

# A token is at least one byte (of a Japanese letter there may be three), and two of the 77 are
# start and end.
MOST_BYTES = 75
# After these nobody can say which captions people wrote, and where.
CAPTION_FAULTS = ("ambiguous-caption", "bad-archive", "bad-metadata", "unread-caption-file")


@dataclass(frozen=True, slots=True)
class Answer:
    """``name`` for headings; ``hits`` of the images were known already; ``note`` for the user."""

    name: str
    checked: Checked
    hits: int
    note: str


def check_path(path: Path, settings: CheckSettings, *, show_progress: bool) -> Answer:
    """Check a folder, zip, tar, parquet or Arrow file, or a Hub data set that is on this machine.

    Captions are measured with CLIP's own vocabulary, which SDXL's first encoder has.

    Raises:
        NotFound, DataError, RecipeError: as ``check_data``.
    """
    sources = resolve_sources(str(path), (), Path.cwd())
    return _check(sources, settings, clip_tokens, Path.cwd(), show_progress)


def check_recipe(file: Path, *, show_progress: bool) -> Answer:
    """Check the data of a recipe as training would, also before its base model is here.

    Raises:
        NotFound, DataError, RecipeError: as ``check_data`` and ``load_recipe``.
    """
    from styletune.job.prepare import check_settings, find_planned_base, token_counter

    loaded = load_recipe(file)
    recipe, folder = loaded.recipe, loaded.file.parent
    base, missing = find_planned_base(loaded)
    tokens = clip_tokens if missing else token_counter(base)
    settings = check_settings(loaded, recipe.data.resolution or base.resolution)
    sources = resolve_sources(recipe.data.path, recipe.data.sources, folder)
    return _check(sources, settings, tokens, folder, show_progress)


@dataclass(frozen=True, slots=True)
class Mended:
    """Proposed changes as a diff; the files ``written``, the images ``left`` to a person."""

    fixes: list[CaptionFix]
    diff: str
    written: list[str]
    left: list[str]


def mend_captions(folder: Path, trigger: str | None, *, applies: bool) -> Mended:
    """What a rule can mend in a folder's captions; with ``applies`` it is written.

    Raises:
        NotFound, DataError: as ``open_sources``; or captions there cannot be read.
        Conflict: a caption changed in the meantime; nothing has been written.
    """
    opened = _open_captions(folder)
    findings = caption_findings(opened.items, opened.cards, trigger=trigger, tokens=None)
    fixes = caption_fixes(opened.items, findings, trigger, opened.cards)
    diff = fixes_diff(folder, fixes)
    if not (applies and fixes):
        return Mended(fixes, diff, [], [])
    applied = apply_fixes(folder, fixes)
    return Mended(fixes, diff, [str(f) for f in applied.written], list(applied.left))


def caption_folder(
    folder: Path,
    *,
    model: str,
    revision: str | None,
    template: str,
    trigger: str | None,
    prompt: str,
    batch_size: int,
    redo: bool,
) -> Captioned:
    """Caption the images of a folder that have no caption, into its ``metadata.jsonl``.

    Raises:
        NotFound, BaseModelError: the model is not here, or cannot be used.
        DataError, Conflict: as ``caption_images``; or captions there cannot be read.
    """
    from styletune.data.captions.model import caption_images, load_caption_model

    opened = _open_captions(folder)
    card = next(iter(opened.cards.values()), None)
    trigger = trigger or (card.trigger if card else None)
    captioner = load_caption_model(model, revision=revision, device=device_name())
    return caption_images(
        opened.items,
        captioner,
        out=folder / "metadata.jsonl",
        template=template,
        trigger=trigger,
        prompt=prompt,
        batch_size=batch_size,
        redo=redo,
    )


def _open_captions(folder: Path) -> Opened:
    """A folder whose captions can all be read. Raises DataError that says what cannot."""
    opened = open_sources(_folder_source(folder), default_caption=None)
    if faults := [found for found in opened.findings if found.code in CAPTION_FAULTS]:
        raise data_error(str(folder), faults)
    return opened


def _folder_source(folder: Path) -> tuple[Source, ...]:
    if folder.is_file():
        raise DataError(
            "is a file; captions are written beside images in a folder",
            where=str(folder),
            fix=f"give {folder.parent}",
        )
    return resolve_sources(str(folder), (), Path.cwd())


def _check(
    sources: tuple[Source, ...],
    settings: CheckSettings,
    tokens: Callable[[str], int],
    relative_to: Path,
    show_progress: bool,
) -> Answer:
    store = open_store(default_store_path())
    try:
        checked = check_data(
            sources,
            settings,
            store=store,
            tokens=tokens,
            relative_to=relative_to,
            show_progress=show_progress,
        )
    finally:
        close_store(store)
    names = ", ".join(source.name for source in sources)
    return Answer(names, checked, store.hits, store.note)


def clip_tokens(text: str) -> int:
    """CLIP tokens of a text with start and end; exact where there may be more than 77."""
    size = len(text.lower().encode())  # as CLIP reads it
    if size <= MOST_BYTES:
        return 2 + size  # at the most, and that is enough to know
    return 2 + len(_clip_tokenizer().encode(text))


@functools.cache
def _clip_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def recipe_or_data(path: Path) -> bool:
    """Whether a path means a recipe, by its name.

    Raises:
        BadInput: it is a data set card.
    """
    if path.name.endswith("dataset.toml"):
        raise BadInput(
            "is the card of a data set", where=str(path), fix=f"give its folder, {path.parent}"
        )
    return path.suffix.lower() == ".toml"

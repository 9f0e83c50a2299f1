"""Captions written by a model for images without any; people's captions are never touched."""

from __future__ import annotations

import hashlib
import json
import posixpath
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styletune.data.pixels.decode import decode_image
from styletune.data.sources.files import find_files
from styletune.data.sources.items import Item
from styletune.data.sources.metadata import read_metadata
from styletune.data.sources.records import jsonl_records
from styletune.errors import BadInput, BaseModelError, Conflict, DataError, NotFound
from styletune.files import file_sha256, write_text
from styletune.hub import find_snapshot, is_hub_id
from styletune.progress import progress

if TYPE_CHECKING:
    import torch
    from PIL import Image

MAX_NEW_TOKENS = 60
# The whole file is written each time, which with many images takes longer than a batch.
SAVE_SECONDS = 10.0
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Captioned:
    """File names: ``written`` now; ``kept``: already captioned by a person or with the same
    settings; ``empty``: the model returned nothing, so they still have no caption.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]
    empty: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """How captions are written.

    ``template`` is the caption, with ``{caption}`` for the model's words and ``{trigger}``, which
    ``trigger`` replaces; ``prompt`` the question to the model, or the start of its caption; some
    need none. ``batch_size`` images are captioned at a time; ``redo`` also replaces captions that
    a model wrote with other settings.
    """

    template: str = "{trigger}, {caption}"
    trigger: str | None = None
    prompt: str = ""
    batch_size: int = 4
    redo: bool = False


@dataclass(frozen=True, slots=True)
class CaptionModel:
    """An image-to-text model of transformers with its processor; ``name`` is its name and
    revision: ``owner/name@commit``, or ``folder@sha256`` of its weights.
    """

    model: Any
    processor: Any
    name: str
    device: torch.device


def load_caption_model(
    model: str, *, revision: str | None = None, device: str | None = None
) -> CaptionModel:
    """Load an image-to-text model (BLIP, Florence-2, GIT, LLaVA …) from this machine.

    Args:
        model: a folder, or a Hub id in the local cache.
        revision: commit, branch or tag of the Hub model; None is main.
        device: torch's name, None for a GPU if there is one; bf16 on anything but the CPU.

    Raises:
        NotFound: it is not here; the fix is the command that downloads it.
        BaseModelError: it requires custom code, has no safetensors, or is another kind of model.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, name = _locate(model, revision)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    try:
        _refuse_own_code(model, folder)
        processor = AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        loaded = AutoModelForImageTextToText.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unusable(model, folder, error) from error
    return CaptionModel(loaded.to(device).eval(), processor, name, torch.device(device))


def _locate(model: str, revision: str | None) -> tuple[Path, str]:
    """Folder and full name."""
    folder = Path(model)
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        digest = hashlib.sha256("".join(map(file_sha256, weights)).encode()).hexdigest()
        return folder, f"{folder.resolve().name}@{digest[:12]}"
    if not is_hub_id(model):
        raise NotFound(
            "no such folder, and not a Hub id (owner/name)",
            where=model,
            fix="for example: hf download Salesforce/blip-image-captioning-large",
        )
    snapshot = find_snapshot(model, revision, where=model)
    return snapshot.folder, f"{model}@{snapshot.commit}"


def _refuse_own_code(model: str, folder: Path) -> None:
    """Raise BaseModelError for a model unknown to transformers that brings its own code."""
    from transformers import CONFIG_MAPPING

    file = folder / "config.json"
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise BaseModelError(
            "requires custom code from its repository, which is never run",
            where=model,
            fix="choose a model that transformers knows, such as BLIP or Florence-2",
        )


def _unusable(model: str, folder: Path, error: Exception) -> BaseModelError:
    if not list(folder.glob("*.safetensors")):
        return BaseModelError(
            "has no .safetensors weights",
            where=model,
            fix="choose a revision that has them; pickled weights are never opened",
        )
    return BaseModelError(
        f"not an image-to-text model that transformers can load: {str(error).splitlines()[0]}",
        where=model,
    )


def caption_images(
    items: Sequence[Item],
    captioner: CaptionModel,
    settings: CaptionSettings,
    *,
    out: Path,
    show_progress: bool = True,
) -> Captioned:
    """Caption the images that have no caption, saving them along the way.

    Decoding is greedy, so the same command gives the same captions; when interrupted, it resumes.
    An error or Ctrl-C loses no finished batch, a kill or power cut at most those of the last
    ``SAVE_SECONDS``; the file is always complete, old or new.

    A row in ``out`` has ``file_name``, ``text``, ``machine_caption``: true, ``caption_model`` and
    ``caption_settings`` (a hash of model, prompt, template and trigger); existing rows and columns
    stay.

    Args:
        items: of one folder of plain image files.
        captioner: of ``load_caption_model``.
        settings: how captions are written.
        out: ``metadata.jsonl`` in a folder that contains all the images, at any depth.
        show_progress: draw a progress bar on stderr.

    Raises:
        DataError: template, items or an image cannot be used.
        Conflict: another metadata file is next to ``out``, or one in a subfolder has rows for
            these images; or ``redo`` of a caption that is not in ``out``.
        BaseModelError: the model computes NaN or infinity.
    """
    template, trigger, prompt = settings.template, settings.trigger, settings.prompt
    check_captionable(items, out, settings)
    identity = json.dumps([captioner.name, prompt, template, trigger]).encode()
    marks = {
        "machine_caption": True,
        "caption_model": captioner.name,
        "caption_settings": hashlib.sha256(identity).hexdigest()[:12],
    }
    rows = _read_rows(out)
    names = {item.file_name: _name_in(item, out) for item in items}
    waiting = [
        i for i in items if _is_due(i, rows.get(names[i.file_name], {}), marks, settings.redo)
    ]
    _refuse_second_rows(waiting, names, rows, out)
    written: list[str] = []
    empty: list[str] = []
    due = {item.file_name for item in waiting}
    kept = [item.file_name for item in items if item.file_name not in due]
    filled = template.replace("{trigger}", (trigger or "").strip())
    saved, saved_at = 0, time.monotonic()
    try:
        with progress("Captioning", len(items), len(kept), show_progress) as advance:
            for batch in _batches(waiting, settings.batch_size):
                images = [_decode(item) for item in batch]
                for item, words in zip(batch, _describe(captioner, images, prompt), strict=True):
                    if not words:
                        empty.append(item.file_name)
                        continue
                    name, text = names[item.file_name], filled.replace("{caption}", words)
                    rows[name] = {**rows.get(name, {"file_name": name}), "text": text, **marks}
                    written.append(item.file_name)
                advance(len(batch), "")
                if len(written) > saved and time.monotonic() - saved_at >= SAVE_SECONDS:
                    _write_rows(out, rows)
                    saved, saved_at = len(written), time.monotonic()
    finally:
        if len(written) > saved:
            _write_rows(out, rows)
    return Captioned(tuple(written), tuple(kept), tuple(empty))


def check_captionable(items: Sequence[Item], out: Path, settings: CaptionSettings) -> None:
    """Refuse before a model is loaded what it could not caption. Raises as ``caption_images``."""
    template, trigger = settings.template, settings.trigger
    if settings.batch_size < 1:
        raise BadInput(f"is {settings.batch_size}", where="batch_size", fix="give 1 or more")
    left = template.replace("{trigger}", "").replace("{caption}", "")
    if "{caption}" not in template or "{" in left or "}" in left:
        raise DataError(
            f'the template "{template}" must contain {{caption}}, and may contain {{trigger}}',
            where="template",
            fix='for example "{trigger}, {caption}"',
        )
    if "{trigger}" in template and not (trigger and trigger.strip()):
        raise DataError(
            f'the template "{template}" contains {{trigger}}, but no trigger is declared',
            where="template",
            fix='declare one in dataset.toml, or use the template "{caption}"',
        )
    if inside := [item.file_name for item in items if item.member]:
        raise DataError(
            "images in archives and tables cannot be given captions; unpack them first",
            where=inside[0],
            fix="caption a folder of image files",
        )
    for other in ("metadata.csv", "metadata.parquet"):
        if (out.parent / other).exists():
            raise Conflict(
                f"captions would be written to {out.name}, but the folder has a {other}",
                where=str(out.parent),
                fix=f"save {other} as {out.name}; a folder may have only one metadata file",
            )


def _name_in(item: Item, out: Path) -> str:
    """The image's name in ``out``, relative to its folder. Raises DataError."""
    path, folder = Path(item.path).absolute(), out.parent.absolute()
    if not path.is_relative_to(folder):
        raise DataError(f"is not in {folder}", where=item.path)
    return path.relative_to(folder).as_posix()


def _is_due(item: Item, row: dict[str, Any], marks: dict[str, Any], redo: bool) -> bool:
    """Whether an image needs a caption, by the set as listed and the file as it is now."""
    text = row.get("text")
    if text is None and not item.machine_caption:
        return item.text is None
    if not (row.get("machine_caption") if text is not None else item.machine_caption):
        return False
    return redo and row.get("caption_settings") != marks["caption_settings"]


def _refuse_second_rows(
    waiting: Sequence[Item], names: dict[str, str], rows: Rows, out: Path
) -> None:
    """Raise Conflict where a caption in ``out`` would be the second one of an image."""
    mine = {names[item.file_name] for item in waiting}
    for file in find_files(out.parent).metadata if mine else ():
        if file == out.name:
            continue
        captions, _ = read_metadata({file: (out.parent / file).read_bytes()})
        if listed := sorted(mine.intersection(captions.listed)):
            raise Conflict(
                f"captions would be written to {out.name}, but {file} has rows for "
                f"{len(listed)} of these images, such as {listed[0]}",
                where=str(out.parent),
                fix=f"caption {out.parent / posixpath.dirname(file)} separately, or move the rows "
                f"of {file} to {out.name}",
            )
    for item in waiting:
        if item.text is not None and rows.get(names[item.file_name], {}).get("text") is None:
            raise Conflict(
                f"its caption is not in {out.name}, where a new one would be written",
                where=item.file_name,
                fix="remove its caption to get a new one",
            )


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _decode(item: Item) -> Image.Image:
    # Models see a few hundred pixels: keep batches of large photographs small.
    image = decode_image(Path(item.path), name=item.file_name, background=item.background)
    image.thumbnail((1024, 1024))
    return image


def _describe(captioner: CaptionModel, images: Sequence[Image.Image], prompt: str) -> list[str]:
    """The model's caption of each image, on one line, without the prompt."""
    import torch

    text = [_chat_prompt(captioner, prompt)] * len(images) if prompt else None
    inputs = captioner.processor(images=list(images), text=text, return_tensors="pt")
    inputs = inputs.to(captioner.device, captioner.model.dtype)
    with torch.inference_mode():
        output = captioner.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=MAX_NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    if not all(bool(torch.isfinite(step).all()) for step in output.logits):
        raise BaseModelError(
            "the model computes NaN or infinity; its captions would be noise",
            where=captioner.name,
            fix="download its weights again, or run it on the CPU",
        )
    # Each step of logits is one new token; the tokens before are the prompt's.
    words = captioner.processor.batch_decode(
        output.sequences[:, -len(output.logits) :], skip_special_tokens=True
    )
    return [" ".join(each.split()) for each in words]


def _chat_prompt(captioner: CaptionModel, prompt: str) -> str:
    """The prompt in the model's chat template, if it has one."""
    if not getattr(captioner.processor, "chat_template", None):
        return prompt
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    chat = [{"role": "user", "content": content}]
    return str(captioner.processor.apply_chat_template(chat, add_generation_prompt=True))


def _read_rows(out: Path) -> Rows:
    """Rows by normalized file name, in order. Raises DataError if a line is not one."""
    if not out.is_file():
        return {}
    rows: Rows = {}
    for line, row in jsonl_records(out.read_text(encoding="utf-8-sig")):
        where = f"{out} line {line}"
        if isinstance(row, str):
            raise DataError(row, where=where)
        if not isinstance(row.get("file_name"), str):
            raise DataError("not a row with file_name", where=where)
        rows[posixpath.normpath(row["file_name"])] = row
    return rows


def _write_rows(out: Path, rows: Rows) -> None:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows.values())
    write_text(out, "".join(line + "\n" for line in lines))

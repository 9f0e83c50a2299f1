"""Any strict settings file in TOML: recipes, suites, data set cards.

Unknown keys, misplaced keys and impossible values are reported with the file, section, key,
nearest valid key (searched in all sections) and the choices.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from styletune.errors import NotFound, RecipeError
from styletune.text import control_problem, decode_text, read_bounded

# What other trainers call it: section and key here.
_ELSEWHERE = {
    "pretrained_model_name_or_path": ("base", "model"),
    "base_model": ("base", "model"),
    "train_data_dir": ("data", "path"),
    "instance_data_dir": ("data", "path"),
    "instance_prompt": ("data", "default_caption"),
    "keep_tokens": ("data", "caption_keep_first"),
    "flip_aug": ("data", "flip"),
    "network_dim": ("adapter", "rank"),
    "lora_rank": ("adapter", "rank"),
    "network_alpha": ("adapter", "alpha"),
    "lora_alpha": ("adapter", "alpha"),
    "conv_dim": ("adapter", "conv_rank"),
    "network_weights": ("adapter", "start_from"),
    "lr": ("optimizer", "learning_rate"),
    "unet_lr": ("optimizer", "learning_rate"),
    "text_encoder_lr": ("optimizer", "text_encoder_learning_rate"),
    "optimizer_type": ("optimizer", "name"),
    "lr_scheduler": ("optimizer", "schedule"),
    "lr_warmup_steps": ("optimizer", "warmup_steps"),
    "epochs": ("train", "steps"),
    "num_train_epochs": ("train", "steps"),
    "max_train_epochs": ("train", "steps"),
    "max_train_steps": ("train", "steps"),
    "train_batch_size": ("train", "batch_size"),
    "min_snr_gamma": ("train", "snr_gamma"),
    "save_every_n_steps": ("train", "checkpoint_every"),
    "checkpointing_steps": ("train", "checkpoint_every"),
    "class_data_dir": ("dreambooth", "class_prompt"),
    "report_to": ("train", "tracker"),
    "log_with": ("train", "tracker"),
}
_ADVICE = {"steps": "; styletune plan says how many epochs they are"}

_M = TypeVar("_M", bound=BaseModel)

# 32 dotted parts or more: the parser's time grows with their square.
_DEEP_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){32}""", re.MULTILINE
)


def read_toml(file: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises NotFound or RecipeError with line and column."""
    try:
        content = read_bounded(file)
    except FileNotFoundError:
        near = _near_files(file)
        raise NotFound("no such file", where=str(file), fix=near) from None
    except IsADirectoryError:
        near = _near_files(file / file.name)
        raise RecipeError("is a folder, not a TOML file", where=str(file), fix=near) from None
    except ValueError as error:
        raise RecipeError(str(error), where=str(file), fix="give a TOML file") from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(file)) from None
    return parse_toml(content, str(file))


def parse_toml(content: bytes, where: str) -> dict[str, Any]:
    """Parse the bytes of a TOML file. Raises RecipeError with line and column."""
    try:
        text = decode_text(content)
    except ValueError as error:
        raise RecipeError(str(error), where=where) from None
    if _DEEP_KEY.search(text):
        raise RecipeError("nested too deeply", where=where)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        fix = _escape_fix(str(error))
        raise RecipeError(f"not valid TOML: {error}", where=where, fix=fix) from None
    except RecursionError:
        raise RecipeError("nested too deeply", where=where) from None
    except ValueError as error:
        # A number of thousands of digits; the parser does not say where.
        raise RecipeError(f"not valid TOML: {error}".partition(";")[0], where=where) from None


def _escape_fix(message: str) -> str:
    """What to do about a Windows path in double quotes."""
    if "escape" not in message and "hex value" not in message:
        return ""
    return "in double quotes a backslash starts an escape: use / or single quotes in paths"


def _near_files(file: Path) -> str:
    if not file.parent.is_dir():
        return f"the folder {file.parent} does not exist either"
    names = sorted(p.name for p in file.parent.glob("*.toml"))
    close = difflib.get_close_matches(file.name, names, n=1)
    if close:
        return f"did you mean {file.parent / close[0]}?"
    return f"TOML files there: {', '.join(names) or 'none'}"


def load_toml(file: Path, model: type[_M]) -> _M:
    """Load any strict settings file (suite, data set card). Raises as ``load_recipe``."""
    return validate(model, read_toml(file), file)


def validate(model: type[_M], tree: dict[str, Any], file: Path) -> _M:
    """Validate a parsed tree; every problem is reported at once, each with its place."""
    for key, text in _texts(tree, ""):
        # An escape such as "\u0000" makes a text that no file could hold.
        if problem := control_problem(text):
            raise RecipeError(problem, where=f"{file}: {key}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(model, item) for item in _first_causes(error.errors())]
        where, message, fix = problems[0]
        for other_where, other_message, other_fix in problems[1:]:
            message += f"\n{file}: {other_where}: {other_message}"
            message += f" ({other_fix})" if other_fix else ""
        raise RecipeError(message, where=f"{file}: {where}", fix=fix) from None


def _first_causes(items: Sequence[Any]) -> list[Any]:
    """Without lists that are too short only because an entry of theirs is wrong."""
    places = [item["loc"] for item in items]

    def follows(item: Any) -> bool:
        own = item["loc"]
        return item["type"] == "too_short" and any(
            place != own and place[: len(own)] == own for place in places
        )

    return [item for item in items if not follows(item)]


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    """All texts of a tree, each with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each, key)


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The sections of a settings model by name."""
    return {
        name: candidate
        for name, info in model.model_fields.items()
        for candidate in (info.annotation, *_options(info.annotation))
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
    }


def _options(annotation: object) -> tuple[object, ...]:
    """``A`` and ``None`` of ``A | None``; nothing of a list."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()


def _tables(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The keys that hold a list of tables, and what each table is."""
    return {
        name: each
        for name, info in model.model_fields.items()
        if get_origin(info.annotation) is tuple
        for each in get_args(info.annotation)
        if isinstance(each, type) and issubclass(each, BaseModel)
    }


def _place(
    model: type[BaseModel], loc: Sequence[str | int]
) -> tuple[str, type[BaseModel], list[str]]:
    """Where a problem is, for people, the settings that it is in, and the rest of its path."""
    where, owner, at = "top level", model, 0
    while at < len(loc):
        name = str(loc[at])
        if name in _sections(owner) and at + 1 < len(loc):
            owner, where, at = _sections(owner)[name], f"[{name}]", at + 1
        elif name in _tables(owner) and at + 1 < len(loc) and isinstance(loc[at + 1], int):
            entry = f"{name}, entry {int(loc[at + 1]) + 1}"
            where = entry if where == "top level" else f"{where} {entry}"
            owner, at = _tables(owner)[name], at + 2
        else:
            break
    return where, owner, [str(part) for part in loc[at:]]


def _explain(model: type[BaseModel], item: Any) -> tuple[str, str, str]:
    """One pydantic error as (where, what, fix) in our words."""
    sections = _sections(model)
    where, owner, loc = _place(model, item["loc"])
    in_section = owner is not model
    key = _cut(loc[0] if loc else "")
    known = sorted(owner.model_fields)
    match item["type"]:
        case "extra_forbidden":
            return where, *_unknown_key(sections, where, key, known)
        case "missing":
            kind = "section" if not in_section and key in sections else "key"
            name = f"[{key}]" if kind == "section" else f'"{key}"'
            info = owner.model_fields.get(key)
            return where, f"missing {kind} {name}", (info.description or "") if info else ""
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not loc or (loc == [key] and key in sections):
        # A rule between keys: its words name them; the whole section would say less.
        whole = where if in_section else "recipe"
        return f"[{key}]" if key else whole, message, ""
    value = _cut(json.dumps(item.get("input"), default=str))
    choices = _choices(owner, key) if item["type"] == "literal_error" else []
    if choices:
        near = difflib.get_close_matches(_cut(str(item.get("input"))), choices, n=1)
        fix = f'did you mean "{near[0]}"? ' if near else ""
        return where, f"{key} = {value} is not possible", f"{fix}choices: {', '.join(choices)}"
    path = ".".join(map(_cut, loc))
    return where, f"{path} = {value}: {message}", _fix(owner.model_fields.get(key), item["type"])


def _fix(info: FieldInfo | None, fault: str) -> str:
    """The default as an example of a value's form, or what the key means."""
    if info is None:
        return ""
    if fault.endswith("_type") and isinstance(info.default, bool | int | float | str):
        return f"a value such as {json.dumps(info.default)}"
    return info.description or ""


def _cut(text: str) -> str:
    """A name or value for a message: comparing long ones letter by letter takes minutes."""
    return text if len(text) <= 80 else f"{text[:79]}…"


def _choices(owner: type[BaseModel], key: str) -> list[str]:
    info = owner.model_fields.get(key)
    if info is None:
        return []
    annotations = [info.annotation, *get_args(info.annotation)]
    choices = [a for an in annotations for a in get_args(an) if isinstance(a, str)]
    choices += [a for a in annotations if isinstance(a, str)]
    return list(dict.fromkeys(choices))


def _unknown_key(
    sections: dict[str, type[BaseModel]],
    where: str,
    key: str,
    known: list[str],
) -> tuple[str, str]:
    """What and fix for a key that is not there: another section's, misspelled, or unheard of."""
    here = where.strip("[]")
    for name, section in sections.items():
        if key in section.model_fields and name != here:
            return f'key "{key}" is in the wrong section', f"it belongs in [{name}]"
    if meant := _ELSEWHERE.get(key.lower()):
        name, own = meant
        if own in getattr(sections.get(name), "model_fields", {}):
            return f'unknown key "{key}"', f'here it is "{own}" in [{name}]{_ADVICE.get(own, "")}'
    everywhere = {k: name for name, s in sections.items() for k in s.model_fields}
    everywhere |= dict.fromkeys(known, here)
    # The nearest key of all sections; this section's own when two are alike.
    near = max(everywhere, key=lambda k: _likeness(key, k) + 0.05 * (k in known), default="")
    if _likeness(key, near) < 0.6:
        return f'unknown key "{key}"', f"known keys: {', '.join(known)}"
    if near in known:
        return f'unknown key "{key}"', f'did you mean "{near}"? Known keys: {", ".join(known)}'
    return f'unknown key "{key}"', f'did you mean "{near}" in [{everywhere[near]}]?'


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()

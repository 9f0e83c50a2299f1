"""Write docs/recipe.md, the reference of every recipe key, from the recipe's own schema.

python scripts/make_docs.py            # writes docs/recipe.md
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from styletune.recipe.sections import Recipe

HEAD = """# Recipe reference

One TOML file is one whole run. Every key has a default that is right for most people; a useful
recipe needs a data folder and little else. An unknown key, a key in another section or a value
that is not possible stops the run before anything is loaded. `--set section.key=value` overrides.

`styletune plan RECIPE` shows the resolved recipe; `styletune recipe schema` prints JSON Schema for
editors. This page is made by `python scripts/make_docs.py`.
"""


def type_words(annotation: Any) -> str:
    """A type in a newcomer's words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_words(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(v)}`" for v in get_args(annotation))
    if origin in (Union, types.UnionType):
        parts = [type_words(a) for a in get_args(annotation) if a is not type(None)]
        return " or ".join(parts)
    if origin is tuple:
        return f"list of {type_words(get_args(annotation)[0])}s"
    if origin is dict:
        return f"table of {type_words(get_args(annotation)[1])}s"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[annotation]


def range_words(info: FieldInfo) -> str:
    """Bounds, as far as there are any."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(m, name):g}"
        for m in info.metadata
        for name, sign in signs.items()
        if getattr(m, name, None) is not None
    ]
    return ", " + ", ".join(found) if found else ""


def default_words(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    if info.default is None or info.default is PydanticUndefined:
        return "–"
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    return f"`{json.dumps(value)}`"


def section_of(info: FieldInfo) -> type[BaseModel]:
    for candidate in (info.annotation, *get_args(info.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise TypeError(f"{info} is not a section")


def recipe_reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, info in Recipe.model_fields.items():
        section = section_of(info)
        optional = "" if info.is_required() or info.default is not None else " (optional section)"
        parts.append(f"\n## [{name}]\n\n{section.__doc__}{optional}\n")
        parts.append("| key | what it does | type | default |\n|---|---|---|---|")
        for key, field in section.model_fields.items():
            words = type_words(field.annotation) + range_words(field)
            cells = (f"`{key}`", str(field.description), words, default_words(field))
            parts.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    file = Path(__file__).parent.parent / "docs" / "recipe.md"
    file.write_text(recipe_reference(), encoding="utf-8")
    print(f"wrote {file}")

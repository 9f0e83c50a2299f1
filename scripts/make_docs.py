"""Write the references from the source: docs/recipe.md, docs/findings.md.

python scripts/make_docs.py
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from styletune.data.findings import CODES
from styletune.recipe.data_sections import AllowedCode
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
        words = type_words(get_args(annotation)[0])
        return f"list of {words}" if words.startswith("`") else f"list of {words}s"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
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


def nested_section(info: FieldInfo) -> type[BaseModel] | None:
    """The section whose tables a key lists, if it lists any."""
    for candidate in get_args(info.annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def table_lines(section: type[BaseModel]) -> list[str]:
    """A Markdown table of a section's keys."""
    lines = ["| key | what it does | type | default |\n|---|---|---|---|"]
    for key, field in section.model_fields.items():
        words = type_words(field.annotation) + range_words(field)
        cells = (f"`{key}`", str(field.description), words, default_words(field))
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


def recipe_reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, info in Recipe.model_fields.items():
        section = section_of(info)
        optional = "" if info.is_required() or info.default is not None else " (optional section)"
        parts.append(f"\n## [{name}]\n\n{section.__doc__}{optional}\n")
        parts += table_lines(section)
        for key, field in section.model_fields.items():
            if nested := nested_section(field):
                parts.append(f"\n### [[{name}.{key}]]\n\n{nested.__doc__}\n")
                parts += table_lines(nested)
    return "\n".join(parts) + "\n"


FINDINGS = """# What a check finds

`styletune data check` and every command on a recipe say these of a set of images
([how to use it](data.md)). Training refuses errors, publishing missing rights as well. A recipe
lowers an error to a warning by naming it, where going on has a meaning:
`[data] allow = ["too-small"]`; the run records that. This page is made by
`python scripts/make_docs.py`.
"""


def findings_reference() -> str:
    """The page of finding codes."""
    allowed = get_args(AllowedCode)
    parts = [FINDINGS]
    for severity in ("error", "warning", "fact"):
        parts.append(f"\n## {severity.capitalize()}s\n")
        parts.append(
            "| code | what it says |" + (" may be lowered |" if severity == "error" else "")
        )
        parts.append("|---|---|" + ("---|" if severity == "error" else ""))
        for code, (usual, words) in CODES.items():
            if usual == severity:
                can = f" {'yes' if code in allowed else ''} |" if severity == "error" else ""
                parts.append(f"| `{code}` | {words} |{can}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    folder = Path(__file__).parent.parent / "docs"
    for name, text in (("recipe.md", recipe_reference()), ("findings.md", findings_reference())):
        (folder / name).write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}")

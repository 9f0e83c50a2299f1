"""A training option is spelled in its section and where it is used, and nowhere between."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from styletune.models.sdxl import SDXL
from styletune.recipe.section import Section
from styletune.recipe.training_sections import OptimizerSection, TrainSection

SOURCE = Path(__file__).parent.parent / "src" / "styletune"
# What the code calls a section; ``job.recipe.train`` ends in one of them too.
NAMES = ("train", "section", "optimizer", "optimizer_section")
# Sizes, seeds and dtypes of the whole run: planning, encoding, drawing and training share them.
SHARED = {
    "name",
    "steps",
    "batch_size",
    "gradient_accumulation_steps",
    "seed",
    "mixed_precision",
    "zero_terminal_snr",
    "validation_every",
}
# What a run wrote down, under the names of the settings that it came from.
MEASURED = {"LogLine"}
OPTIONS = [
    key
    for section in (TrainSection, OptimizerSection)
    for key in section.model_fields
    if key not in SHARED
]


def last_name(node: ast.expr) -> str:
    """``job.recipe.train`` -> "train"."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def modules(root: Path) -> list[tuple[str, list[ast.AST]]]:
    """Every module outside of ``recipe``, with its syntax."""
    files = [f for f in sorted(root.rglob("*.py")) if "recipe" not in f.relative_to(root).parts]
    return [(str(f.relative_to(root)), list(ast.walk(ast.parse(f.read_text())))) for f in files]


def readers(root: Path) -> dict[str, set[str]]:
    """The modules that read each key from a section."""
    found: dict[str, set[str]] = {key: set() for key in OPTIONS}
    for name, nodes in modules(root):
        for node in nodes:
            if isinstance(node, ast.Attribute) and last_name(node.value) in NAMES:
                found.setdefault(node.attr, set()).add(name)
    return found


def mirrors(root: Path) -> list[str]:
    """Classes outside of ``recipe`` that have two options or more among their fields."""
    found = []
    for name, nodes in modules(root):
        for node in nodes:
            if not isinstance(node, ast.ClassDef):
                continue
            fields = {
                last_name(item.target) for item in node.body if isinstance(item, ast.AnnAssign)
            }
            if len(fields & set(OPTIONS)) > 1 and node.name not in MEASURED:
                found.append(f"{name}: {node.name}")
    return found


def test_an_option_is_read_in_one_place_or_two() -> None:
    """So a new one is an edit of the section and of the module that uses it."""
    read = readers(SOURCE)
    assert {key: read[key] for key in OPTIONS if len(read[key]) > 2} == {}
    assert sum(len(read[key]) == 1 for key in OPTIONS) > 0.7 * len(OPTIONS)


def test_no_class_repeats_a_section() -> None:
    """Settings are not copied from a recipe into something else."""
    assert mirrors(SOURCE) == []


def test_a_planted_copy_is_found(tmp_path: Path) -> None:
    """The walkers see a mirror and a key that passes through three modules."""
    (tmp_path / "mirror.py").write_text("class Noise:\n    noise_offset: float\n    loss: str\n")
    for name in "abc":
        (tmp_path / f"{name}.py").write_text("print(job.recipe.train.noise_offset)\n")
    assert mirrors(tmp_path) == ["mirror.py: Noise"]
    assert readers(tmp_path)["noise_offset"] == {"a.py", "b.py", "c.py"}


@pytest.mark.parametrize("section", [TrainSection, OptimizerSection])
def test_every_option_is_used(section: type[Section]) -> None:
    """No key is left that nothing reads.

    ``checkpoint_every`` the section reads itself; the text encoders' rates are read by the names
    that the model family gives its encoders.
    """
    read = readers(SOURCE)
    unread = {key for key in section.model_fields if not read.get(key)}
    by_name = {f"{encoder.name}_learning_rate" for encoder in SDXL.text_encoders}
    assert unread <= {"checkpoint_every"} | by_name

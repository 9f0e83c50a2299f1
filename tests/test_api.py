"""The public face: small, lazy, documented, and all that the command line uses."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import styletune
from job_parts import write_brand
from styletune import api

ROOT = Path(__file__).parent.parent
FUNCTIONS = [name for name in styletune.__all__ if not name.startswith("__")]


def test_the_face_is_sorted_and_complete() -> None:
    """``__all__`` is sorted, every name in it is there, and they are the promised ten."""
    assert styletune.__all__ == sorted(styletune.__all__)
    assert dir(styletune) == styletune.__all__
    expected = "check_data generate load load_data load_recipe plan publish pull score train"
    assert expected.split() == FUNCTIONS
    assert all(getattr(styletune, name) is getattr(api, name) for name in FUNCTIONS)
    assert api.__all__ == sorted(api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = styletune.trian


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Neither ``import styletune`` nor a look at its functions imports torch or its friends."""
    heavy = ("torch", "diffusers", "transformers", "datasets", "numpy", "pydantic")
    code = (
        "import sys, styletune\nstyletune.train, styletune.plan\n"
        f"bad = [m for m in {heavy} if m in sys.modules]\nassert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", api.__all__)
def test_every_function_is_documented(name: str) -> None:
    """A docstring names every parameter, or the function whose parameters it shares."""
    function = getattr(api, name)
    doc = inspect.getdoc(function) or ""
    assert doc
    if inspect.isclass(function):
        return
    parameters = inspect.signature(function).parameters
    assert len(parameters) <= 8
    if name in styletune.__all__ and "as ``plan``" not in doc:
        assert all(f"{parameter}: " in doc or f"``{parameter}``" in doc for parameter in parameters)
        assert "Raises:" in doc


def test_the_command_line_calls_only_the_face() -> None:
    """Commands import the face, the errors, and the tables and words that they print."""
    allowed = {"styletune", "styletune.api", "styletune.errors", "styletune.runs.metrics"}
    allowed |= {"styletune.data.findings", "styletune.places", "styletune.text"}
    imported = set()
    for file in sorted((ROOT / "src" / "styletune" / "cli").glob("*.py")):
        tree = ast.parse(file.read_text())
        typing_only = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
                module = node.module or ""
                if module.startswith("styletune") and not module.startswith("styletune.cli"):
                    imported.add(module)
    assert imported <= allowed, imported - allowed


def test_the_page_runs(tmp_path: Path) -> None:
    """Every code block of docs/python.md, in order, as a new user's script."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) == 3
    recipe = write_brand(tmp_path / "project")
    recipe.rename(recipe.with_name("recipe.toml"))
    (tmp_path / "script.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        cwd=recipe.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoints [20, 40]" in done.stdout
    assert "small 1.0.0" in done.stdout
    assert len(list((recipe.parent / "generated").glob("*.png"))) == 2
    assert (recipe.parent / "data.html").stat().st_size > 0

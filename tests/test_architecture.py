"""The floors of the house: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "styletune"
# Written as a table: one floor a line, from the ground up.
FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        (
            ("__init__", "errors"),
            ("places", "progress"),
            ("files",),
            ("recipe", "runs", "mini", "hub"),
            ("models", "encoders"),
            ("adapters", "data"),
            ("sampling",),
            ("training", "planning", "scoring", "registry", "project"),
            ("job", "dashboard"),
            ("cli",),
            ("__main__",),
        )
    )
    for room in rooms
}
TORCH_FREE = ("registry", "dashboard", "cli", "recipe", "runs", "hub", "errors", "files", "places")
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "open_clip")


def imports_of(file: Path) -> list[tuple[str, bool]]:
    """(module, at module level) of every absolute import in a file."""
    tree = ast.parse(file.read_text())
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: relative import"
                found.append((child.module or "", top))
                if child.module == "styletune":
                    found.extend((f"styletune.{alias.name}", top) for alias in child.names)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                visit(child, False)
                continue
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, top and not inside)

    visit(tree, True)
    return found


def room_of(file: Path, root: Path) -> str:
    return file.relative_to(root).parts[0].removesuffix(".py")


def violations(root: Path) -> list[str]:
    """Every import that climbs, goes to a neighbour, or pulls torch where it must not."""
    found = []
    for file in sorted(root.rglob("*.py")):
        room = room_of(file, root)
        for module, top in imports_of(file):
            parts = module.split(".")
            if parts[0] == "styletune" and len(parts) > 1 and parts[1] != room:
                other = parts[1]
                if other == "__version__":
                    continue
                if FLOORS[other] >= FLOORS[room]:
                    found.append(f"{file.relative_to(root)} imports {module}")
            if top and room in TORCH_FREE and parts[0] in HEAVY:
                found.append(f"{file.relative_to(root)} imports {module} at module level")
    return found


def test_every_room_has_a_floor() -> None:
    """No module or package stands outside the plan."""
    rooms = {room_of(p, SOURCE) for p in SOURCE.rglob("*.py")}
    assert rooms <= set(FLOORS)


def test_imports_go_down_only() -> None:
    """A module imports its own room or lower floors, never a neighbour."""
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("models/bad.py", "from styletune.training import loop"),
        ("scoring/bad.py", "import styletune.registry.store"),
        ("registry/bad.py", "import torch"),
        ("cli.py", "from diffusers import UNet2DConditionModel"),
    ],
)
def test_planted_violation_is_found(tmp_path: Path, where: str, line: str) -> None:
    """The walker sees a climb, a neighbour and an early torch."""
    file = tmp_path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


def test_datasets_folder_holds_no_python() -> None:
    """A .py file under datasets/ could shadow the library of that name."""
    assert list((SOURCE.parent.parent / "datasets").rglob("*.py")) == []


def test_help_does_not_import_torch() -> None:
    """``styletune --help`` starts without any of the heavy libraries."""
    code = (
        "import sys\nfrom styletune.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"bad = [m for m in {HEAVY!r} if m in sys.modules]\nassert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

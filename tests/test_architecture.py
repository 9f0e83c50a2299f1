"""The floors of the house: who may import whom, between rooms and inside each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import house
from house_imports import (
    SOURCE,
    import_cycle,
    import_graph,
    imports_of,
    longest_chain,
    part_of,
    read_modules,
    room_of,
    rooms,
)

# Written as a table: one floor a line, from the ground up.
FLOORS = {
    room: floor
    for floor, names in enumerate(
        (
            ("errors", "text"),
            ("colors", "places", "progress"),
            ("files",),
            ("recipe", "runs", "mini", "hub"),
            ("models", "encoders"),
            ("adapters", "data"),
            ("sampling",),
            ("training", "planning", "scoring", "registry", "project"),
            ("job", "dashboard"),
            ("api",),
            ("__init__", "cli"),
            ("__main__",),
        )
    )
    for room in names
}
# Each room's modules and sub-rooms, lowest first: a module imports only those before it. Its
# ``__init__`` is its face, for other rooms. ``python scripts/house.py --order`` prints the table
# that today's imports make.
ORDER = {
    "adapters": "file names header inject tokens updates export layouts",
    "cli": "shared data published recipe",
    "data": "findings licenses pixels sources split captions inspection rows checked masks read "
    "rights check entries report load",
    "data.captions": "model tokens variants lint fix folder",
    "data.inspection": "edges facts opt_out outliers sizes copies quality duplicates store "
    "features inspect motifs palette",
    "data.pixels": "buckets color_signals fingerprint crop image_file decode mask",
    "data.report": "pictures page",
    "data.sources": "files items records source tar_headers archives card hub metadata unread "
    "layout tables item_bytes listing",
    "encoders": "find clip",
    "job": "adapt base facts features generate job refusals trainable check earlier encode prepare "
    "publish score start_from plan train run",
    "mini": "",
    "models": "checkpointing family int8_linear latents placement recognize schedule weight_files "
    "meta model_folder names quantize sdxl single_file base families conditioning load locate "
    "vae_files base_files",
    "planning": "gpus kept meter workload measure suggestions memory preflight",
    "project": "init",
    "recipe": "section toml data_sections output_sections training_sections sections load",
    "registry": "provenance store manifest release card versions package resolve pull",
    "runs": "folder form metrics answers documents log summary find scores",
    "sampling": "png prompts session shots images",
    "scoring": "clip_score figures statistics copies diversity neighbors suite choose frechet "
    "gates kernel palette reason scale scored sets report score",
    "training": "batches cache_files ema groups identity noise objectives optimizer_state texts "
    "tracker images optimizer processes cache checkpoint denoise validation loop",
}
TORCH_FREE = (
    *("registry", "dashboard", "cli", "api", "recipe", "runs", "hub", "errors", "files"),
    *("places", "colors", "text"),
)
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "open_clip")


def violations(root: Path) -> list[str]:
    """Every import that climbs, goes to a neighbor, or pulls torch where it must not."""
    wrong = []
    modules = read_modules(root)
    graph = import_graph(modules)
    for module in modules:
        room = room_of(module.name)
        for other in sorted(graph[module.name]):
            other_room = room_of(other)
            if other_room != room and FLOORS[other_room] >= FLOORS[room]:
                wrong.append(f"{module.name} imports {other}")
        wrong.extend(
            f"{module.name} imports {imported.name} at module level"
            for imported in imports_of(module)
            if imported.early and room in TORCH_FREE and imported.name.split(".")[0] in HEAVY
        )
    return wrong


def climbs(root: Path, order: dict[str, str]) -> list[str]:
    """Every import inside a room that does not go to a module further down in it."""
    graph = import_graph(read_modules(root))
    wrong = []
    for room, words in order.items():
        height = {part: i for i, part in enumerate([*words.split(), "__init__"])}
        for name, others in sorted(graph.items()):
            part = part_of(name, room)
            for other in sorted(others):
                below = part_of(other, room)
                if part is not None and below is not None and height[below] > height[part]:
                    wrong.append(f"{name} imports {other}")
    return wrong


def test_every_room_has_a_floor() -> None:
    """No module or package stands outside the plan."""
    assert {room_of(module.name) for module in read_modules()} <= set(FLOORS)


def test_imports_go_down_only() -> None:
    """A module imports its own room or lower floors, never a neighbor."""
    assert violations(SOURCE) == []


def test_every_module_has_a_place_in_its_room() -> None:
    """The order of each room names all its modules and sub-rooms, and nothing else."""
    modules = read_modules()
    inside = {
        room: {part_of(module.name, room) for module in modules} - {None, "__init__"}
        for room in rooms(modules)
    }
    assert {room: set(words.split()) for room, words in ORDER.items()} == inside


def test_imports_inside_a_room_go_down_only() -> None:
    """A module of a room imports only those before it in the room's order."""
    assert climbs(SOURCE, ORDER) == []


def test_no_module_is_imported_by_what_it_imports() -> None:
    """Imports inside functions included, nothing goes in a circle."""
    assert import_cycle(import_graph(read_modules())) == []


def test_the_loop_knows_no_data_set() -> None:
    """Training works on tensors: nothing below the loop reads images, archives or tables."""
    graph = import_graph(read_modules())
    below, waiting = set[str](), ["training.loop"]
    while waiting:
        new = graph[waiting.pop()] - below
        below |= new
        waiting += new
    assert {room_of(name) for name in below} >= {"adapters", "models", "recipe", "runs"}
    assert not {name for name in below if room_of(name) == "data"}


def test_chains_of_imports_are_short() -> None:
    """No module stands further above the ground than the longest chain allowed."""
    chain = longest_chain(import_graph(read_modules()))
    assert len(chain) <= house.LONGEST_CHAIN, " > ".join(chain)


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write a package of one-line modules."""
    for where, text in files.items():
        file = root / where
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


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
    """The walker sees a climb, a neighbor and an early torch."""
    others = {f"{room}/__init__.py": "" for room in ("training", "registry")}
    others |= {"training/loop.py": "", "registry/store.py": ""}
    assert len(violations(plant(tmp_path, {**others, where: line}))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from styletune.data.report import page",
        "from styletune.data.report.page import write",
        "def late():\n    import styletune.data.report.page",
        "from styletune.data import check",
    ],
)
def test_planted_climb_inside_a_room_is_found(tmp_path: Path, line: str) -> None:
    """The walker sees a module that imports a higher one, a sub-room's module, or its own face."""
    files = {f"data/{name}.py": "" for name in ("__init__", "report/__init__", "report/page")}
    files |= {"data/masks.py": line, "data/check.py": "from styletune.data import masks"}
    order = {"data": "masks check report"}
    assert len(climbs(plant(tmp_path, files), order)) == 1
    assert climbs(plant(tmp_path, {"data/masks.py": ""}), order) == []


def test_planted_circle_and_chain_are_measured(tmp_path: Path) -> None:
    """A circle is named from its first module to itself; without it, the chain is counted."""
    files = {
        "a.py": "from styletune.b import x",
        "b.py": "def f():\n    from styletune import c",
        "c.py": "import torch",
    }
    graph = import_graph(read_modules(plant(tmp_path, files)))
    assert import_cycle(graph) == []
    assert longest_chain(graph) == ["a", "b", "c"]
    assert longest_chain(graph, "b") == ["b", "c"]
    plant(tmp_path, {"c.py": "import styletune.a"})
    assert len(import_cycle(import_graph(read_modules(tmp_path)))) == 4


def test_measures_count_what_was_planted(tmp_path: Path) -> None:
    """Parameters, nesting, docstrings, whole jobs and names defined twice are counted."""
    text = '''
def documented(job: Job) -> None:
    """Says something."""
    for _ in ():
        if job:
            pass
        elif job:
            with job:
                while job:
                    pass

class Row:
    def bare(self, a, b, c, d, e, f, g):
        def inner(): ...

    def _private(self): ...
'''
    modules = read_modules(plant(tmp_path, {"a.py": text, "b.py": "Row = int  # fmt: skip"}))
    numbers = house.measure(modules)
    assert numbers["functions"] == 4
    assert numbers["fully annotated"] == 0.25
    assert numbers["over 6 parameters"] == {"a:Row.bare": 7}
    assert numbers["deepest nesting"] == 4
    assert numbers["undocumented"] == ["a:Row.bare"]
    assert numbers["names defined twice"] == {"Row": ["a", "b"]}
    assert numbers["take a whole Job"] == ["a:documented"]
    assert numbers["fmt: skip"] == 1
    assert numbers["longest function"] == "a:documented 9 (body 7)"
    broken = "\n".join(house.beyond_limits(numbers))
    assert "a:documented takes the whole Job" in broken
    assert "a:Row.bare has no docstring" in broken
    assert "Row is defined in a, b" in broken


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

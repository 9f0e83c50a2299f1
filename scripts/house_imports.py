"""Who imports whom, read from the syntax trees of a package.

Imports inside functions count like those at the top of a module.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "styletune"

Graph = Mapping[str, frozenset[str]]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """A file of the package; its name has no leading "styletune.", a package's is its folder's."""

    name: str
    file: Path
    text: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, dotted; ``early`` if it runs as soon as the module is imported."""

    name: str
    early: bool


def read_modules(source: Path = SOURCE) -> list[Module]:
    """Every module below a package's folder, sorted by name; the folder's own is "__init__"."""
    modules = []
    for file in source.rglob("*.py"):
        parts = file.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        text = file.read_text(encoding="utf-8")
        modules.append(Module(name, file, text, ast.parse(text, str(file))))
    return sorted(modules, key=lambda module: module.name)


def imports_of(module: Module) -> list[Import]:
    """Every import of a module, wherever it stands. Relative ones are an error."""
    imports: list[Import] = []

    def visit(node: ast.AST, early: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                imports.extend(Import(alias.name, early) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                if child.level or child.module is None:
                    raise ValueError(f"{module.file}:{child.lineno}: relative import")
                imports.extend(Import(f"{child.module}.{a.name}", early) for a in child.names)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            later = isinstance(child, FunctionNode | ast.Lambda)
            visit(child, early and not typing_only and not later)

    visit(module.tree, True)
    return imports


def target(imported: str, names: Iterable[str]) -> str | None:
    """The module of the package that an import's name belongs to; None for other packages.

    The version is a constant that everybody may read, not a part of the package's face.
    """
    package, _, inside = imported.partition(".")
    if package != "styletune" or inside == "__version__":
        return None
    while inside and inside not in names:
        inside = inside.rpartition(".")[0]
    return inside or "__init__"


def import_graph(modules: Sequence[Module]) -> Graph:
    """Which modules each module imports, itself left out."""
    names = {module.name for module in modules}
    graph = {}
    for module in modules:
        targets = {target(imported.name, names) for imported in imports_of(module)}
        graph[module.name] = frozenset(t for t in targets if t is not None) - {module.name}
    return graph


def import_cycle(graph: Graph) -> list[str]:
    """Some circle of imports, its first module again at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def longest_chain(graph: Graph, start: str | None = None) -> list[str]:
    """The longest way down through the imports, from ``start`` or anywhere; there is no circle."""

    @functools.cache
    def below(name: str) -> tuple[str, ...]:
        return (name, *longest(below(other) for other in sorted(graph.get(name, ()))))

    def longest(chains: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return max(chains, key=lambda chain: len(chain), default=())

    return list(longest(below(name) for name in (sorted(graph) if start is None else [start])))


def part_of(name: str, room: str) -> str | None:
    """What a module belongs to inside a room: a module or sub-room of it; None if outside."""
    if name == room:
        return "__init__"
    if room and not name.startswith(f"{room}."):
        return None
    return name.removeprefix(f"{room}.").partition(".")[0]


def room_graph(graph: Graph, room: str) -> Graph:
    """The imports among a room's modules and sub-rooms; its own ``__init__`` is one of them."""
    inside: defaultdict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        part = part_of(name, room)
        if part is not None:
            inside[part] |= {p for t in targets if (p := part_of(t, room)) and p != part}
    return {part: frozenset(targets) for part, targets in sorted(inside.items())}


def room_of(name: str) -> str:
    """The first part of a module's name: its room, or itself where it stands in none."""
    return name.partition(".")[0]


def rooms(modules: Iterable[Module]) -> list[str]:
    """Every package inside the package."""
    return [m.name for m in modules if m.file.name == "__init__.py" and m.name != "__init__"]


def room_order(graph: Graph, room: str) -> list[str]:
    """A room's modules, lowest first; equally low ones by name. Raises CycleError.

    Its ``__init__`` is the room's face, which stands above all of them, and is left out.
    """
    sorter = TopologicalSorter(room_graph(graph, room))
    sorter.prepare()
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order.extend(part for part in ready if part != "__init__")
        sorter.done(*ready)
    return order

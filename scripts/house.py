"""The numbers of this house, read from its syntax trees.

    python scripts/house.py           # a table
    python scripts/house.py --json
    python scripts/house.py --check   # exit 1 beyond a limit
    python scripts/house.py --order   # each room's modules, lowest first, as its imports have it

Only the package counts, not its tests and scripts. A function is every ``def``, methods and nested
ones included; its length runs from ``def`` to its last line, docstring included.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError
from typing import Any

from house_imports import (
    FunctionNode,
    Module,
    import_cycle,
    import_graph,
    longest_chain,
    read_modules,
    room_order,
    rooms,
)

LONGEST_CHAIN = 13
MANY_PARAMETERS = 6
MANY_PARAMETERS_SHARE = 0.01
MOST_PARAMETERS = 8
MOST_FMT_SKIPS = 10
# The stages of the job; everything else takes the values that it uses.
STAGES = frozenset(
    f"job.{place}"
    for place in (
        "plan:plan",
        "encode:encode",
        "train:train",
        "score:score",
        "publish:package",
        "publish:publish",
        "run:run_job",
    )
)
# Public names that several modules define on purpose, because it is the same thing under the same
# name: the package's face and the stage behind it.
SAME_MEANING: Mapping[str, frozenset[str]] = {
    name: frozenset({"api", stage})
    for name, stage in {
        "check_data": "data.check",
        "fix_captions": "data.captions.folder",
        "generate": "job.generate",
        "init_project": "project.init",
        "load_data": "data.load",
        "load_recipe": "recipe.load",
        "plan": "job.plan",
        "publish": "job.publish",
        "pull": "registry.pull",
        "recipe_schema": "recipe.load",
        "score": "job.score",
        "train": "job.train",
    }.items()
}

BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)


@dataclass(frozen=True, slots=True)
class Function:
    """What is counted of a function; ``name`` is "module:Class.method"."""

    name: str
    lines: int
    body_lines: int
    parameters: int
    annotated: bool
    nesting: int
    public: bool
    documented: bool
    types: frozenset[str]


def functions_of(module: Module) -> list[Function]:
    """Every function of a module, methods and nested ones included."""
    functions: list[Function] = []

    def visit(node: ast.AST, path: tuple[str, ...], public: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode):
                inner = (*path, child.name)
                shown = public and not child.name.startswith("_")
                functions.append(_function(child, f"{module.name}:{'.'.join(inner)}", shown))
                visit(child, inner, False)
            elif isinstance(child, ast.ClassDef):
                visit(child, (*path, child.name), public and not child.name.startswith("_"))
            else:
                visit(child, path, public)

    visit(module.tree, (), True)
    return functions


def _function(node: FunctionNode, name: str, public: bool) -> Function:
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    parameters = [p for i, p in enumerate(parameters) if i or p.arg not in ("self", "cls")]
    annotations = [p.annotation for p in parameters]
    documented = ast.get_docstring(node) is not None
    body = node.body[1:] if documented else node.body
    return Function(
        name=name,
        lines=_lines(node, node),
        body_lines=_lines(body[0], body[-1]) if body else 0,
        parameters=len(parameters),
        annotated=node.returns is not None and None not in annotations,
        nesting=_nesting(node),
        public=public,
        documented=documented,
        types=frozenset(
            part.id
            for annotation in annotations
            if annotation is not None
            for part in ast.walk(annotation)
            if isinstance(part, ast.Name)
        ),
    )


def _lines(first: ast.stmt, last: ast.stmt) -> int:
    return (last.end_lineno or last.lineno) - first.lineno + 1


def _nesting(node: ast.AST) -> int:
    """How many blocks stand inside each other; an ``elif`` is no deeper than its ``if``."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, _nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def public_names(module: Module) -> set[str]:
    """What a module defines at its top level for others: functions, classes, constants."""
    names: set[str] = set()
    for node in module.tree.body:
        if isinstance(node, FunctionNode | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def names_defined_twice(modules: Iterable[Module]) -> dict[str, list[str]]:
    """Public names that several modules define, with the modules."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules:
        for name in public_names(module):
            places[name].append(module.name)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def _comments(module: Module) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def measure(modules: Sequence[Module]) -> dict[str, Any]:
    """All numbers, by their names in the table."""
    functions = [function for module in modules for function in functions_of(module)]
    files = [len(module.text.splitlines()) for module in modules]
    lengths = [function.lines for function in functions]
    longest = max(functions, key=lambda function: function.lines)
    comments = [comment for module in modules for comment in _comments(module)]
    graph = import_graph(modules)
    importers = [sum(name in targets for targets in graph.values()) for name in graph]
    cycle = import_cycle(graph)
    public = [function for function in functions if function.public]

    def share(selected: Iterable[object], of: Sequence[object] = functions) -> float:
        return round(sum(map(bool, selected)) / len(of), 4)

    return {
        "files": len(files),
        "lines": sum(files),
        "median file": statistics.median(files),
        "files > 300 / 400 / 500": [sum(n > limit for n in files) for limit in (300, 400, 500)],
        "functions": len(functions),
        "median function": statistics.median(lengths),
        "p90 function": statistics.quantiles(lengths, n=10)[-1],
        "longest function": f"{longest.name} {longest.lines} (body {longest.body_lines})",
        "functions > 40 lines": share(n > 40 for n in lengths),
        "fully annotated": share(f.annotated for f in functions),
        "functions > 6 parameters": share(f.parameters > MANY_PARAMETERS for f in functions),
        "most parameters": max(f.parameters for f in functions),
        "nesting >= 4": share(f.nesting >= 4 for f in functions),
        "deepest nesting": max(f.nesting for f in functions),
        "public functions": len(public),
        "documented public functions": share((f.documented for f in public), public),
        "longest chain": [] if cycle else longest_chain(graph),
        "a cycle": cycle,
        "modules imported by one": share((n == 1 for n in importers), importers),
        "fmt: skip": sum("fmt: skip" in comment for comment in comments),
        "type: ignore": sum("type: ignore" in comment for comment in comments),
        "names defined twice": names_defined_twice(modules),
        "take a whole Job": sorted(f.name for f in functions if "Job" in f.types),
        "take a whole Recipe": sorted(f.name for f in functions if "Recipe" in f.types),
        "over 6 parameters": {
            f.name: f.parameters for f in functions if f.parameters > MANY_PARAMETERS
        },
        "undocumented": sorted(f.name for f in public if not f.documented),
    }


def beyond_limits(numbers: Mapping[str, Any]) -> list[str]:
    """What breaks a limit, one sentence each."""
    chain, twice = numbers["longest chain"], numbers["names defined twice"]
    many: Mapping[str, int] = numbers["over 6 parameters"]
    broken = []
    if numbers["a cycle"]:
        broken.append(f"a circle of imports: {' > '.join(numbers['a cycle'])}")
    if len(chain) > LONGEST_CHAIN:
        broken.append(f"chain of {len(chain)}, at most {LONGEST_CHAIN}: {' > '.join(chain)}")
    if numbers["functions > 6 parameters"] > MANY_PARAMETERS_SHARE:
        share = numbers["functions > 6 parameters"]
        broken.append(
            f"{share:.1%} of functions take over {MANY_PARAMETERS} parameters, at most 1%"
        )
    broken += [
        f"{name} takes {count} parameters, at most {MOST_PARAMETERS}"
        for name, count in many.items()
        if count > MOST_PARAMETERS
    ]
    broken += [
        f"{name} takes the whole Job" for name in numbers["take a whole Job"] if name not in STAGES
    ]
    if numbers["fmt: skip"] > MOST_FMT_SKIPS:
        broken.append(f"{numbers['fmt: skip']} of # fmt: skip, at most {MOST_FMT_SKIPS}")
    broken += [
        f"{name} is defined in {', '.join(where)}"
        for name, where in twice.items()
        if not set(where) <= SAME_MEANING.get(name, frozenset())
    ]
    broken += [f"{name} has no docstring" for name in numbers["undocumented"]]
    return broken


def print_orders(modules: Sequence[Module]) -> None:
    """The table of the test of the floors, as today's imports have it."""
    graph = import_graph(modules)
    for room in rooms(modules):
        try:
            print(f'    "{room}": "{" ".join(room_order(graph, room))}",')
        except CycleError as error:
            print(f"    # {room} has a circle: {' > '.join(error.args[1])}")


def main() -> None:
    """Measure, and print or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--json", action="store_true")
    choice.add_argument("--check", action="store_true", help="exit 1 beyond a limit")
    choice.add_argument("--order", action="store_true", help="the order of each room's modules")
    options = parser.parse_args()
    modules = read_modules()
    if options.order:
        print_orders(modules)
        return
    numbers = measure(modules)
    if options.json:
        print(json.dumps(numbers, indent=2))
    elif options.check:
        broken = beyond_limits(numbers)
        print("\n".join(broken) or "within all limits")
        sys.exit(bool(broken))
    else:
        for name, value in numbers.items():
            print(f"{name:<30}{_words(value)}")


def _words(value: Any) -> str:
    if isinstance(value, float) and value <= 1:
        return f"{value:.1%}"
    if isinstance(value, list) and value and isinstance(value[0], str):
        return f"{len(value)}: {' '.join(value)}"
    if isinstance(value, dict):
        return f"{len(value)}: " + ", ".join(
            f"{name} ({' '.join(where) if isinstance(where, list) else where})"
            for name, where in value.items()
        )
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()

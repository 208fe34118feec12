"""Imports go one way: cli -> api, inspect, integrations -> compiler -> runtime -> cache -> passes -> kernels.

Modules do not import one another in a circle.

Imports within functions count, those for type checkers do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Folders at the root, and what they are imported as.
FOLDERS = {"innerq_compile": "innerq_compile", "passes": "innerq_compile.passes", "kernels": "innerq_compile.kernels"}


def modules() -> dict[str, Path]:
    """All modules of the package, by name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder != "innerq_compile" or parts[0] not in FOLDERS:  # links, in a checkout
                found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def for_type_checkers(tree: ast.AST) -> set[ast.AST]:
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {node for block in blocks for statement in block.body for node in ast.walk(statement)}


def imported(name: str) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it."""
    path = MODULES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = for_type_checkers(tree)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in left_out:
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield from (found for found in [inner if inner in MODULES else source] if found in MODULES)
        elif isinstance(node, ast.Import) and node not in left_out:
            yield from (alias.name for alias in node.names if alias.name in MODULES)


GRAPH = {name: set(imported(name)) - {name} for name in MODULES}


#: What lies below what: a module imports modules of its own layer and of those above in this list.
LAYERS = (
    ("kernels",),
    ("passes",),
    ("errors", "compile_error", "config", "presets", "logs", "scoped"),
    ("cache",),
    ("runtime",),
    ("compiler",),
    ("api", "inspect", "integrations", "ahead"),
    ("cli", "__main__", ""),
)


def layer(name: str) -> int:
    """The number of a module's layer."""
    room = name.split(".")[1] if "." in name else ""
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


def test_the_graph_is_read():
    """Relative and absolute imports, of modules and of names."""
    assert "innerq_compile.kernels.dispatch" in GRAPH["innerq_compile.kernels.lowering"]
    assert "innerq_compile.kernels.internals.table" in GRAPH["innerq_compile.cli.env"]
    assert "innerq_compile.passes" in GRAPH["innerq_compile.config"]  # within a function
    assert len(GRAPH) > 100 and sum(map(len, GRAPH.values())) > 300


def test_imports_go_one_way():
    up = [(name, other) for name, others in GRAPH.items() for other in others if layer(other) > layer(name)]
    assert up == []


def test_no_circles():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail("these modules import one another: " + " <- ".join(error.args[1]))

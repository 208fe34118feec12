"""Snapshots of a graph's code between passes, and their differences."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re

from torch.fx import GraphModule

from ..kernels.internals.graphs import node_of_line
from ..logs import graph_text
from ..passes.graph.locations import source_line


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a graph's code, and the line of the user's program that it was traced from."""

    text: str
    where: str = ""


@dataclasses.dataclass
class Snapshot:
    """The code of a graph after one pass.

    Attributes:
        name: the name of the pass.
        lines: the statements of the graph.
        readable: the code with shapes, dtypes and source lines.
    """

    name: str
    lines: list[Line]
    readable: str

    @property
    def texts(self) -> list[str]:
        """The lines without the lines of the user's program."""
        return [line.text for line in self.lines]


def snapshot(name: str, gm: GraphModule) -> Snapshot:
    """A snapshot of the current code of ``gm``."""
    code = gm.graph.python_code("self")
    nodes = list(gm.graph.nodes)
    lines = []
    for number, text in enumerate(code.src.splitlines()):
        text = text.split(";  ")[0].rstrip()  # without `;  x = None`, which releases variables
        if not text.strip() or re.fullmatch(r"\s*l_(\w+) = L_\1", text) or text.startswith("def forward"):
            continue
        index = node_of_line(code, number)
        lines.append(Line(_short(text.strip()), source_line(nodes[index]) if index is not None else ""))
    return Snapshot(name, lines, graph_text(gm))


def _short(text: str) -> str:
    """``text`` with parameters named as in the program: ``self.layers.0.q``, not ``l_self_modules_layers_...``."""

    def path(match: re.Match[str]) -> str:
        return "self." + re.sub(r"_?(modules|parameters|buffers)_", ".", match[1]).strip("._").replace("_.", ".")

    return re.sub(r"\b[lL]_self_((?:modules|parameters|buffers)_\w+?)_(?=\b)", path, text)


def changes(snapshots: list[Snapshot]) -> list[str]:
    """The lines that each pass removed (``-``) and added (``+``), for the log."""
    parts: list[str] = []
    for before, after in itertools.pairwise(snapshots):
        if before.texts != after.texts:
            parts.append(f"{after.name}:")
            parts += [f"    {line}" for line in difflib.ndiff(before.texts, after.texts) if line[0] in "+-"]
    return parts


def module_source(gm: GraphModule) -> str:
    """The source of a module class ``Graph`` that computes the graph, with the imports that it needs besides torch."""
    code = gm.graph.python_code("self")
    names = {"torch", "device", "inf", "nan", "NoneType", "fx_pytree"}
    imports = []
    for name, value in code.globals.items():
        module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if name in names or not module or not qualified or "." in qualified:
            continue
        imports.append(f"from {module} import {qualified} as {name}")
    body = "\n".join(f"    {line}" if line.strip() else "" for line in code.src.strip().splitlines())
    return "\n".join([*imports, "", "", "class Graph(torch.nn.Module):", body])

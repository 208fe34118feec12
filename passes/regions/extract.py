"""Extracts a region of a graph as a graph module, to be compiled by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from ...kernels.internals.dynamo_graphs import ConstantSource, copy_notes
from ...kernels.internals.graphs import free_symbols, own_symbol
from ..graph.values import example, example_or_none
from ..graph.writing import Writer
from .cuts import is_constant, is_size, same_sizes
from .find import Region


@dataclasses.dataclass(frozen=True)
class ExtractedRegion:
    """A region as a graph module.

    Attributes:
        gm: the module. It returns a tuple of the region's outputs.
        inputs: for each of its inputs, the node of the graph whose value it takes.
        symbols: symbols of sizes of the inputs that no input is. Each is one more input, after the others.
    """

    gm: GraphModule
    inputs: list[Node]
    symbols: list[sympy.Symbol]


def extract(gm: GraphModule, region: Region, symbols: dict[sympy.Symbol, torch.SymInt]) -> ExtractedRegion:
    """The region as a graph module.

    Args:
        gm: the graph.
        region: one of its regions.
        symbols: a size for each symbol of the graph.
    """
    graph = Graph()
    write = Writer(graph)
    nodes: dict[Node, Any] = {}
    inputs: list[Node] = []
    first = same_sizes(gm.graph)
    for node in region.inputs:
        value = example_or_none(node)
        if node.op == "get_attr":
            nodes[node] = graph.node_copy(node)
        elif is_constant(value):
            nodes[node] = int(value) if isinstance(value, torch.SymInt) else value
        else:
            inputs.append(node)
            nodes[node] = _placeholder(write, node, len(inputs))
    missing = _missing(inputs)
    for index, symbol in enumerate(missing):
        write.placeholder(f"symbol_{index}", symbols[symbol], ConstantSource(f"innerq_symbol_{index}"))
    for node in region.nodes:
        nodes[node] = graph.node_copy(node, lambda old: nodes[first.get(old, old)])
    graph.output(tuple(nodes[node] for node in region.outputs))
    made = GraphModule(gm, graph, "Region")
    copy_notes(gm, made, {node: copy for node, copy in nodes.items() if isinstance(copy, Node)})
    return ExtractedRegion(made, inputs, missing)


def _placeholder(write: Writer, node: Node, number: int) -> Node:
    """A placeholder for the value of ``node``. Its name does not depend on the layer, for caches keyed by the graph."""
    made = write.placeholder(f"input_{number}", example(node), ConstantSource(f"innerq_input_{number}"))
    if node.op == "placeholder":
        made.meta = dict(node.meta)
    return made


def _missing(inputs: list[Node]) -> list[sympy.Symbol]:
    """The symbols that the sizes of inputs have, and that no input is.

    Also those that an input has as a size: caches of compiled code check guards on symbols that are inputs, and no
    others. Code that was compiled for smaller sizes, with indices of 32 bits, would be taken for larger ones.

    A size that was created as another symbol, and found to be equal since then, is still known by that one to Inductor.
    """
    used: set[sympy.Symbol] = set()
    known: set[sympy.Symbol] = set()
    for node in inputs:
        value = example(node)
        used |= free_symbols(value)
        if is_size(value):
            known.add(own_symbol(value))
    return sorted(used - known, key=str)

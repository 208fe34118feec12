"""Makes every symbol of a graph's sizes an input of the graph.

Caches of compiled code on disk keep the guards of a graph on symbols that are inputs, and no others. Without those,
code that was compiled for small tensors, with indices of 32 bits, is found for large ones. Dynamo's graphs have each
symbol as an input; a rewritten graph has tensors of caches, whose capacity is a size of theirs alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Graph, GraphModule, Node

from .dynamo_graphs import ConstantSource, copy_notes, set_source
from .graphs import as_size, own_symbol

#: Where a size is: the index of an input, and the dimension.
Place = tuple[int, int]


def hidden_sizes(gm: GraphModule) -> dict[Place, torch.SymInt]:
    """A size for each symbol that inputs of the graph have as a size, and that no input is."""
    inputs = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
    known = {symbol for one in inputs if isinstance(one, torch.SymInt) for symbol in (own_symbol(one), one.node.expr)}
    found: dict[Place, torch.SymInt] = {}
    for index, one in enumerate(inputs):
        for dim, size in enumerate(one.shape if isinstance(one, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.expr not in known:
                known.add(size.node.expr)
                found[index, dim] = as_size(size.node.expr, size)
    return found


def with_inputs(gm: GraphModule, sizes: Sequence[torch.SymInt]) -> GraphModule:
    """The graph with ``sizes`` as further inputs, behind its own, which it does not use; itself if there are none."""
    if not sizes:
        return gm
    graph = Graph()
    nodes: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, nodes))
    last = graph.find_nodes(op="placeholder")[-1]
    for index, size in enumerate(sizes):
        with graph.inserting_after(last):
            last = graph.placeholder(f"innerq_size_{index}")
        last.meta["example_value"] = size
        set_source(last, ConstantSource(f"innerq_size_{index}"))
    made = GraphModule(gm, graph)
    made.meta.update(gm.meta)
    copy_notes(gm, made, nodes)
    return made

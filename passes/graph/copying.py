"""Copying of Dynamo's graphs."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, GraphModule

from ...kernels.internals.dynamo_graphs import copy_notes
from ...kernels.internals.graphs import LazyGraphModule


def copy_graph(gm: GraphModule) -> GraphModule:
    """A copy of a graph module for the passes. Dynamo still uses the original after the backend has returned.

    Its Python code is generated when somebody asks for it, which is once, after the last pass.
    """
    graph = Graph()
    nodes: dict[Any, Any] = {}
    output = graph.graph_copy(gm.graph, nodes)
    graph.output(output)
    graph.output_node().meta = dict(gm.graph.output_node().meta)
    copy = LazyGraphModule(gm, graph, gm.__class__.__name__)
    copy.meta = dict(gm.meta)
    copy_notes(gm, copy, nodes)
    return copy

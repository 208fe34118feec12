"""Metadata that Dynamo attaches to the graphs of a backend. See ``table/dynamo_graphs.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch._dynamo.source import AttrSource, ConstantSource
from torch._guards import Source
from torch.fx import Graph, GraphModule, Node

from .graphs import LazyGraphModule

__all__ = [
    "ON_MODULES",
    "AttrSource",
    "ConstantSource",
    "Source",
    "copy_graph",
    "copy_notes",
    "mark_static",
    "set_source",
    "source_of",
    "static",
]

#: Attributes of Dynamo's graph modules that belong to the graph.
ON_MODULES = ("_param_name_to_source", "_source_to_user_stacks")


def source_of(node: Node) -> Source | None:
    """Dynamo's source of an input of a graph (where in the user's program it comes from), or None."""
    return getattr(node, "_dynamo_source", None)


def set_source(node: Node, source: Source | None) -> None:
    """Set the source of an input of a graph. Does nothing if ``source`` is None."""
    if source is not None:
        node._dynamo_source = source  # pyright: ignore[reportAttributeAccessIssue]


def copy_notes(old: GraphModule, new: GraphModule, nodes: Mapping[Node, Any]) -> None:
    """Copy Dynamo's metadata from a graph module to a copy of it. ``nodes`` maps old nodes to new ones."""
    for name in ON_MODULES:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    for original, copy in nodes.items():
        set_source(copy, source_of(original))


def copy_graph(gm: GraphModule) -> GraphModule:
    """A copy of a graph module. Dynamo still uses the original after the backend has returned.

    Its Python code is generated when somebody asks for it, which is once, after the last change.
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


def mark_static(node: Node) -> None:
    """Tell Inductor that an input usually keeps its address; if it does not, CUDA graphs are recorded again."""
    node.meta["tensor_dict"] = {**node.meta.get("tensor_dict", {}), "_dynamo_static_input_type": "unguarded"}


def static(node: Node) -> str | None:
    """Whether an input keeps its address: ``guarded``, ``unguarded`` (see :func:`mark_static`), or None: unknown."""
    return node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")

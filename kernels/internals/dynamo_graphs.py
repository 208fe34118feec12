"""What Dynamo notes on the graphs that it hands to a backend. See ``table/dynamo_graphs.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch._dynamo.source import AttrSource, ConstantSource
from torch._guards import Source
from torch.fx import GraphModule, Node

__all__ = ["AttrSource", "ConstantSource", "Source", "copy_notes", "mark_static", "set_source", "source_of", "static"]

_ON_MODULES = ("_param_name_to_source", "_source_to_user_stacks")


def source_of(node: Node) -> Source | None:
    """Where in the user's program an input of a graph comes from, if Dynamo says."""
    return getattr(node, "_dynamo_source", None)


def set_source(node: Node, source: Source | None) -> None:
    """Say where an input of a graph comes from. Those without a source stay as they are."""
    if source is not None:
        node._dynamo_source = source  # pyright: ignore[reportAttributeAccessIssue]


def copy_notes(old: GraphModule, new: GraphModule, nodes: Mapping[Node, Any]) -> None:
    """Give a copy of Dynamo's graph what Dynamo has noted on the original. ``nodes``: from old nodes to new ones."""
    for name in _ON_MODULES:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    for original, copy in nodes.items():
        set_source(copy, source_of(original))


def mark_static(node: Node) -> None:
    """Tell Inductor that an input keeps its address from call to call; another address is right, and recorded anew."""
    node.meta["tensor_dict"] = {**node.meta.get("tensor_dict", {}), "_dynamo_static_input_type": "unguarded"}


def static(node: Node) -> str | None:
    """Whether an input keeps its address: ``guarded``, ``unguarded``, or None where nobody says so."""
    return node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")

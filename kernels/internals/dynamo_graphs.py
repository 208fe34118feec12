"""Metadata of the graphs that Dynamo passes to a backend. See ``table/dynamo_graphs.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch._dynamo.source import AttrSource, ConstantSource
from torch._guards import Source
from torch.fx import GraphModule, Node

__all__ = [
    "AttrSource",
    "ConstantSource",
    "Source",
    "copy_metadata",
    "mark_static",
    "set_source",
    "source_of",
    "static",
]

_ON_MODULES = ("_param_name_to_source", "_source_to_user_stacks")


def source_of(node: Node) -> Source | None:
    """Dynamo's source of a placeholder: where in the user's program it comes from. None if it has none."""
    return getattr(node, "_dynamo_source", None)


def set_source(node: Node, source: Source | None) -> None:
    """Set Dynamo's source of a placeholder. Does nothing if ``source`` is None."""
    if source is not None:
        node._dynamo_source = source  # pyright: ignore[reportAttributeAccessIssue]


def copy_metadata(old: GraphModule, new: GraphModule, nodes: Mapping[Node, Any]) -> None:
    """Copy Dynamo's metadata, which copying a graph does not.

    Args:
        old: the original graph.
        new: its copy.
        nodes: the copy of each original node.
    """
    for name in _ON_MODULES:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    for original, copy in nodes.items():
        set_source(copy, source_of(original))


def mark_static(node: Node) -> None:
    """Mark an input that keeps its address between calls. If the address does change, Inductor records again."""
    node.meta["tensor_dict"] = {**node.meta.get("tensor_dict", {}), "_dynamo_static_input_type": "unguarded"}


def static(node: Node) -> str | None:
    """The mark of an input that keeps its address, ``guarded`` or ``unguarded``; None if it has no mark."""
    return node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")

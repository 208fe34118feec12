"""Give the graph the inner tensors of each quantized cache among its inputs.

    past = placeholder            # an InnerQTensor        past = placeholder
    keys = cat([past, k])                             ->   past_codes, past_scales, ... = placeholders
                                                           keys = cat([past, k])

The cache's own placeholder stays until every use of it has been rewritten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..kernels import layout
from ..kernels.formats import CacheFormat
from ..kernels.internals.dynamo_graphs import AttrSource, Source, set_source, source_of
from .context.context import CacheInput, PassContext


def unwrap_caches(gm: GraphModule, context: PassContext) -> GraphModule:
    for index, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        cache = node.meta.get("example_value")
        storage = getattr(cache, "_storage", None)
        if storage is None:
            continue
        examples = cache_examples(
            storage.format,
            storage.codes.shape[:2],
            storage.head_dim,
            storage.codes.shape[2],
            storage.dtype,
            storage.codes,
            mean=storage.mean is not None,
            norm=storage.norm is not None,
        )
        source = source_of(node)
        nodes = add_placeholders(gm.graph, node.name, examples, source and AttrSource(source, "_storage"))
        context.caches[node] = CacheInput(
            placeholder=node, index=index, format=storage.format, tokens_dim=cache._tokens_dim, **nodes
        )
    return gm


def cache_examples(
    fmt: CacheFormat,
    lead: tuple[Any, Any],
    head_dim: int,
    capacity: Any,
    dtype: torch.dtype,
    like: torch.Tensor,
    *,
    mean: bool,
    norm: bool,
) -> dict[str, torch.Tensor]:
    """Fake tensors for the inner tensors of a cache, by name, of the fake mode and device of ``like``."""
    shapes = layout.shapes(fmt, *lead, head_dim, capacity)
    examples = {name: like.new_empty(shape, dtype=own or dtype) for name, (shape, own) in shapes.items()}
    for name, present in (("mean", mean), ("norm", norm)):
        if present:
            examples[name] = like.new_empty((*lead, head_dim), dtype=torch.float32)
    return examples


def add_placeholders(
    graph: Graph, name: str, examples: dict[str, torch.Tensor], source: Source | None
) -> dict[str, Node | None]:
    """Placeholders behind those that the graph has, one for each inner tensor; None for a missing mean or norm."""
    nodes: dict[str, Node | None] = {"mean": None, "norm": None}
    for inner, value in examples.items():
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            node = graph.placeholder(f"{name}_{inner}")
        node.meta["example_value"] = value
        if source is not None:  # AOTAutograd asks each input where it comes from
            set_source(node, AttrSource(source, inner))
        nodes[inner] = node
    return nodes

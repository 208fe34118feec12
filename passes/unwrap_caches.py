"""Give the graph the inner tensors of each quantized cache among its inputs.

    past = placeholder            # an InnerQTensor        past = placeholder
    keys = cat([past, k])                             ->   past_codes, past_scales, ... = placeholders
                                                           keys = cat([past, k])

The cache's own placeholder stays until every use of it has been rewritten.
"""

from __future__ import annotations

import torch
from torch._dynamo.source import AttrSource
from torch.fx import GraphModule, Node

from ..kernels import layout
from .context import CacheInput, PassContext


def unwrap_caches(gm: GraphModule, context: PassContext) -> GraphModule:
    placeholders = gm.graph.find_nodes(op="placeholder")
    last = placeholders[-1] if placeholders else None
    for index, node in enumerate(placeholders):
        storage = getattr(node.meta.get("example_value"), "_storage", None)
        if storage is None:
            continue
        fmt, codes, state = storage.format, storage.codes, storage.state
        batch, heads, capacity = codes.shape[:3]
        shapes = layout.shapes(fmt, batch, heads, storage.head_dim, capacity)
        shape, dtype = shapes["scales"]
        examples = {
            "codes": codes,
            "scales": codes.new_empty(shape, dtype=dtype),
            "window": codes.new_empty(shapes["window"][0], dtype=storage.dtype),
            "state": state,
        }
        for name in ("mean", "norm"):
            if getattr(storage, name) is not None:
                examples[name] = codes.new_empty((batch, heads, storage.head_dim), dtype=torch.float32)
        new: dict[str, Node | None] = {"mean": None, "norm": None}
        for name, value in examples.items():
            with gm.graph.inserting_after(last):
                last = gm.graph.placeholder(f"{node.name}_{name}")
            last.meta["example_value"] = value
            if hasattr(node, "_dynamo_source"):  # AOTAutograd asks each input where it comes from
                last._dynamo_source = AttrSource(AttrSource(node._dynamo_source, "_storage"), name)
            new[name] = last
        context.caches[node] = CacheInput(placeholder=node, index=index, format=fmt, **new)
    return gm

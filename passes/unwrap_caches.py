"""Give the graph the inner tensors of each quantized cache among its inputs.

    past = placeholder            # an InnerQTensor        past = placeholder
    keys = cat([past, k])                             ->   past_codes, past_scales, ... = placeholders
                                                           keys = cat([past, k])

The cache's own placeholder stays until every use of it has been rewritten.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from ..kernels.internals.dynamo_graphs import AttrSource, source_of
from .context import PassContext, ProgramCache
from .emit.inputs import add_placeholders, cache_examples
from .graph.values import example_or_none
from .graph.writing import Writer


def unwrap_caches(gm: GraphModule, context: PassContext) -> GraphModule:
    write = Writer(gm.graph)
    for index, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        cache: Any = example_or_none(node)
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
        tensors = add_placeholders(write, node.name, examples, source and AttrSource(source, "_storage"))
        context.caches[node] = ProgramCache(tensors, node, index, cache._tokens_dim)
    return gm

"""Add placeholders for the inner tensors of each quantized cache among the inputs.

    past = placeholder            # an InnerQTensor        past = placeholder
    keys = cat([past, k])                             ->   past_codes, past_scales, ... = placeholders
                                                           keys = cat([past, k])

The original placeholder is erased by `plan_outputs`, after all its uses have been rewritten.
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
        traced = getattr(cache, "_storage", None)  # a TracedCache
        if traced is None:
            continue
        examples = cache_examples(
            traced.format,
            (traced.batch, traced.heads),
            traced.head_dim,
            traced.capacity,
            traced.dtype,
            traced.new_empty((), traced.dtype),
            mean="mean" in traced.statistics,
            norm="norm" in traced.statistics,
        )
        source = source_of(node)
        source = source and AttrSource(AttrSource(source, "_storage"), "tensors")
        tensors = add_placeholders(write, node.name, examples, source)
        context.caches[node] = ProgramCache(tensors, node, index, cache._tokens_dim)
    return gm

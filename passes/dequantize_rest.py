"""Whatever else reads a quantized cache reads its dequantized form.

    y = f(past)        ->        y = f(dequantize(past_codes, ..., length))

This is what makes every graph right, rewritten or not: an attention that no pass understood still sees its keys.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from .analysis.buffer_writes import is_preallocated
from .context.context import CacheInput, PassContext
from .graph.values import shape
from .graph.writing import erase_dead, size_node


def dequantize_rest(gm: GraphModule, context: PassContext) -> GraphModule:
    output = gm.graph.output_node()
    for placeholder, cache in context.caches.items():
        if is_preallocated(placeholder):
            continue
        erase_dead(gm.graph, placeholder.users)
        readers = [user for user in placeholder.users if user is not output and not _is_appended(user, context)]
        if not readers:
            continue
        with gm.graph.inserting_before(_first_call(gm)):
            dense = dequantized(gm, cache)
        for reader in readers:
            reader.replace_input_with(placeholder, dense)
    return gm


def _is_appended(node: Node, context: PassContext) -> bool:
    """Whether a node is an append that the new graph makes on the cache itself, and that nothing else reads."""
    return node in context.appended and all(user.op == "output" for user in node.users)


def _first_call(gm: GraphModule) -> Node:
    return next(node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr"))


def dequantized(gm: GraphModule, cache: CacheInput) -> Node:
    """Insert the dense tensor of a cache, contiguous in the program's layout."""
    length = size_node(gm.graph, shape(cache.placeholder)[cache.tokens_dim])
    dense = gm.graph.call_function(
        torch.ops.innerq.dequantize.default, (*cache.four, cache.mean, cache.norm, length, cache.format.spec)
    )
    if cache.tokens_dim == 1:
        dense = gm.graph.call_method("contiguous", (gm.graph.call_method("transpose", (dense, 1, 2)),))
    return dense

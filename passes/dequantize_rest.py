"""Let all remaining readers of a quantized cache read it dequantized.

    y = f(past)        ->        y = f(dequantize(past_codes, ..., length))

This keeps every graph correct: an attention that was not rewritten still reads its keys and values.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .analysis.buffer_writes import is_preallocated
from .context import PassContext
from .emit.dense import cache_as_dense
from .graph.writing import Writer


def dequantize_rest(gm: GraphModule, context: PassContext) -> GraphModule:
    write = Writer(gm.graph)
    output = gm.graph.output_node()
    for placeholder, cache in context.caches.items():
        if is_preallocated(placeholder):
            continue
        write.erase_dead(placeholder.users)
        readers = [user for user in placeholder.users if user is not output and not _is_appended(user, context)]
        if not readers:
            continue
        with write.before(_first_call(gm)):
            dense = cache_as_dense(write, cache)
        for reader in readers:
            reader.replace_input_with(placeholder, dense)
    return gm


def _is_appended(node: Node, context: PassContext) -> bool:
    """Whether a node is a cat that has been replaced by an append in place, and that nothing but the output reads."""
    return node in context.appended and all(user.op == "output" for user in node.users)


def _first_call(gm: GraphModule) -> Node:
    return next(node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr"))

"""Whatever else reads a quantized cache reads its dequantized form.

    y = f(past)        ->        y = f(dequantize(past_codes, ..., length))

This is what makes every graph right, rewritten or not: an attention that no pass understood still sees its keys.
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
    """Whether a node is an append that the new graph makes on the cache itself, and that nothing else reads."""
    return node in context.appended and all(user.op == "output" for user in node.users)


def _first_call(gm: GraphModule) -> Node:
    return next(node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr"))

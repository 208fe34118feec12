"""Let all remaining readers of a quantized cache read it dequantized.

    y = f(past)        ->        y = f(dequantize(past_codes, ..., length))

This keeps every graph correct: an attention that was not rewritten still reads its keys and values. A program that
returns what it reads here, or a part of it, has a dense cache from then on, of which the user is told.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .analysis.buffer_writes import is_preallocated
from .context import PassContext, Reason
from .emit.dense import cache_as_dense
from .graph.operations import VIEWS, Kind
from .graph.reading import is_output, kinds, op_name
from .graph.writing import Writer

_WHY = "the program returns a part of its quantized cache, as a sliding window does once it is full"


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
        if (returned := _returned(dense, context)) is not None:
            context.made_dense.append(Reason.at(returned, _WHY))
    return gm


def _returned(dense: Node, context: PassContext) -> Node | None:
    """An output of the graph that is ``dense``, a part of it, or made longer; not one that is returned quantized."""
    found, pending = {dense}, [dense]
    while pending:
        node = pending.pop()
        if is_output(node) and node not in context.appended:
            return node
        for user in node.users:
            if user not in found and (kinds(user) & (VIEWS | Kind.SELECTS) or op_name(user) == "cat"):
                found.add(user)
                pending.append(user)
    return None


def _is_appended(node: Node, context: PassContext) -> bool:
    """Whether a node is a cat that has been replaced by an append in place, and that nothing but the output reads."""
    return node in context.appended and all(user.op == "output" for user in node.users)


def _first_call(gm: GraphModule) -> Node:
    return next(node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr"))

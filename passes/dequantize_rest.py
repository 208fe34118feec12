"""Let all remaining readers of a quantized cache read it dequantized.

    y = f(past)        ->        y = f(dequantize(past_codes, ..., length))

This keeps every graph correct: an attention that was not rewritten still reads its keys and values. Who asks for a size
only, as ``past.numel()``, gets it from the inputs of the graph. A program that
returns what it reads here, or a part of it, has a dense cache from then on, of which the user is told.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from .analysis.buffer_writes import is_preallocated
from .context import PassContext, Reason
from .emit.dense import cache_as_dense
from .graph.operations import VIEWS, Kind
from .graph.reading import is_output, is_query, kinds, op_name
from .graph.values import example_or_none
from .graph.writing import Writer, is_number_of_inputs

_PART = "the program returns a part of its quantized cache, as a sliding window does once it is full"
_ALL = "the program returns its quantized cache in a form that no attention of this graph appends to"


def dequantize_rest(gm: GraphModule, context: PassContext) -> GraphModule:
    write = Writer(gm.graph)
    output = gm.graph.output_node()
    for placeholder, cache in context.caches.items():
        if is_preallocated(placeholder):
            continue
        write.erase_dead(placeholder.users)
        _take_sizes_from_inputs(write, placeholder)
        readers = [user for user in placeholder.users if user is not output and not _is_appended(user, context)]
        if not readers:
            continue
        with write.before(_first_call(gm)):
            dense = cache_as_dense(write, cache)
        for reader in readers:
            reader.replace_input_with(placeholder, dense)
        if not is_output(placeholder) and (reason := _becomes_dense(dense, context)) is not None:
            context.made_dense.append(reason)
    return gm


def _take_sizes_from_inputs(write: Writer, cache: Node) -> None:
    """Compute the sizes that the program asks of a cache from the inputs of the graph that are sizes."""
    for reader in list(cache.users):
        size = example_or_none(reader)
        if is_query(reader) and isinstance(size, torch.SymInt) and is_number_of_inputs(write.graph, size):
            with write.before(reader):
                number = write.number(size)
            if isinstance(number, Node):
                write.replace(reader, number)
                write.erase_dead([reader])


def _becomes_dense(dense: Node, context: PassContext) -> Reason | None:
    """Where the graph returns ``dense``, a part of it, or made longer. None if it also returns the cache quantized."""
    partial, pending, reason = {dense: False}, [dense], None
    while pending:
        node = pending.pop()
        if is_output(node):
            if node in context.appended or node in context.quantized:
                return None
            reason = reason or Reason.at(node, _PART if partial[node] else _ALL)
        for user in node.users:
            selects = bool(kinds(user) & Kind.SELECTS)
            if user not in partial and (selects or kinds(user) & VIEWS or op_name(user) == "cat"):
                partial[user] = partial[node] or selects
                pending.append(user)
    return reason


def _is_appended(node: Node, context: PassContext) -> bool:
    """Whether a node is a cat that has been replaced by an append in place, and that nothing but the output reads.

    The output may be the last tokens of it.
    """
    kept = [user for user in node.users if user in context.appended]
    if not kept and node not in context.appended:
        return False
    return all(user.op == "output" for one in (node, *kept) for user in one.users if user not in kept)


def _first_call(gm: GraphModule) -> Node:
    return next(node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr"))

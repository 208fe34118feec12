"""Move everything that depends on the length of the cache to a prelude, so that one CUDA graph serves all lengths.

    s = the length so far (a symbolic int)           prelude(s, attention_mask):
    mask = f(s, attention_mask)                          return f(s, attention_mask)
    out = decode_attention(q, past..., mask)    ->   graph(..., mask: a buffer with room for the whole capacity):
                                                         out = decode_attention(q, past..., mask)

The prelude is a small graph that runs before the main one and writes its results to buffers with fixed addresses. A
mask may be longer than the cache: the operators read it up to the device-side length only. The pass does something only
to a graph that is to be recorded. If a length affects anything but masks and small tensors of fixed shape, the graph is
not changed, and the reason is noted.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from ..kernels.internals.dynamo_graphs import ConstantSource, set_source, source_of
from ..kernels.internals.graphs import free_symbols, free_unbacked_symbols
from .analysis.buffer_writes import is_preallocated
from .analysis.recordable import is_prompt
from .context import CacheInput, PassContext, Prelude, Reason
from .graph.aliases import Writes
from .graph.locations import source_line
from .graph.reading import read
from .graph.values import example, example_or_none, has_example, made_equal, shape
from .graph.writing import Writer

#: Operators that read their argument ``mask`` up to the device-side length only.
_READS_MASK = ("innerq::decode_attention", "innerq::decode_attention_lse", "innerq::open_from")


class _NotHoistable(Exception):
    """Why length-dependent nodes cannot be moved to a prelude, and the node that keeps them from it."""

    def __init__(self, reason: str, node: Node) -> None:
        super().__init__(reason)
        self.reason = Reason.at(node, f"no CUDA graph can serve all lengths: {reason}, at {node.name}")


def hoist_lengths(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.static_lengths or not (context.caches or context.shadows) or is_prompt(gm):
        return gm
    _tie_rows(gm, context)
    try:
        hoisted, targets = _hoistable(gm, context)
    except _NotHoistable as error:
        context.lengths_not_hoisted = str(error.reason)
        context.notes.append(error.reason)
        return gm
    if targets:
        context.prelude = _split(gm, context, hoisted, targets)
    else:
        _erase_unused(gm, hoisted)
    return gm


def _tie_rows(gm: GraphModule, context: PassContext) -> None:
    """Let inputs whose first dimension is one of a mask's leading ones have a row for each sequence, by a guard.

    A bias that a program makes for the rows of its attention mask is reshaped to those of the queries. Dynamo gives
    both a symbol of their own, so that not even the number of heads is a constant there.
    """
    lasting = _lasting_symbols(context)
    calls = (call for call in map(read, gm.graph.nodes) if call is not None and call.name in _READS_MASK)
    masks = filter(None, (shape(call["mask"]) for call in calls))
    rows = set().union(*(free_symbols(size) for mask in masks for size in mask[:-1])) - lasting
    if not rows:
        return
    batches = [example(cache.tensors.state).shape[0] for cache in context.cache_inputs()]
    for placeholder in gm.graph.find_nodes(op="placeholder"):
        first = (shape(placeholder) or (None,))[0]
        if isinstance(first, torch.SymInt) and free_symbols(first) <= rows:
            for batch in batches:
                made_equal(first, batch)


def _arguments_without_mask(node: Node) -> list[Node] | None:
    """All arguments except the mask, for an operator in ``_READS_MASK``; None for any other node."""
    call = read(node)
    if call is None or call.name not in _READS_MASK:
        return None
    return [value for name, value in call.arguments.items() if name != "mask" and isinstance(value, Node)]


def _lasting_symbols(context: PassContext) -> set[sympy.Symbol]:
    """The symbols of sizes that stay while caches are in use: the batch size, and the room of preallocated buffers.

    They are not lengths: each of their values has its own CUDA graph.
    """
    sizes = [example(cache.tensors.state).shape[0] for cache in context.cache_inputs()]
    buffers = [placeholder for placeholder in context.caches if is_preallocated(placeholder)]
    buffers += [buffer for pair in context.shadows for buffer in pair]
    sizes += [size for buffer in buffers for size in example(buffer).shape]
    return set().union(*map(free_symbols, sizes))


def _has_length(value: Any, lasting: set[sympy.Symbol]) -> bool:
    """Whether a size, or a size of a tensor, has a symbol that is not a ``lasting`` one."""
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    return any(isinstance(size, torch.SymInt) and not free_symbols(size) <= lasting for size in sizes)


def _hoistable(gm: GraphModule, context: PassContext) -> tuple[set[Node], list[Node]]:
    """The nodes to move to the prelude, and those of them that the main graph needs, in order.

    The former are the nodes that depend on a length, and everything that they are computed from.

    Raises:
        _NotHoistable: if they cannot be moved.
    """
    caches = {node for cache in context.cache_inputs() for node in cache.tensors}
    lasting = _lasting_symbols(context)
    symbolic: set[Node] = set()  # nodes whose size depends on a length
    edge: set[Node] = set()  # nodes of fixed size that are computed from those
    for node in gm.graph.nodes:
        if node in caches:
            continue
        if node.op == "output":
            if (long := next((arg for arg in node.all_input_nodes if arg in symbolic), None)) is not None:
                raise _NotHoistable("an output has the length of the cache", long)
        elif node.op == "placeholder" and _has_length(example_or_none(node), lasting):
            symbolic.add(node)
        elif (others := _arguments_without_mask(node)) is not None:
            if any(other in symbolic for other in others):
                raise _NotHoistable("an attention has a query of symbolic size", node)
        elif node.op == "placeholder":
            continue
        elif any(arg in symbolic for arg in node.all_input_nodes) or _has_length(example_or_none(node), lasting):
            if not has_example(node):
                raise _NotHoistable("a size is not known", node)
            (symbolic if _has_length(example(node), lasting) else edge).add(node)
    hoisted, pending = set(), [*symbolic, *edge]
    while pending:
        node = pending.pop()
        if node in hoisted:
            continue
        hoisted.add(node)
        pending += node.all_input_nodes
    if hoisted & caches:
        node = _computed_from(caches, [node for node in gm.graph.nodes if node in hoisted], symbolic | edge)
        raise _NotHoistable("a tensor with the length of the cache is computed from a cache", node)
    changes = Writes(gm.graph)
    for node in (node for node in gm.graph.nodes if node in hoisted):  # in order, so that the reason is deterministic
        if node.op == "placeholder" and isinstance(example_or_none(node), torch.nn.Parameter):
            raise _NotHoistable("a tensor with the length of the cache is computed from a parameter", node)
        if changes.of(node):
            raise _NotHoistable("a tensor that depends on the length of the cache is changed in place", node)
    depending = symbolic | edge
    for node in gm.graph.nodes:  # hoisted because something behind it is
        if node in hoisted and any(arg in depending for arg in node.all_input_nodes):
            depending.add(node)
    needed = [
        node
        for node in gm.graph.nodes
        if node in hoisted and node in depending and any(user not in hoisted for user in node.users)
    ]
    for node in needed:
        if not isinstance(example(node), torch.Tensor):
            raise _NotHoistable("a number depends on the length of the cache, and not only masks use it", node)
        *lead, last = example(node).shape or (1,)
        if any(_has_length(size, lasting) for size in lead) or (node in symbolic) != _has_length(last, lasting):
            raise _NotHoistable("a mask has a symbolic size in a dimension that is not its last", node)
    return hoisted, needed


def _computed_from(caches: set[Node], nodes: list[Node], among: set[Node]) -> Node:
    """The first node ``among`` these that is computed from a cache, if possible one with a line of the program."""
    reading = set(caches)
    found = []
    for node in nodes:
        if not reading.isdisjoint(node.all_input_nodes):
            reading.add(node)
            if node in among:
                found.append(node)
    return next((node for node in found if source_line(node)), found[0])


def _split(gm: GraphModule, context: PassContext, hoisted: set[Node], targets: list[Node]) -> Prelude:
    """Move ``hoisted`` to a prelude, and replace each of ``targets`` by a placeholder of the main graph."""
    write, graph, nodes = Writer(gm.graph), Graph(), {}
    for node in gm.graph.nodes:
        if node in hoisted:
            nodes[node] = graph.node_copy(node, lambda old: nodes[old])
            set_source(nodes[node], source_of(node))
    inputs = [node.name for node in gm.graph.nodes if node in hoisted and node.op == "placeholder"]
    results = [example(target) for target in targets]
    lasting = _lasting_symbols(context)
    masks = [_has_length(result, lasting) for result in results]
    written = [not mask or _is_one_row(result) for mask, result in zip(masks, results, strict=True)]
    _write_results(graph, [nodes[target] for target in targets], written)
    caches = [cache for _, cache in context.caches_with_room()]
    placeholders = []
    for index, (target, is_mask) in enumerate(zip(targets, masks, strict=True)):
        value = example(target)
        value = _mask_buffer(value, caches) if is_mask else value.new_empty(value.shape)
        placeholder = write.placeholder(f"hoisted_{index}", value, ConstantSource(f"innerq_hoisted_{index}"))
        for user in list(target.users):
            if user.op == "output":  # a copy, because the next step overwrites the buffer
                with write.before(user):
                    user.replace_input_with(target, write.method("clone", placeholder))
            elif user not in hoisted:
                user.replace_input_with(target, placeholder)
        placeholders.append(placeholder)
    _erase_unused(gm, hoisted)
    module = GraphModule(gm, graph, "Prelude")
    return Prelude(module, inputs, placeholders, results, masks, written)


def _is_one_row(mask: torch.Tensor) -> bool:
    """Whether a mask has one row, so that it is contiguous in a longer buffer, of a size that the inputs determine."""
    *lead, last = mask.shape
    return all(isinstance(size, int) and size == 1 for size in lead) and not free_unbacked_symbols(last)


def _write_results(graph: Graph, results: list[Node], written: list[bool]) -> None:
    """Let ``graph`` copy the results that are ``written`` to additional inputs, and return the others."""
    write = Writer(graph)
    for index, (result, here) in enumerate(zip(results, written, strict=True)):
        if here:
            value = example(result)
            write.method("copy_", write.placeholder(f"place_{index}", value.new_empty(value.shape)), result)
    graph.output(tuple(result for result, here in zip(results, written, strict=True) if not here))


def _mask_buffer(mask: torch.Tensor, caches: list[CacheInput]) -> torch.Tensor:
    """A fake tensor like ``mask`` with a column for each token that the storages of ``caches`` have room for."""
    lead = mask.shape[:-1]
    codes = [example(cache.tensors.codes) for cache in caches]
    formats = [cache.format for cache in caches]
    tokens = sum(one.shape[2] * fmt.block + fmt.window for one, fmt in zip(codes, formats, strict=True))
    return codes[0].new_empty((*lead, tokens), dtype=mask.dtype)


def _erase_unused(gm: GraphModule, hoisted: set[Node]) -> None:
    for node in reversed(list(gm.graph.nodes)):
        if node in hoisted and not node.users:
            gm.graph.erase_node(node)

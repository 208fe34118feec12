"""Take what depends on the length of the cache out of a decode graph, so that one CUDA graph serves all lengths.

    s = the length so far (a SymInt)                 prelude(s, attention_mask):
    mask = f(s, attention_mask)                          return f(s, attention_mask)
    out = decode_attention(q, past..., mask)    ->   graph(..., mask: a static buffer, as long as the storage):
                                                         out = decode_attention(q, past..., mask)

The prelude is a small graph of its own, run before the main one, whose results go into buffers with fixed addresses. A
mask may be longer than the cache: the operator reads it up to the device-side length only. The pass runs where CUDA
graphs were asked for. Where a length reaches anything but masks and small tensors of fixed shape, the graph stays as it
is, with a reason.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from ..kernels.internals.dynamo_graphs import ConstantSource, set_source, source_of
from ..kernels.internals.graphs import free_symbols, free_unbacked_symbols
from .analysis.recordable import is_prompt
from .context import CacheInput, PassContext, Prelude, Reason
from .graph.aliases import Writes
from .graph.reading import read
from .graph.values import example, example_or_none, has_example
from .graph.writing import Writer

#: Operators that read their argument ``mask`` up to the device-side length only.
_READS_MASK = ("innerq::decode_attention", "innerq::open_from")


class _Stays(Exception):
    """Why the length cannot be taken out."""


def hoist_lengths(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.static_lengths or not (context.caches or context.shadows) or is_prompt(gm):
        return gm
    try:
        moving, targets = _moving(gm, context)
    except _Stays as reason:
        context.lengths_not_hoisted = str(reason)
        context.notes.append(Reason(f"no CUDA graph can serve all lengths: {reason}"))
        return gm
    if targets:
        context.prelude = _split(gm, context, moving, targets)
    else:
        _drop_unused(gm, moving)
    return gm


def _beside_mask(node: Node) -> list[Node] | None:
    """The arguments but the mask of an operator that reads a mask up to the device-side length; None for others."""
    call = read(node)
    if call is None or call.name not in _READS_MASK:
        return None
    return [value for name, value in call.arguments.items() if name != "mask" and isinstance(value, Node)]


def _batch_symbols(context: PassContext) -> set[sympy.Symbol]:
    """Symbols of batch sizes. Each value has a CUDA graph of its own; what varies with them is no length."""
    return set().union(*(free_symbols(example(cache.tensors.state).shape[0]) for cache in context.cache_inputs()))


def _has_length(value: Any, batch: set[sympy.Symbol]) -> bool:
    """Whether a size, or one of a tensor's, is symbolic besides the batch size."""
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    return any(isinstance(size, torch.SymInt) and not free_symbols(size) <= batch for size in sizes)


def _moving(gm: GraphModule, context: PassContext) -> tuple[set[Node], list[Node]]:
    """The nodes that depend on a length, with all that they are computed from; those whose values the rest needs."""
    caches = {node for cache in context.cache_inputs() for node in cache.tensors}
    batch = _batch_symbols(context)
    symbolic: set[Node] = set()  # of symbolic size
    edge: set[Node] = set()  # of fixed size, computed from those
    for node in gm.graph.nodes:
        if node in caches:
            continue
        if node.op == "output":
            if any(arg in symbolic for arg in node.all_input_nodes):
                raise _Stays("an output has the length of the cache")
        elif node.op == "placeholder" and _has_length(example_or_none(node), batch):
            symbolic.add(node)
        elif (others := _beside_mask(node)) is not None:
            if any(other in symbolic for other in others):
                raise _Stays("an attention has a query of symbolic size")
        elif node.op == "placeholder":
            continue
        elif any(arg in symbolic for arg in node.all_input_nodes) or _has_length(example_or_none(node), batch):
            if not has_example(node):
                raise _Stays(f"the size of {node} is not known")
            (symbolic if _has_length(example(node), batch) else edge).add(node)
    moving, pending = set(), [*symbolic, *edge]
    while pending:
        node = pending.pop()
        if node in moving:
            continue
        moving.add(node)
        pending += node.all_input_nodes
    if moving & caches:
        raise _Stays("something of the length of the cache is computed from a cache")
    changes = Writes(gm.graph)
    for node in (node for node in gm.graph.nodes if node in moving):  # in order, so that the reason is always the same
        if node.op == "placeholder" and isinstance(example_or_none(node), torch.nn.Parameter):
            raise _Stays("something of the length of the cache is computed from a parameter")
        if changes.of(node):
            raise _Stays("what a length is computed from is changed in place")
    needed = [
        node
        for node in gm.graph.nodes
        if node in moving
        and node.op != "placeholder"
        and (node in symbolic or node in edge)
        and any(user not in moving for user in node.users)
    ]
    for node in needed:
        if not isinstance(example(node), torch.Tensor):
            raise _Stays(f"the number {node} has the length of the cache, and more than masks are made of it")
        *lead, last = example(node).shape or (1,)
        if any(_has_length(size, batch) for size in lead) or (node in symbolic) != _has_length(last, batch):
            raise _Stays("a mask is symbolic in another dimension than its last")
    return moving, needed


def _split(gm: GraphModule, context: PassContext, moving: set[Node], targets: list[Node]) -> Prelude:
    write, graph, nodes = Writer(gm.graph), Graph(), {}
    for node in gm.graph.nodes:
        if node in moving:
            nodes[node] = graph.node_copy(node, lambda old: nodes[old])
            set_source(nodes[node], source_of(node))
    inputs = [node.name for node in gm.graph.nodes if node in moving and node.op == "placeholder"]
    results = [example(target) for target in targets]
    batch = _batch_symbols(context)
    masks = [_has_length(result, batch) for result in results]
    written = [not mask or _is_one_row(result) for mask, result in zip(masks, results, strict=True)]
    _write_results(graph, [nodes[target] for target in targets], written)
    cache = next(context.cache_inputs())
    placeholders = []
    for index, (target, is_mask) in enumerate(zip(targets, masks, strict=True)):
        value = example(target)
        value = _as_long_as_storage(value, cache) if is_mask else value.new_empty(value.shape)
        placeholder = write.placeholder(f"hoisted_{index}", value, ConstantSource(f"innerq_hoisted_{index}"))
        for user in list(target.users):
            if user.op == "output":  # whoever gets it keeps it, and the next step writes the buffer anew
                with write.before(user):
                    user.replace_input_with(target, write.method("clone", placeholder))
            elif user not in moving:
                user.replace_input_with(target, placeholder)
        placeholders.append(placeholder)
    _drop_unused(gm, moving)
    module = GraphModule(gm, graph, "Prelude")
    return Prelude(module, inputs, placeholders, results, masks, written)


def _is_one_row(mask: torch.Tensor) -> bool:
    """Whether a mask's elements lie behind one another, and as many as arguments of the graph say."""
    *lead, last = mask.shape
    return all(isinstance(size, int) and size == 1 for size in lead) and not free_unbacked_symbols(last)


def _write_results(graph: Graph, results: list[Node], written: list[bool]) -> None:
    """Let the graph copy what is ``written`` to further inputs, and return the rest."""
    write = Writer(graph)
    for index, (result, here) in enumerate(zip(results, written, strict=True)):
        if here:
            value = example(result)
            write.method("copy_", write.placeholder(f"place_{index}", value.new_empty(value.shape)), result)
    graph.output(tuple(result for result, here in zip(results, written, strict=True) if not here))


def _as_long_as_storage(mask: torch.Tensor, cache: CacheInput) -> torch.Tensor:
    lead = mask.shape[:-1]
    codes = example(cache.tensors.codes)
    tokens = codes.shape[2] * cache.format.block + cache.format.window
    return codes.new_empty((*lead, tokens), dtype=mask.dtype)


def _drop_unused(gm: GraphModule, moving: set[Node]) -> None:
    for node in reversed(list(gm.graph.nodes)):
        if node in moving and not node.users:
            gm.graph.erase_node(node)

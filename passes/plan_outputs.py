"""Return inner tensors in place of new caches, and nothing in place of caches that are inputs.

    return keys, values, logits        ->        return logits                                  (decode)
                                                 return k_codes, ..., v_codes, ..., logits      (prefill)
    return keys, keys[..., 0:, :]      ->        return k_codes, ...                            one cache, twice

A number that follows from sizes of the inputs is none of the graph's outputs: the host computes it. For each output of
the original graph, ``context.outputs`` says how the runtime rebuilds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..kernels.internals.graphs import free_symbols
from .analysis.whole_slices import whole_source
from .context import Number, OutputPlan, PassContext
from .graph.aliases import Writes
from .graph.reading import outputs
from .graph.values import example_or_none, value_of
from .graph.writing import Writer


def plan_outputs(gm: GraphModule, context: PassContext) -> GraphModule:
    values: list[Node | int | None] = []
    seen: dict[Node, int] = {}
    known, changes = _symbols_of_inputs(gm), Writes(gm.graph)
    for node in outputs(gm.graph):
        if node not in context.quantized and (whole := _whole_cache(node, context, changes)) is not None:
            node = whole
        if node in context.caches:
            context.outputs.append(OutputPlan(context.caches[node], None))
        elif node in context.appended:
            context.outputs.append(OutputPlan(context.appended[node], None))
        elif node in context.quantized:
            if node not in seen:
                seen[node] = len(values)
                values += context.quantized[node].tensors
            context.outputs.append(OutputPlan(context.quantized[node], seen[node]))
        elif isinstance(number := value_of(node), torch.SymInt) and free_symbols(number) <= known:
            context.outputs.append(OutputPlan(Number(number), None))
        else:
            context.outputs.append(OutputPlan(None, len(values)))
            values.append(node)
    write, former = Writer(gm.graph), outputs(gm.graph)
    write.set_outputs(values)
    plans = zip(former, context.outputs, strict=True)
    write.erase_dead([node for node, plan in plans if isinstance(plan.what, Number)])
    for placeholder in context.caches:
        for user in list(placeholder.users):  # a cat that `rewrite_decode` has replaced, and the last tokens of it
            for part in list(user.users):
                gm.graph.erase_node(part)
            gm.graph.erase_node(user)
        gm.graph.erase_node(placeholder)
    return gm


def _whole_cache(node: Any, context: PassContext, changes: Writes) -> Node | None:
    """The new cache that an output is all of, where the program returns `k[:, :, 0:]` beside `k`; else None."""
    source = whole_source(node) if isinstance(node, Node) else None
    return source if source in context.quantized and not changes.of(node) else None


def _symbols_of_inputs(gm: GraphModule) -> set[Any]:
    """The symbols that a size or a number of an input is."""
    found: set[Any] = set()
    for node in gm.graph.find_nodes(op="placeholder"):
        value = example_or_none(node)
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                found.add(size.node.expr)
    return found

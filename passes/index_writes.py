"""Write to a buffer at positions that a tensor holds, where the program gives them as numbers.

    s = the length so far (a SymInt)                     s = the length so far
    buffer[:, :, s : s + 1] = k                  ->      at = full((1,), s) + arange(1)
    rewind_(shadow..., full((1,), s))                    buffer.index_copy_(2, at, k)
                                                         rewind_(shadow..., full((1,), s))

A number is a constant of a CUDA graph; a tensor is not, and `hoist_lengths` takes it out. The pass runs where CUDA
graphs were asked for, on writes that `rewrite_buffer` has followed.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from .analysis.buffer_writes import is_preallocated
from .analysis.buffers import BufferUse
from .context.context import PassContext
from .graph.values import example
from .graph.writing import erase_dead
from .rewrite_buffer import position_tensor


def index_writes(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.static_lengths:
        return gm
    uses = [use for shadow in context.shadows.values() for use in (shadow.key_use, shadow.value_use)]
    for use in {use.write: use for use in uses}.values():
        is_number = isinstance(use.position, Node) and isinstance(example(use.position), torch.SymInt)
        if is_number and not is_preallocated(use.buffer) and not use.write.users:
            _rewrite(gm, context, use)
    return gm


def _rewrite(gm: GraphModule, context: PassContext, use: BufferUse) -> None:
    call, target = gm.graph.call_function, use.write.args[0]
    with gm.graph.inserting_before(use.write):
        first = position_tensor(gm, context, use)
        at = call(torch.add, (first, call(torch.arange, (use.count,), {"device": example(use.buffer).device})))
        new = use.new
        if example(new).dtype != example(use.buffer).dtype:
            new = gm.graph.call_method("to", (new, example(use.buffer).dtype))
        gm.graph.call_method("index_copy_", (use.buffer, use.dims[2], at, new))
    gm.graph.erase_node(use.write)
    erase_dead(gm.graph, [target])

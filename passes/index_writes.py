"""Replace writes to a dense buffer at a symbolic position by writes at positions held in a tensor.

    s = the length so far (a symbolic int)               s = the length so far
    buffer[:, :, s : s + 1] = k                  ->      at = full((1,), s) + arange(1)
    rewind_(shadow..., full((1,), s))                    buffer.index_copy_(2, at, k)
                                                         rewind_(shadow..., full((1,), s))

A CUDA graph records a number as a constant, but reads a tensor anew; `hoist_lengths` then moves the tensor to the
prelude. The pass does something only to a graph that is to be recorded, and only for buffers with a shadow.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from .analysis.buffer_writes import is_preallocated
from .context import BufferUse, PassContext
from .emit.writes import position_tensor, token_count
from .graph.reading import operand
from .graph.values import example, value_of
from .graph.writing import Writer


def index_writes(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.static_lengths:
        return gm
    write = Writer(gm.graph)
    uses = [use for shadow in context.shadows.values() for use in (shadow.key_use, shadow.value_use)]
    for use in {use.write: use for use in uses}.values():
        is_number = isinstance(value_of(use.position), torch.SymInt)
        if is_number and not is_preallocated(use.buffer) and not use.write.users:
            _rewrite(write, context, use)
    return gm


def _rewrite(write: Writer, context: PassContext, use: BufferUse) -> None:
    view, buffer = operand(use.write), example(use.buffer)
    with write.before(use.write):
        first = position_tensor(write, context, use)
        at = write.call(torch.add, first, write.call(torch.arange, token_count(write, use), device=buffer.device))
        write.method("index_copy_", use.buffer, use.dims[2], at, write.cast(use.new, buffer.dtype))
    write.graph.erase_node(use.write)
    if view is not None:
        write.erase_dead([view])

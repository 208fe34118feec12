"""Replace writes to and reads of a quantized buffer (``InnerQBuffer``) that `rewrite_buffer` has not replaced.

    buffer[:, :, at] = k                    write_(buffer_codes, ..., k, at)
    y = f(buffer)                    ->     y = f(dequantize(buffer_codes, ...))

A prefill writes its prompt this way. A write that is not supported is an error, because there is no dense buffer that
it could go to.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from .analysis.buffer_writes import IndexTensor, NoBuffer, buffer_writes, is_preallocated, write_position
from .context import BufferUse, GraphError, PassContext, ProgramCache
from .emit.dense import cache_as_dense
from .emit.writes import by_head_in_dtype, position_tensor, write_at
from .graph.aliases import Writes
from .graph.locations import source_line
from .graph.reading import operand
from .graph.values import sizes_of
from .graph.writing import Writer

_ORDER = (0, 1, 2, 3)


def write_preallocated(gm: GraphModule, context: PassContext) -> GraphModule:
    write = Writer(gm.graph)
    for placeholder, cache in context.caches.items():
        if not is_preallocated(placeholder):
            continue
        try:
            for node, index, new in buffer_writes(placeholder, Writes(gm.graph)):
                _rewrite(write, context, cache, node, index, new)
        except NoBuffer as reason:
            raise GraphError(
                f"a write to a quantized buffer is not supported: {reason} "
                f"({source_line(placeholder)}); write whole tokens in order, or use a dense buffer"
            ) from None
        write.erase_dead(placeholder.users)
        for reader in list(placeholder.users):
            if reader.op == "output":
                continue
            with write.before(reader):
                reader.replace_input_with(placeholder, cache_as_dense(write, cache))
    return gm


def _rewrite(write: Writer, context: PassContext, cache: ProgramCache, node: Node, index: Any, new: Node) -> None:
    buffer = cache.placeholder
    position = write_position(index, _ORDER, sizes_of(buffer), new)
    view = operand(node)
    if view is not buffer and node.users:
        raise NoBuffer("the result of the write is used")
    use = BufferUse(buffer, _ORDER, new, node, position, count=0, whole=True, consecutive=True)
    with write.before(node):
        # The operator takes all positions of an index tensor, and checks that they are consecutive.
        at = position.node if isinstance(position, IndexTensor) else position_tensor(write, context, use)
        write_at(write, cache, by_head_in_dtype(write, use), at)
    write.replace(node, buffer)
    write.graph.erase_node(node)
    if view is not None and view is not buffer:
        write.erase_dead([view])

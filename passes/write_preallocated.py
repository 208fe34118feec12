"""A preallocated quantized cache (``InnerQBuffer``) outside of attentions that were rewritten.

    buffer[:, :, at] = k                    write_(buffer_codes, ..., k, at)
    y = f(buffer)                    ->     y = f(dequantize(buffer_codes, ...))

A prompt is written this way. A write that is not understood is an error: the cache has nothing else to write to.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .analysis.buffer_writes import IndexTensor, NoBuffer, buffer_writes, is_preallocated, write_position
from .analysis.buffers import BufferUse
from .context.context import CacheInput, GraphError, PassContext
from .dequantize_rest import dequantized
from .graph.aliases import Writes
from .graph.locations import source_line
from .graph.values import shape
from .graph.writing import erase_dead
from .rewrite_buffer import logical, position_tensor, write_cache

_ORDER = (0, 1, 2, 3)


def write_preallocated(gm: GraphModule, context: PassContext) -> GraphModule:
    for placeholder, cache in context.caches.items():
        if not is_preallocated(placeholder):
            continue
        try:
            for write, index, new in buffer_writes(placeholder, Writes(gm.graph)):
                _rewrite(gm, context, cache, write, index, new)
        except NoBuffer as reason:
            raise GraphError(
                f"a quantized buffer is written in a way that is not understood: {reason} "
                f"({source_line(placeholder)}); write whole tokens in order, or use a dense buffer"
            ) from None
        erase_dead(gm.graph, placeholder.users)
        for reader in list(placeholder.users):
            if reader.op == "output":
                continue
            with gm.graph.inserting_before(reader):
                reader.replace_input_with(placeholder, dequantized(gm, cache))
    return gm


def _rewrite(gm: GraphModule, context: PassContext, cache: CacheInput, write: Node, index, new: Node) -> None:
    buffer = cache.placeholder
    position = write_position(index, _ORDER, shape(buffer), new)
    view = write.args[0]
    if view is not buffer and write.users:
        raise NoBuffer("the result of the write is used")
    use = BufferUse(buffer, _ORDER, new, write, position, 0, True, True)
    with gm.graph.inserting_before(write):
        # the operator looks at all positions of an index tensor
        at = position.node if isinstance(position, IndexTensor) else position_tensor(gm, context, use)
        write_cache(gm, cache, logical(gm, use), at)
    write.replace_all_uses_with(buffer)
    gm.graph.erase_node(write)
    if view is not buffer:
        erase_dead(gm.graph, [view])

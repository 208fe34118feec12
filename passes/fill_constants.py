"""Make tensors that hold a constant number on their device, instead of copying the number there.

    zero = torch.tensor(0.0, device="cuda")      ->      zero = torch.full((), 0.0, dtype=torch.float32, device="cuda")

A copy from the host is not recorded in a CUDA graph. Masks and indices are made with such tensors. The pass does
something only to a graph that is to be recorded.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from .context import PassContext
from .graph.aliases import Writes
from .graph.reading import read
from .graph.values import example, tensor_of
from .graph.writing import Writer


def fill_constants(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.static_lengths:
        return gm
    write, changes = Writer(gm.graph), Writes(gm.graph)
    for node in list(gm.graph.nodes):
        if (number := _constant(node)) is not None and not changes.of(node):
            tensor = example(node)
            with write.before(node):
                like = {"dtype": tensor.dtype, "device": tensor.device}
                full = write.call(torch.full, tuple(tensor.shape), number, **like, like=node)
            write.replace(node, full)
            gm.graph.erase_node(node)
    return gm


def _constant(node: Node) -> bool | int | float | None:
    """The number of a ``torch.tensor`` of one element; None for anything else, and for a symbol."""
    call = read(node)
    if call is None or call.name != "tensor" or tensor_of(node) is None:
        return None
    plain = not (call.get("requires_grad") or call.get("pin_memory"))
    data = call["data"]
    while isinstance(data, (list, tuple)) and len(data) == 1:
        (data,) = data
    return data if plain and isinstance(data, (bool, int, float)) else None

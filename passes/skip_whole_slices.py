"""Skip slices that take everything, such as that of a sliding window which is longer than the cache.

    full = cat([past, k], dim=2)
    keys = full[:, :, -W + 1:, :]     # as long as full        ->      full in place of keys
    return attention(q, full, ...), keys

That a window is not reached is a guard of the graph: Dynamo added it when it computed the length of the slice. A call
that reaches the window has a graph of its own. A short window is left as it is: its cache is of another kind from the
beginning (``analysis/windows.py``).

A program may count the tokens of its cache itself, in a number that Dynamo does not know to be the length of the cache:

    keys = cat([past, k], dim=2)[:, :, :length]        ->      cat([past, k], dim=2), with a guard that it is as long
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .analysis.whole_slices import made_whole, whole_source
from .context import PassContext
from .graph.aliases import Writes
from .graph.reading import is_output
from .graph.writing import Writer


def skip_whole_slices(gm: GraphModule, context: PassContext) -> GraphModule:
    write, changes = Writer(gm.graph), Writes(gm.graph)
    for node in list(gm.graph.nodes):
        if (source := _whole(node, changes)) is not None:
            write.replace(node, source)
            write.erase_dead([node])
    return gm


def _whole(node: Node, changes: Writes) -> Node | None:
    """The tensor that a slice takes all of; None if it is something else, or may not be replaced by that tensor."""
    source = whole_source(node) or made_whole(node)
    if source is None:
        return None
    # where it is written, or returned beside its source, the program has two tensors
    given = source.op in ("placeholder", "get_attr") or is_output(source)
    return None if changes.of(node) or (given and is_output(node)) else source

"""Skip slices that take everything, such as that of a sliding window which is longer than the cache.

    full = cat([past, k], dim=2)
    keys = full[:, :, -W + 1:, :]     # as long as full        ->      full in place of keys
    return attention(q, full, ...), keys

That a window is not reached is a guard of the graph: Dynamo added it when it computed the length of the slice. A call
that reaches the window has a graph of its own. A short window is left as it is: its cache is of another kind from the
beginning (``analysis/windows.py``).
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .analysis.windows import SHORT_WINDOW
from .context import PassContext
from .graph.aliases import Writes
from .graph.reading import Call, is_output, read
from .graph.values import same_sizes, shape, value_of
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
    call = read(node)
    source = None if call is None else call.source()
    if call is None or source is None or not _takes_ranges(call):
        return None
    own, sizes = shape(node), shape(source)
    if own is None or sizes is None or not same_sizes(own, sizes):
        return None
    # where it is written, or returned beside its source, the program has two tensors
    given = source.op in ("placeholder", "get_attr") or is_output(source)
    return None if changes.of(node) or (given and is_output(node)) else source


def _takes_ranges(call: Call) -> bool:
    """Whether a node selects a range of each dimension: if it has as many elements as the tensor, it is all of them."""
    if call.name == "narrow":
        return True
    index = call["index"] if call.name == "getitem" else None
    entries = index if isinstance(index, tuple) else (index,)
    return all(one is Ellipsis or (isinstance(one, slice) and _is_range(one)) for one in entries)


def _is_range(entry: slice) -> bool:
    """Whether a slice takes neighbours, and is not that of a short window."""
    start, step = value_of(entry.start), value_of(entry.step)
    short = isinstance(start, int) and -SHORT_WINDOW <= start < 0
    return (step is None or (isinstance(step, int) and step == 1)) and not short

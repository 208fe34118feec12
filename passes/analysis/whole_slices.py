"""Recognizes slices that take everything, by their sizes: `x[...]`, `x[:, :, 0:]`, `x[:, :, -W:]` within a window."""

from __future__ import annotations

from torch import SymInt
from torch.fx import Node

from ..attention.sides import may_be_cached
from ..graph.dimensions import is_from_front
from ..graph.reading import Call, read
from ..graph.values import made_equal, same_sizes, shape, value_of
from .windows import SHORT_WINDOW


def whole_source(node: Node) -> Node | None:
    """The tensor that a slice takes all of; None if ``node`` is something else, or the slice of a short window."""
    call = read(node)
    source = None if call is None else call.source()
    if call is None or source is None or not _takes_ranges(call):
        return None
    own, sizes = shape(node), shape(source)
    return source if own is not None and sizes is not None and same_sizes(own, sizes) else None


def made_whole(node: Node) -> Node | None:
    """The keys or values of which a slice takes the first ``length``, if these are all in the first call; else None.

    They are all in every call then, by a guard. A call in which they are not has a graph of its own.
    """
    call = read(node)
    source = None if call is None else call.source()
    own, sizes = shape(node), shape(source)
    if call is None or source is None or own is None or sizes is None or len(own) != 4 or len(sizes) != 4:
        return None
    if not may_be_cached(source):
        return None
    pairs = list(zip(own, sizes, strict=True))
    other = [pair for pair in pairs if not same_sizes(*((size,) for size in pair))]
    if len(other) != 1 or not all(isinstance(size, SymInt) for size in other[0]) or not _takes_first(call):
        return None
    return source if made_equal(*other[0]) else None


def _takes_first(call: Call) -> bool:
    """Whether a node selects the first elements of each dimension, up to numbers that the program gives."""
    if call.name == "narrow":
        start = value_of(call["start"])
        return isinstance(start, int) and start == 0
    index = call["index"] if call.name == "getitem" else None
    entries = index if isinstance(index, tuple) else (index,)
    return all(one is Ellipsis or is_from_front(one) for one in entries)


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

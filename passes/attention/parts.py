"""Parts of a tensor: a range of one of its dimensions, in any spelling.

x[:, 2:4]    x.narrow(1, 2, 2)    x.chunk(2, 1)[1]    torch.split(x, 2, dim=1)[1]        elements 2 and 3
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import Node

from ..graph.dimensions import full_index
from ..graph.operations import Kind
from ..graph.reading import read
from ..graph.values import example_or_none, plain_size, shape


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A range of one dimension of a tensor.

    Attributes:
        source: the tensor.
        dim: the dimension.
        start, stop: the first element, and the one behind the last.
        nodes: what takes it from the tensor: one node, or two where the tensor is cut into pieces first.
    """

    source: Node
    dim: int
    start: int
    stop: int
    nodes: tuple[Node, ...]


def part_of(node: Node) -> Part | None:
    """What a node takes a range of, with constant bounds; None if it does anything else, or takes everything."""
    call = read(node)
    if call is None or call.in_place:
        return None
    if call.name == "narrow":
        dim, start, length = (call[name] for name in ("dim", "start", "length"))
        rank, source = len(shape(node) or ()), call.source()
        if source is None or not rank or not all(isinstance(number, int) for number in (dim, start, length)):
            return None
        index = (*[slice(None)] * (dim % rank), slice(start, start + length))
        return _ranged(node, source, index) if start >= 0 else None
    source = call.source()
    if source is None or call.name != "getitem":
        return None
    pieces, parts = read(source), example_or_none(source)
    if pieces is None or not pieces.kinds & Kind.PIECES:
        return _ranged(node, source, call["index"])
    whole, number, rank = pieces.source(), call["index"], len(shape(node) or ())
    if pieces.name == "unbind" or whole is None or not isinstance(number, int) or not isinstance(pieces["dim"], int):
        return None
    dim = pieces["dim"] % rank
    widths = [plain_size(part.shape[dim]) for part in parts]
    if not all(isinstance(width, int) for width in widths):
        return None
    start = sum(widths[: number % len(widths)])
    return Part(whole, dim, start, start + widths[number], (source, node))


def _ranged(node: Node, source: Node, index: Any) -> Part | None:
    found = range_of(index, shape(source))
    return None if found is None else Part(source, *found, (node,))


def range_of(index: Any, sizes: tuple[Any, ...] | None, *, empty: bool = False) -> tuple[int, int, int] | None:
    """The dimension, the first element and the one behind the last that an index selects from a tensor of a shape.

    None if it selects from several dimensions or none, or anything else than a range with constant bounds; also of a
    range without elements, unless it may be ``empty``.
    """
    entries = full_index(index, len(sizes or ()))
    if sizes is None or len(entries) != len(sizes) or not all(isinstance(entry, slice) for entry in entries):
        return None
    chosen = [dim for dim, entry in enumerate(entries) if entry != slice(None)]
    if len(chosen) != 1 or not isinstance(sizes[chosen[0]], int):
        return None
    entry = entries[chosen[0]]
    if entry.step not in (None, 1) or any(
        not (end is None or isinstance(end, int)) for end in (entry.start, entry.stop)
    ):
        return None
    start, stop, _ = entry.indices(sizes[chosen[0]])
    return (chosen[0], start, stop) if start < stop or (empty and start == stop) else None

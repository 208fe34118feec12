"""Finds which channels of a projection each channel of the query (or key) is computed from.

    q = linear(x).view(B, N, H, D)         the source: every element of q' is a sum of elements of it, each times a
    q = q.transpose(1, 2)                  factor that is independent of it. Element (b, h, n, c) of q' depends on
    q' = q * cos + rotate_half(q) * sin    channels c and c + D/2 of (b, h, n): the pairs of rotate_half

The rotary embedding is recognized by what it computes, independent of its spelling: element indices are followed from
the result back through all operations that move elements, multiply them by other tensors or add them. A factor that
both channels of each pair share can then be applied to the source instead of the result. The search gives up at any
operation that is not supported here, and, from a result in float64, at any tensor of another dtype: what is rounded to
float32 there would be rounded differently with the factor.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing
import torch
from torch.fx import Node

from ..graph.aliases import Writes
from ..graph.dimensions import full_index, order_of
from ..graph.operations import Kind
from ..graph.reading import Call, is_query, kinds, read
from ..graph.values import dtype_of, example_or_none, tensor_of, value_of

_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
)
#: Those that hold a number of float64.
_DOUBLE = (torch.float64, torch.complex128)
#: The search for sources stops after this many nodes.
_MAX_NODES = 300

_Ints = numpy.typing.NDArray[np.int64]


class _NotLinear(Exception):
    """An operation is not supported, or does more than move, scale and add channels."""


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelPath:
    """A node from which a query or key is computed linearly, so that a factor for each channel can be applied to it.

    Attributes:
        source: the node, of four dimensions.
        order: the dimensions of the source that are batch, heads, tokens and channels.
        partners: for each channel, the other channel that it is mixed with; the channel itself if it is not mixed.
    """

    source: Node
    order: tuple[int, int, int, int]
    partners: tuple[int, ...]


def find_path(target: Node, readers: set[Node] | None, changes: Writes) -> ChannelPath | None:
    """The earliest node to which a factor for the channels of a query or key can be applied.

    Args:
        target: the query or key ``[B, H, N, D]``.
        readers: the nodes that read ``target`` and may see the factor; None if nothing will be changed, so that other
            readers do not matter.
        changes: the in-place writes of the graph.

    Returns:
        None if there is no node before ``target`` itself.
    """
    ancestors = _linear_ancestors(target)
    sources = [node for node in ancestors if node is not target and _rank(node) == 4 and node in changes.order]
    for source in sorted(sources, key=changes.order.__getitem__):
        between = _between(source, target, ancestors)
        if target not in between or (
            readers is not None and not _is_private(source, target, between, readers, changes)
        ):
            continue
        # symbolic sizes are replaced by numbers; the result must not depend on the choice of these
        found = [_trace(source, target, between, first) for first in (2, 5)]
        if found[0] is not None and found[0] == found[1]:
            return ChannelPath(source, *found[0])
    return None


def _linear(node: Node) -> Call | None:
    """The call of a node of `Kind.LINEAR`; None for any other node."""
    call = read(node)
    return call if call is not None and not call.in_place and call.kinds & Kind.LINEAR else None


def _rank(node: Node) -> int | None:
    """The number of dimensions of a floating-point or complex tensor; None for any other node."""
    value = tensor_of(node)
    return value.dim() if value is not None and value.dtype in _DTYPES else None


def _linear_ancestors(target: Node) -> set[Node]:
    """``target`` and the nodes that it is computed from by operations of `Kind.LINEAR`."""
    found, pending = {target}, [target]
    while pending and len(found) < _MAX_NODES:
        node = pending.pop()
        if not kinds(node) & Kind.LINEAR:
            continue
        for source in node.all_input_nodes:
            if source not in found and not isinstance(example_or_none(source), torch.SymInt):
                found.add(source)
                pending.append(source)
    return found


def _between(source: Node, target: Node, ancestors: set[Node]) -> set[Node]:
    """All nodes of ``ancestors`` on paths from ``source`` to ``target``, both included; empty if there is no path."""
    after, pending = {source}, [source]
    while pending:
        for user in pending.pop().users:
            if user in ancestors and user not in after and kinds(user) & Kind.LINEAR:
                after.add(user)
                pending.append(user)
    if target not in after:
        return set()
    kept, pending = {target}, [target]
    while pending:
        for node in pending.pop().all_input_nodes:
            if node in after and node not in kept:
                kept.add(node)
                pending.append(node)
    return kept


def _is_private(source: Node, target: Node, between: set[Node], readers: set[Node], changes: Writes) -> bool:
    """Whether a change of ``source`` affects only ``readers`` of ``target``, and no in-place write comes between."""
    for node in between:
        allowed = between | readers if node is target else between
        if any(user not in allowed and not is_query(user) for user in node.users):
            return False
        if tensor_of(node) is not None and changes.after(node, source):
            return False
    return True


# --- following indices ----------------------------------------------------------------------------------------------


class _Sizes:
    """Converts sizes to ints, with a small number in place of each symbol."""

    def __init__(self, first: int) -> None:
        self._symbols: dict[Any, int] = {}
        self._next = itertools.count(first, 3)

    def number(self, size: Any) -> int:
        size = value_of(size)
        if isinstance(size, int):
            return size
        if not isinstance(size, torch.SymInt):
            raise _NotLinear
        expr = size.node.expr
        for symbol in sorted(expr.free_symbols, key=str):
            if symbol not in self._symbols:
                self._symbols[symbol] = next(self._next)
        return int(expr.xreplace(self._symbols))

    def shape(self, node: Any) -> tuple[int, ...]:
        value = tensor_of(node)
        if value is None or value.dtype not in _DTYPES:
            raise _NotLinear
        return tuple(map(self.number, value.shape))


def _trace(
    source: Node, target: Node, between: set[Node], first: int
) -> tuple[tuple[int, int, int, int], tuple[int, ...]] | None:
    """``order`` and ``partners`` of the :class:`ChannelPath` from a source; None if the source does not fit.

    Args:
        between: the nodes between source and target.
        first: the number that the first symbol is replaced by.
    """
    try:
        tracer = _Tracer(source, target, between, _Sizes(first))
        tracer.follow(target, np.arange(len(tracer.points)), tracer.points)
        return tracer.result()
    except (_NotLinear, TypeError, ValueError, IndexError):  # arguments of unexpected types or values
        return None


class _Tracer:
    """Follows indices of elements of the target back to the source.

    It follows all heads and channels, but only the first and last sequences and tokens: no operation may select among
    sequences or tokens (`_select`), so that all others behave in the same way.

    The arrays are NumPy's: torch shares even small operations among threads, which wait for one another on a busy host.
    """

    def __init__(self, source: Node, target: Node, between: set[Node], sizes: _Sizes) -> None:
        self.source, self.between, self.sizes = source, between, sizes
        self.double = dtype_of(target) in _DOUBLE
        self.shape = sizes.shape(target)
        batch, heads, tokens, channels = self.shape
        ends = [sorted({i for i in (0, 1, 2, n - 1) if 0 <= i < n}) for n in (batch, tokens)]
        places = np.meshgrid(ends[0], ends[1], np.arange(heads), np.arange(channels), indexing="ij")
        self.points = np.stack([places[i].reshape(-1) for i in (0, 2, 1, 3)], -1)  # (b, h, n, c), channels fastest
        self.arrivals: list[tuple[_Ints, _Ints]] = []

    def follow(self, node: Node, rows: _Ints, at: _Ints) -> None:
        """Follow the elements ``at [len(rows), rank]`` of a node, on which the elements ``points[rows]`` depend."""
        if self.double and dtype_of(node) not in _DOUBLE:
            raise _NotLinear
        if node is self.source:
            self.arrivals.append((rows, at))
            return
        call = _linear(node)
        if call is None:
            raise _NotLinear
        name = call.name
        if name == "neg" or call.kinds & (Kind.SAME | Kind.CASTS):
            self._same_dtype(node, call["input"])
            self.follow(self._dependent(call["input"]), rows, at)
        elif name in ("mul", "div"):
            left, right = call["input"], call["other"]
            if not call.is_plain():
                raise _NotLinear  # a division may have a rounding mode
            if name == "mul" and right in self.between:
                left, right = right, left
            if right in self.between:
                raise _NotLinear
            self._broadcast(left, node, rows, at)
        elif name in ("add", "sub"):
            for operand in (call["input"], call["other"]):
                self._broadcast(operand, node, rows, at)
        elif name == "expand":
            self._broadcast(call["input"], node, rows, at)
        elif call.kinds & Kind.RESHAPES:
            self._reshape(call["input"], node, rows, at)
        elif call.kinds & Kind.REORDERS:
            order = order_of(call, at.shape[1])
            if order is None:
                raise _NotLinear
            moved = np.empty_like(at)
            moved[:, list(order)] = at
            self.follow(self._dependent(call["input"]), rows, moved)
        elif name == "cat":
            self._cat(call, rows, at)
        elif name == "stack":
            self._stack(call, rows, at)
        elif name == "getitem":
            self._getitem(call, rows, at)
        elif name in ("view_as_complex", "view_as_real"):
            self._complex(name, call["input"], rows, at)
        else:
            raise _NotLinear

    def result(self) -> tuple[tuple[int, int, int, int], tuple[int, ...]]:
        """``order`` and ``partners`` of the :class:`ChannelPath`."""
        sizes = self.sizes.shape(self.source)
        channels = self.shape[3]
        reached = np.zeros((channels, channels), dtype=bool)
        for order in itertools.permutations(range(4)):
            if tuple(sizes[dim] for dim in order) != self.shape:
                continue
            if all(np.array_equal(at[:, list(order[:3])], self.points[rows, :3]) for rows, at in self.arrivals):
                break
        else:
            raise _NotLinear
        for rows, at in self.arrivals:
            reached[self.points[rows, 3], at[:, order[3]]] = True
        reached = reached | reached.T
        if not reached.any(-1).all():
            raise _NotLinear
        partners = []
        for channel, row in enumerate(reached):
            others = [other for other in np.flatnonzero(row).tolist() if other != channel]
            if len(others) > 1:
                raise _NotLinear
            partners.append(others[0] if others else channel)
        batch, heads, tokens, last = order
        return (batch, heads, tokens, last), tuple(partners)

    def _dependent(self, node: Any) -> Node:
        """``node``, which has to be computed from the source."""
        if not isinstance(node, Node) or node not in self.between:
            raise _NotLinear  # an added tensor would not scale with the source
        return node

    def _same_dtype(self, node: Node, source: Any) -> None:
        value, other = tensor_of(node), tensor_of(source)
        if value is None or other is None or value.is_complex() != other.is_complex():
            raise _NotLinear
        if self.sizes.shape(node) != self.sizes.shape(source):
            raise _NotLinear

    def _broadcast(self, operand: Any, node: Node, rows: _Ints, at: _Ints) -> None:
        operand = self._dependent(operand)
        sizes, out = self.sizes.shape(operand), self.sizes.shape(node)
        at = at[:, len(out) - len(sizes) :].copy()
        for dim, (small, large) in enumerate(zip(sizes, out[len(out) - len(sizes) :], strict=True)):
            if small != large:
                if small != 1:
                    raise _NotLinear
                at[:, dim] = 0
        self.follow(operand, rows, at)

    def _reshape(self, operand: Any, node: Node, rows: _Ints, at: _Ints) -> None:
        operand = self._dependent(operand)
        sizes, out = self.sizes.shape(operand), self.sizes.shape(node)
        if math.prod(sizes) != math.prod(out) or dtype_of(operand) != dtype_of(node):
            raise _NotLinear
        flat = np.zeros(len(at), dtype=np.int64)
        for dim, size in enumerate(out):
            flat = flat * size + at[:, dim]
        places = []
        for size in reversed(sizes):
            places.append(flat % size)
            flat = flat // size
        self.follow(operand, rows, np.stack(places[::-1], -1))

    def _select(self, rows: _Ints, index: _Ints) -> _Ints:
        """``index``, by which elements are selected; it must depend on head and channel only."""
        size = self.shape[1] * self.shape[3]
        kind = rows % size
        seen = np.zeros(size, dtype=np.int64)
        seen[kind] = index
        if not np.array_equal(seen[kind], index):
            raise _NotLinear
        return index

    def _cat(self, call: Call, rows: _Ints, at: _Ints) -> None:
        tensors = [t for t in call["tensors"] if math.prod(self.sizes.shape(t))]
        if len(tensors) == 1:  # the others are empty, as a new cache is
            self.follow(self._dependent(tensors[0]), rows, at)
            return
        dim = call["dim"] % at.shape[1]
        self._pieces(tensors, [self.sizes.shape(tensor)[dim] for tensor in tensors], dim, rows, at)

    def _pieces(self, tensors: list[Any], widths: list[int], dim: int, rows: _Ints, at: _Ints) -> None:
        index, begin = self._select(rows, at[:, dim]), 0
        for tensor, width in zip(tensors, widths, strict=True):
            here = (index >= begin) & (index < begin + width)
            if here.any():
                place = at[here].copy()
                place[:, dim] -= begin
                self.follow(self._dependent(tensor), rows[here], place)
            begin += width

    def _stack(self, call: Call, rows: _Ints, at: _Ints) -> None:
        dim = call["dim"] % at.shape[1]
        index = self._select(rows, at[:, dim])
        rest = [d for d in range(at.shape[1]) if d != dim]
        for number, tensor in enumerate(call["tensors"]):
            here = index == number
            if here.any():
                self.follow(self._dependent(tensor), rows[here], at[here][:, rest])

    def _getitem(self, call: Call, rows: _Ints, at: _Ints) -> None:
        whole, index = self._dependent(call["input"]), call["index"]
        pieces = _linear(whole)
        if pieces is not None and pieces.kinds & Kind.PIECES:
            self._piece(pieces, index, rows, at)
            return
        sizes = self.sizes.shape(whole)
        places, out = [], 0
        for item in full_index(index, len(sizes)):
            if item is None:
                out += 1
            elif isinstance(item, slice):
                bounds = [None if end is None else self.sizes.number(end) for end in (item.start, item.stop, item.step)]
                start, _, step = slice(*bounds).indices(sizes[len(places)])
                place = at[:, out]
                if (start, step) != (0, 1) or self.sizes.shape(call.node)[out] != sizes[len(places)]:
                    place = self._select(rows, place)
                places.append(start + step * place)
                out += 1
            elif isinstance(item, (int, Node)) and not isinstance(item, bool):
                places.append(np.full(len(at), self.sizes.number(item) % sizes[len(places)]))
            else:
                raise _NotLinear
        self.follow(whole, rows, np.stack(places, -1))

    def _piece(self, pieces: Call, number: Any, rows: _Ints, at: _Ints) -> None:
        """Follow an element of the result of chunk, split or unbind."""
        whole, parts = self._dependent(pieces["input"]), example_or_none(pieces.node)
        dim = pieces["dim"] % len(self.sizes.shape(whole))
        number %= len(parts)
        if pieces.name == "unbind":
            place = np.full((len(at), 1), number)
            self.follow(whole, rows, np.concatenate((at[:, :dim], place, at[:, dim:]), 1))
            return
        place = at.copy()
        place[:, dim] = self._select(rows, at[:, dim])
        place[:, dim] += sum(self.sizes.number(piece.shape[dim]) for piece in parts[:number])
        self.follow(whole, rows, place)

    def _complex(self, name: str, operand: Any, rows: _Ints, at: _Ints) -> None:
        """Follow both parts of a complex number, because a product of two depends on both parts of each."""
        operand = self._dependent(operand)
        if name == "view_as_real":
            self.follow(operand, rows, at[:, :-1])
            return
        for part in (0, 1):
            self.follow(operand, rows, np.concatenate((at, np.full((len(at), 1), part)), 1))

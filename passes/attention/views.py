"""Views, copies, casts, repetitions and constant factors, and how they change the dimensions of a tensor."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..context import NoMatch
from ..graph.constants import constant
from ..graph.dimensions import order_of
from ..graph.operations import VIEWS, Kind
from ..graph.reading import read
from ..graph.values import Sizes, dtype_of, is_float, shape, sizes_of
from .axes import Dims, axes_of_size, reshaped


def view_source(node: Node) -> Node | None:
    """The tensor that a node is a view, copy or floating-point cast of, with all its elements; else None."""
    call = read(node)
    source = None if call is None or call.in_place else call.source()
    if call is None or source is None or shape(node) is None or shape(source) is None:
        return None
    if call.kinds & Kind.CASTS:
        return source if is_float(node) and is_float(source) else None
    if call.kinds & VIEWS:
        return source if dtype_of(node) == dtype_of(source) else None
    if call.name == "getitem":
        index = call["index"] if isinstance(call["index"], tuple) else (call["index"],)
        return source if all(item is None or item is ... or item == slice(None) for item in index) else None
    return None


def split_factor(node: Node) -> tuple[Node, float] | None:
    """The other factor and the constant, for a multiplication by a constant or a division by one; else None."""
    call = read(node)
    if call is None or call.name not in ("mul", "div") or not call.is_plain():
        return None
    left, right = call["input"], call["other"]
    if isinstance(left, Node) and (number := constant(right)) is not None:
        if call.name == "div":
            return (left, 1.0 / number) if number else None
        return left, number
    if call.name == "mul" and isinstance(right, Node) and (number := constant(left)) is not None:
        return right, number
    return None


def view_dims(node: Node, dims: Dims) -> Dims:
    """The dimensions of a view (see `view_source`) or repetition of a tensor with dimensions ``dims``.

    Raises:
        NoMatch: if they cannot be determined.
    """
    call, rank = read(node), len(dims)
    if call is not None and call.kinds & Kind.REORDERS:
        order = order_of(call, rank)
        if order is None:
            raise NoMatch("dimensions are reordered in an order that is not constant")
        return tuple(dims[dim] for dim in order)
    if call is not None and call.name == "expand":
        return _expanded(dims, sizes_of(node))
    if call is not None and call.name == "repeat":
        repeats = [1] * (rank - len(call["repeats"])) + list(call["repeats"])
        dims = ((),) * (len(repeats) - rank) + dims
        return tuple((*axes_of_size(_number(n)), *dim) for n, dim in zip(repeats, dims, strict=True))
    if call is not None and call.name == "repeat_interleave":
        dim = call["dim"]
        if not isinstance(dim, int):
            raise NoMatch("repeat_interleave is called without a dimension")
        repeated = list(dims)
        repeated[dim] = (*dims[dim], *axes_of_size(_number(call["repeats"])))
        return tuple(repeated)
    return reshaped(dims, sizes_of(node))


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise NoMatch("heads are repeated by a number that is not constant")
    return value


def _expanded(dims: Dims, sizes: Sizes) -> Dims:
    dims = ((),) * (len(sizes) - len(dims)) + dims
    return tuple(dim or axes_of_size(size) for dim, size in zip(dims, sizes, strict=True))

"""Axes: a symbolic description of the dimensions of a tensor, which is followed through views.

A dimension of a tensor is described by the axes that it consists of, from slowest to fastest:

    k                  [B, H, S, D]        (b,) (h,) (s,) (d,)
    repeat_kv(k)       [B, H*G, S, D]      (b,) (h, g) (s,) (d,)
    .reshape(-1, S, D) [B*H*G, S, D]       (b, h, g) (s,) (d,)
    .transpose(1, 2)   [B*H*G, D, S]       (b, h, g) (d,) (s,)

Two tensors with the same axes hold the same elements, in the order of their axes. So bmm on ``[B*H, N, D]``, einsum on
``[B, S, H, D]`` and grouped-query attention in any spelling are one case. Axes of size 1 are left out, because they do
not affect the order of elements; a dimension of size 1 is ``()``.

An axis is *split* when it turns out to consist of several (query heads are KV heads times query heads per KV head). Two
axes are *unified* when they turn out to be the same (heads of the query and of the key). Sizes may be symbolic. If an
equality that is needed is not known, :class:`NoMatch` is raised.
"""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

from ..context import NoMatch
from ..graph.values import plain_size, same_sizes, sizes_of
from ..graph.writing import Writer


class Axis:
    """A factor of a dimension, of a size larger than 1. Identified by object identity.

    Attributes:
        size: an int or a SymInt.
        parts: the axes that it was split into or unified with; None if it was not.
    """

    __slots__ = ("parts", "size")

    def __init__(self, size: Any) -> None:
        self.size = plain_size(size)
        self.parts: tuple[Axis, ...] | None = None


#: The axes of each dimension of a tensor.
Dims = tuple[tuple[Axis, ...], ...]


def axes_of_size(size: Any) -> tuple[Axis, ...]:
    """A new axis of ``size``; empty if the size is 1."""
    return () if same_sizes((size,), (1,)) else (Axis(size),)


def fresh_dims(sizes: tuple[Any, ...]) -> Dims:
    """A new axis for each dimension of a tensor."""
    return tuple(axes_of_size(size) for size in sizes)


def resolve(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """``axes`` with all splits and unifications applied."""
    out: list[Axis] = []
    for axis in axes:
        out += resolve(axis.parts) if axis.parts is not None else (axis,)
    return tuple(out)


def resolve_dims(dims: Dims) -> Dims:
    """``dims`` with all splits and unifications applied."""
    return tuple(resolve(dim) for dim in dims)


def flat(dims: Dims) -> tuple[Axis, ...]:
    """The axes of all dimensions, from slowest to fastest."""
    return tuple(axis for dim in dims for axis in resolve(dim))


def size_of(axes: tuple[Axis, ...]) -> Any:
    """The size of a dimension that consists of ``axes``."""
    return plain_size(math.prod(axis.size for axis in axes))


def _split(axis: Axis, size: Any) -> tuple[Axis, Axis]:
    """Split an axis into a slow one of ``size`` and a fast one."""
    if not same_sizes((axis.size % size,), (0,)):
        raise NoMatch("a reshape splits the heads unevenly")
    axis.parts = (Axis(size), Axis(axis.size // size))
    return axis.parts


def reshaped(dims: Dims, sizes: tuple[Any, ...]) -> Dims:
    """The dimensions of a tensor after a reshape to ``sizes``.

    Raises:
        NoMatch: if they cannot be determined.
    """
    rest = list(flat(dims))
    out = []
    for size in sizes:
        taken: list[Axis] = []
        while not same_sizes((size_of(tuple(taken)),), (size,)):
            if not rest:
                raise NoMatch("a reshape merges or splits dimensions in an unsupported way")
            axis = rest.pop(0)
            reached = size_of(tuple(taken))
            if same_sizes((reached * axis.size,), (size,)) or not _is_larger(axis.size, size, reached):
                taken.append(axis)
                continue
            slow, fast = _split(axis, size // reached)
            taken.append(slow)
            rest.insert(0, fast)
        out.append(tuple(taken))
    if rest:
        raise NoMatch("a reshape merges or splits dimensions in an unsupported way")
    return tuple(out)


def _is_larger(size: Any, target: Any, reached: Any) -> bool:
    """Whether ``size * reached`` is larger than ``target``; for symbolic sizes, whether it is a multiple of it."""
    if isinstance(size, int) and isinstance(target, int) and isinstance(reached, int):
        return size * reached > target
    return same_sizes((target % reached,), (0,)) and same_sizes((size % (target // reached),), (0,))


def unify(a: tuple[Axis, ...], b: tuple[Axis, ...]) -> None:
    """Record that two sequences of axes describe the same dimension, splitting axes as needed.

    Raises:
        NoMatch: if their sizes differ.
    """
    left, right = list(resolve(a)), list(resolve(b))
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x is y:
            continue
        if same_sizes((x.size,), (y.size,)):
            x.parts = (y,)
        elif _is_larger(x.size, y.size, 1):
            slow, fast = _split(x, y.size)
            slow.parts = (y,)
            left.insert(0, fast)
        elif _is_larger(y.size, x.size, 1):
            slow, fast = _split(y, x.size)
            slow.parts = (x,)
            right.insert(0, fast)
        else:
            raise NoMatch("the shapes of query, key and value do not match")
    if left or right:
        raise NoMatch("the shapes of query, key and value do not match")


# --- inserting operations that reorder axes -------------------------------------------------------------------------


def rearrange(write: Writer, node: Node, source: Dims, target: Dims, *, broadcast: bool = False) -> Node:
    """Insert the views that turn a tensor with dimensions ``source`` into one with dimensions ``target``.

    Args:
        write: a writer at the position where to insert.
        node: the tensor.
        source: its dimensions.
        target: the dimensions of the result.
        broadcast: whether the tensor may lack axes of ``target``. A dimension all of whose axes it lacks gets size 1.

    Returns:
        The result; ``node`` itself if it has the right dimensions.

    Raises:
        NoMatch: if ``target`` lacks axes of the tensor, or a size cannot be computed in the graph.
    """
    source, target = resolve_dims(source), resolve_dims(target)
    if source == target:
        return node
    have = flat(source)
    if broadcast:
        target = tuple(dim if any(axis in have for axis in dim) else () for dim in target)
        if source == target:
            return node
    want = flat(target)
    if any(axis not in want for axis in have) or len(set(have)) != len(have):
        raise NoMatch("the dimensions of a tensor cannot be brought into the order of an attention")
    order = [have.index(axis) for axis in want if axis in have]
    missing = len(want) != len(have)
    if order != sorted(order) or missing:
        split = tuple((axis,) for axis in have)
        node, source = _reshape(write, node, source, split), split
        if order != sorted(order):
            node, source = write.method("permute", node, tuple(order)), tuple(split[index] for index in order)
        if missing:
            thin = tuple((axis,) if axis in have else () for axis in want)
            node = _reshape(write, node, source, thin)
            source = tuple((axis,) for axis in want)
            sizes = [-1 if axis in have else axis.size for axis in want]
            node = write.method("expand", node, tuple(size_argument(write, size) for size in sizes))
    return _reshape(write, node, source, target)


def _reshape(write: Writer, node: Node, source: Dims, target: Dims) -> Node:
    own, sizes = sizes_of(node), [size_of(dim) for dim in target]
    if same_sizes(own, tuple(sizes)):
        return node
    symbols = [index for index, size in enumerate(sizes) if not isinstance(size, int)]
    if len(symbols) == 1:
        sizes[symbols[0]] = -1  # torch computes it
    else:
        for index in symbols:
            if target[index] in source:
                sizes[index] = write.size(node, source.index(target[index]))
            else:
                sizes[index] = size_argument(write, sizes[index])
    return write.method("reshape", node, tuple(sizes))


def size_argument(write: Writer, size: Any) -> Any:
    """A size as an int, or as a node that holds it.

    Raises:
        NoMatch: if no inputs of the graph say it.
    """
    try:
        return write.number(size)
    except KeyError:
        raise NoMatch("a symbolic size of the attention is not known from inputs of the graph") from None

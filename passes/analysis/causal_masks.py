"""Masks of a prompt of which everything but padding follows from positions, as masks of transformers for SDPA.

    rows = arange(n)[None, None, :, None]                 the query tokens
    columns = arange(n)[None, None, None, :]              the key tokens
    mask = (columns <= rows)                              causal
    mask = mask & (columns > rows - W)                    of a sliding window
    mask = mask & padding_mask[batch, columns]            [B, 1, 1, n]: whether a key is shown at all
    mask = where(mask, 0, min)                            for programs that add it to the scores

Such a mask is causal where no key is hidden and no query is further than the window behind its first key.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from ..attention.views import view_source
from ..graph.aliases import Writes
from ..graph.constants import constant
from ..graph.reading import Call, read
from ..graph.values import dtype_of, example, is_float, plain_size, same_size, shape, tensor_of, value_of

#: ``a < b`` of integers is ``a <= b + shift``, and ``a > b`` is ``b <= a + shift``: the shift by the comparison.
_AT_MOST, _AT_LEAST = {"le": 0, "lt": -1}, {"ge": 0, "gt": -1}
_AND = ("bitwise_and", "logical_and")


@dataclasses.dataclass(frozen=True)
class CausalMask:
    """What a mask hides besides the keys behind a query.

    Attributes:
        shown: tensors ``[B or 1, 1, 1, S]`` that are False for keys that are hidden from all queries.
        window: how many keys a query sees at most, itself included; None for all.
        added: whether the mask is added to the scores: a large negative number where a key is hidden.
    """

    shown: tuple[Node, ...] = ()
    window: int | None = None
    added: bool = False


@dataclasses.dataclass(frozen=True)
class _Index:
    """Numbers that count up along one dimension.

    Attributes:
        dim: the dimension, from the end: -1 for keys, -2 for queries.
        size: how many.
        first: the first of them.
    """

    dim: int
    size: Any
    first: Any


def causal_mask(mask: Node | None, changes: Writes) -> CausalMask | None:
    """What a mask hides, if it hides all keys behind a query and is understood; else None.

    Args:
        mask: ``[B or 1, 1, S, S]``, True for keys that are attended to, or added to the scores.
        changes: the in-place writes of the graph.
    """
    sizes = shape(mask)
    if mask is None or sizes is None or len(sizes) != 4:
        return None
    if not (same_size(sizes[1], 1) and same_size(sizes[2], sizes[3])):
        return None
    walk = _Walk(changes, sizes[3])
    if dtype_of(mask) == torch.bool:
        return walk.walk(mask)
    condition = walk.condition(mask)
    found = None if condition is None else walk.walk(condition)
    return None if found is None else dataclasses.replace(found, added=True)


class _Walk:
    """Reads a mask. A node that is written in place is not understood.

    Args:
        changes: the in-place writes of the graph.
        size: the number of keys, and of queries.
    """

    def __init__(self, changes: Writes, size: Any) -> None:
        self._changes, self._size = changes, size

    def walk(self, mask: Node) -> CausalMask | None:
        """What a mask hides; None if it is not causal, or not understood."""
        causal, window, shown = False, None, []
        for term in self._terms(mask):
            if term is None:
                return None
            bounds = self._bounds(term)
            if bounds == (0, None):
                causal = True
            elif bounds is not None and bounds[0] is None and bounds[1] >= 0:
                window = min(bounds[1] + 1, window or bounds[1] + 1)
            elif bounds is None and self._is_by_key(term):
                shown.append(term)
            elif bounds is not None or not self._is_true(term):
                return None
        return CausalMask(tuple(shown), window) if causal else None

    def condition(self, mask: Node) -> Node | None:
        """Of a mask that is zero where a condition holds and hides elsewhere, the condition; else None."""
        call = self._read(mask)
        if call is None or call.name != "where" or not is_float(mask) or dtype_of(call["condition"]) != torch.bool:
            return None
        seen, hidden, lowest = constant(call["input"]), constant(call["other"]), torch.finfo(example(mask).dtype).min
        return call["condition"] if seen == 0 and hidden is not None and hidden <= lowest else None

    def _read(self, node: Any) -> Call | None:
        call = read(node)
        return None if call is None or call.in_place or self._changes.of(call.node) else call

    def _terms(self, node: Any) -> Iterator[Node | None]:
        """The parts whose conjunction is ``node``; None among them if one is not understood."""
        if not isinstance(node, Node) or self._changes.of(node):
            yield None
        elif (call := self._read(node)) is not None and call.name in _AND:
            yield from self._terms(call["input"])
            yield from self._terms(call["other"])
        elif call is not None and self._is_copy(call):
            yield from self._terms(call.source())
        else:
            yield node

    def _is_copy(self, call: Call) -> bool:
        """Whether a call copies its input on its device, or broadcasts it to the size of the mask."""
        source, copy = tensor_of(call.source()), tensor_of(call.node)
        if call.name not in ("to", "expand", "contiguous", "clone") or source is None or copy is None:
            return False
        return (source.dtype, source.device) == (copy.dtype, copy.device)

    def _bounds(self, term: Node) -> tuple[Any, Any] | None:
        """The least and the most ``row - column`` that a comparison of indices lets through, each None for no bound.

        None if it is no such comparison.
        """
        call = self._read(term)
        if call is None or call.name not in (*_AT_MOST, *_AT_LEAST):
            return None
        left, right = self._index(call["input"]), self._index(call["other"])
        if left is None or right is None or {left.dim, right.dim} != {-1, -2}:
            return None
        if not (same_size(left.size, self._size) and same_size(right.size, self._size)):
            return None
        if call.name in _AT_LEAST:
            left, right, shift = right, left, _AT_LEAST[call.name]
        else:
            shift = _AT_MOST[call.name]
        # left number + left.first <= right number + right.first + shift
        apart = plain_size(right.first - left.first + shift)
        if not isinstance(apart, int):
            return None
        return (-apart, None) if left.dim == -1 else (None, apart)

    def _index(self, node: Any) -> _Index | None:
        """The numbers that a tensor with one dimension larger than 1 counts, as ``arange(n)[None, :] + c`` does."""
        call, sizes = self._read(node), shape(node)
        if call is None or sizes is None:
            return None
        if call.name == "arange":
            first = value_of(call.get("start", 0))
            whole = (
                call.get("step", 1) == 1 and isinstance(first, (int, torch.SymInt)) and dtype_of(node) == torch.int64
            )
            return _Index(-1, sizes[0], plain_size(first)) if whole else None
        if call.name in ("add", "sub") and call.is_plain():
            return self._moved(call)
        inner = self._index(_viewed(call))
        long = [dim for dim, size in enumerate(sizes) if not same_size(size, 1)]
        if inner is None or len(long) != 1:
            return None
        return dataclasses.replace(inner, dim=long[0] - len(sizes))

    def _moved(self, call: Call) -> _Index | None:
        """An index plus or minus a number."""
        left, right = call["input"], call["other"]
        combine = operator.add if call.name == "add" else operator.sub
        for index, number in ((left, right), (right, left))[: 2 if call.name == "add" else 1]:
            found, value = self._index(index), value_of(number)
            if found is not None and isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
                return dataclasses.replace(found, first=plain_size(combine(found.first, value)))
        return None

    def _is_by_key(self, term: Node) -> bool:
        """Whether a tensor says of each key alone whether it is shown."""
        sizes = shape(term)
        if sizes is None or len(sizes) != 4 or dtype_of(term) != torch.bool:
            return False
        return same_size(sizes[1], 1) and same_size(sizes[2], 1) and same_size(sizes[3], self._size)

    def _is_true(self, term: Node) -> bool:
        """Whether a tensor is True everywhere."""
        call = self._read(term)
        return call is not None and dtype_of(term) == torch.bool and call.name in ("new_ones", "ones_like")


def _viewed(call: Call) -> Node | None:
    """What a call gives dimensions of size 1, or a copy of, to another device too; None if it does anything else."""
    if call.name == "to" and dtype_of(call.source()) == dtype_of(call.node):
        return call.source()
    return view_source(call.node)

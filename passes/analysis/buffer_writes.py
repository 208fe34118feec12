"""Writes in place to a preallocated cache: which they are, and where the first token of each goes.

    buffer.index_copy_(2, at, k)                 at: a tensor of positions
    buffer[:, :, past : past + n] = k            past: a number, maybe a symbol
    buffer.narrow(2, past, n).copy_(k)

Only whole tokens that follow one another count as understood; anything else raises :class:`NoBuffer`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from ..graph.aliases import Writes, possible_views
from ..graph.reading import Call, called_name, is_query, read
from ..graph.values import Sizes, example_or_none, same_size, same_sizes, shape, sizes_of, tensor_of, value_of


class NoBuffer(Exception):
    """Why a buffer is not understood."""


class BufferWrite(NamedTuple):
    """A write: the node that makes it, the index that it writes to, what is written."""

    node: Node
    index: Any
    new: Any


def is_preallocated(node: Node) -> bool:
    """Whether a placeholder is an ``InnerQBuffer``: a buffer that holds its tokens quantized."""
    return hasattr(example_or_none(node), "_offset")


def buffer_writes(buffer: Node, changes: Writes) -> list[BufferWrite]:
    """The writes to a buffer.

    Raises:
        NoBuffer: where the buffer is changed in any other way, be it through a view.
    """
    found = [write for user in buffer.users for write in _writes_through(user, buffer)]
    known = {write.node for write in found}
    for other in changes.of(buffer):
        if other not in known:
            raise NoBuffer(f"the buffer is changed by {called_name(other)}")
    if is_preallocated(buffer):
        _check_views(buffer, found, changes.order)
    return found


def _writes_through(user: Node, buffer: Node) -> list[BufferWrite]:
    """The writes to a buffer that are its ``user``, or go through it."""
    call = read(user)
    if call is None or call.source() is not buffer:
        return []
    if call.in_place:
        index = _written_index(call)
        return (
            []
            if index is None
            else [BufferWrite(user, index, call["values" if call.name == "index_put" else "source"])]
        )
    if call.name == "getitem":
        index = call["index"]
    elif call.name == "narrow" and isinstance(call["dim"], int):
        index = _along(call["dim"], Narrow(call["start"], call["length"]))
    else:
        return []
    copies = [copy for copy in map(read, user.users) if copy is not None and copy.name == "copy"]
    return [BufferWrite(copy.node, index, copy["source"]) for copy in copies if copy.source() is user]


def _written_index(call: Call) -> Any:
    """The index that a call in place writes to, None where it is not one of the usual writes."""
    if call.name == "index_copy" and isinstance(call["dim"], int):
        return _along(call["dim"], call["index"])
    if call.name == "index_put" and call["accumulate"] is False and isinstance(call["indices"], (list, tuple)):
        return tuple(slice(None) if item is None else item for item in call["indices"])
    return call["index"] if call.name == "setitem" else None


def _along(dim: int, item: Any) -> tuple[Any, ...]:
    """An index of four dimensions that takes all of them whole but one."""
    return tuple(item if d == dim % 4 else slice(None) for d in range(4))


def _check_views(buffer: Node, writes: list[BufferWrite], order: dict[Node, int]) -> None:
    """A view of a quantized buffer is computed where it is made: what is written to the buffer later is not in it."""
    for view in possible_views(buffer):
        if view is buffer:
            continue
        last = max((order[user] for user in view.users if not is_query(user)), default=-1)
        for write, _, _ in writes:
            if write not in view.users and write is not view and order[view] < order[write] < last:
                raise NoBuffer("a view of it is made before it is written, and read after")


# --- positions ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Narrow:
    """``length`` tokens from ``start`` on."""

    start: Any
    length: Any


@dataclasses.dataclass(frozen=True)
class IndexTensor:
    """Positions of a write that a tensor holds."""

    node: Node

    def consecutive(self) -> bool:
        """Whether the positions are known to follow one another."""
        return same_sizes(sizes_of(self.node), (1,)) or _is_arange_plus(self.node)


def _is_arange_plus(node: Node) -> bool:
    """Whether a node is a range of numbers that follow one another, or one plus a single number."""
    call = read(node)
    if call is None or call.in_place:
        return False
    if call.name == "arange":
        return call.get("step", 1) == 1
    if call.name != "add" or not call.is_plain():
        return False
    left, right = call["input"], call["other"]
    return any(
        isinstance(ranged, Node) and _is_arange_plus(ranged) and shape(number) in (None, (), (1,))
        for ranged, number in ((left, right), (right, left))
    )


def write_position(index: Any, dims: tuple[int, ...], sizes: Sizes, new: Any) -> Any:
    """Where the first token of ``new`` is written: a number, a SymInt's node, or an :class:`IndexTensor`.

    Raises:
        NoBuffer: where something else than whole tokens that follow one another is written.
    """
    index = index if isinstance(index, tuple) else (index,)
    if any(item is None or item is ... for item in index):
        raise NoBuffer("the buffer is written through an index with an ellipsis or a new dimension")
    token = dims[2]
    if len(index) <= token:
        raise NoBuffer("the buffer is written along another dimension than the tokens")
    for dim, item in enumerate(index):
        if dim == token:
            continue
        starts_full = isinstance(item, slice) and item.start in (None, 0) and item.step in (None, 1)
        if not starts_full or not (item.stop is None or same_size(value_of(item.stop), sizes[dim])):
            raise NoBuffer("the buffer is written in part, along another dimension than the tokens")
    written = shape(new)
    if written is None or len(written) != 4:
        raise NoBuffer("what is written to the buffer is not a tensor of four dimensions")
    position, count = _token_range(index[token], sizes[token])
    for have, want in zip(written, (*sizes[:token], count, *sizes[token + 1 :]), strict=True):
        if same_sizes((have,), (1,)) and not same_sizes((want,), (1,)):
            raise NoBuffer("what is written to the buffer is repeated to fill what it is written to")
    return position


def _token_range(item: Any, size: Any) -> tuple[Any, Any]:
    """Where the tokens of an index begin, and how many they are."""
    if isinstance(item, Narrow):
        start, count = item.start, value_of(item.length)
    elif isinstance(item, slice):
        if item.step not in (None, 1):
            raise NoBuffer("the buffer is written with a step")
        start = 0 if item.start is None else item.start
        count = (size if item.stop is None else value_of(item.stop)) - value_of(start)
        if isinstance(item.stop, int) and item.stop < 0:
            raise NoBuffer("the buffer is written at a place that is counted from its end")
    elif isinstance(item, Node) and (positions := tensor_of(item)) is not None:
        if positions.dim() != 1 or positions.dtype == torch.bool:
            raise NoBuffer("the buffer is written at an index that is not a list of positions")
        return IndexTensor(item), sizes_of(item)[0]
    else:
        raise NoBuffer("the buffer is written at an index that is neither a slice nor a tensor")
    if _is_negative(value_of(start)):
        raise NoBuffer("the buffer is written at a place that is counted from its end")
    return start, count


def _is_negative(number: Any) -> bool:
    """Whether a number is below 0 in this call; Dynamo guards on the sign of what it slices by."""
    if isinstance(number, torch.SymInt):
        return number.node.has_hint() and number.node.hint < 0
    return isinstance(number, int) and number < 0


def same_position(a: Any, b: Any) -> bool:
    """Whether two writes begin at the same place."""
    if a is b:
        return True
    return tensor_of(a) is None and tensor_of(b) is None and same_size(value_of(a), value_of(b))

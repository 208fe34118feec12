"""Finds the in-place writes to a preallocated buffer, and the position of the first token of each.

    buffer.index_copy_(2, at, k)                 at: a tensor of positions
    buffer[:, :, past : past + n] = k            past: an int or a symbolic int
    buffer.narrow(2, past, n).copy_(k)
    buffer[:batch, ...].index_copy_(2, at, k)    all sequences of the buffer

Writes of whole, consecutive tokens are supported; anything else raises :class:`NoBuffer`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from ..graph.aliases import Writes, possible_views
from ..graph.dimensions import full_index, is_from_front
from ..graph.reading import Call, called_name, is_query, read
from ..graph.values import (
    Sizes,
    example_or_none,
    made_equal,
    same_size,
    same_sizes,
    shape,
    sizes_of,
    tensor_of,
    value_of,
)


class NoBuffer(Exception):
    """Raised for a buffer whose writes or reads are not supported. The message is the reason."""


class BufferWrite(NamedTuple):
    """A write to a buffer: the node, the index that it writes to, and the new tokens."""

    node: Node
    index: Any
    new: Any


def is_preallocated(node: Node) -> bool:
    """Whether a placeholder is an ``InnerQBuffer``, a preallocated buffer that is quantized."""
    return hasattr(example_or_none(node), "_offset")


def buffer_writes(buffer: Node, changes: Writes) -> list[BufferWrite]:
    """The writes to a buffer.

    Raises:
        NoBuffer: if the buffer is changed in any other way, directly or through a view.
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
    """The writes to a buffer that ``user`` makes, or that are made through the view ``user``."""
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
    found = [BufferWrite(copy.node, index, copy["source"]) for copy in copies if copy.source() is user]
    into = [node for node in user.users if (made := read(node)) and made.in_place and made.name != "copy"]
    if into and takes_all(index, user, buffer):
        found += [write for node in into for write in _writes_through(node, user)]
    return found


def takes_all(index: Any, part: Node, source: Node) -> bool:
    """Whether ``part``, the result of an index, is all of a tensor, in this call and, by a guard, in all others.

    As ``buffer[:batch, ...]``, where the program has as many sequences as the buffer.
    """
    own, sizes = sizes_of(part), sizes_of(source)
    items = full_index(index, len(sizes))
    return all(map(is_from_front, items)) and len(own) == len(sizes) and all(map(made_equal, own, sizes))


def _written_index(call: Call) -> Any:
    """The index that an in-place call writes to; None for a call that is not supported."""
    if call.name == "index_copy" and isinstance(call["dim"], int):
        return _along(call["dim"], call["index"])
    if call.name == "index_put" and call["accumulate"] is False and isinstance(call["indices"], (list, tuple)):
        return tuple(slice(None) if item is None else item for item in call["indices"])
    return call["index"] if call.name == "setitem" else None


def _along(dim: int, item: Any) -> tuple[Any, ...]:
    """An index into four dimensions that selects ``item`` in ``dim`` and everything in the others."""
    return tuple(item if d == dim % 4 else slice(None) for d in range(4))


def _check_views(buffer: Node, writes: list[BufferWrite], order: dict[Node, int]) -> None:
    """Check that no view of a quantized buffer is created before a write and read after it.

    Such a view is dequantized where it is created, so it does not show later writes.
    """
    for view in possible_views(buffer):
        if view is buffer:
            continue
        last = max((order[user] for user in view.users if not is_query(user)), default=-1)
        for write, _, _ in writes:
            if write not in view.users and write is not view and order[view] < order[write] < last:
                raise NoBuffer("a view of it is created before a write and read after it")


# --- positions ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Narrow:
    """An index that selects ``length`` tokens from ``start`` on."""

    start: Any
    length: Any


@dataclasses.dataclass(frozen=True)
class IndexTensor:
    """The positions of a write, held in a tensor."""

    node: Node

    def consecutive(self) -> bool:
        """Whether the positions are known to be consecutive."""
        return same_sizes(sizes_of(self.node), (1,)) or _is_arange_plus(self.node)


def _is_arange_plus(node: Node) -> bool:
    """Whether a node computes consecutive integers: an arange with step 1, plus at most single numbers."""
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
    """The position at which the first token of ``new`` is written.

    Args:
        index: the index that is written to.
        dims: the dimensions of the buffer that are batch, head, token and channel.
        sizes: the shape of the buffer.
        new: the tokens that are written.

    Returns:
        An int, the node of a symbolic int, or an :class:`IndexTensor`.

    Raises:
        NoBuffer: if anything but whole, consecutive tokens is written.
    """
    index = full_index(index, len(sizes))
    if any(item is None for item in index):
        raise NoBuffer("the buffer is written through an index with a new dimension")
    token = dims[2]
    for dim, item in enumerate(index):
        if dim == token:
            continue
        if not is_from_front(item) or not (item.stop is None or made_equal(value_of(item.stop), sizes[dim])):
            raise NoBuffer("the buffer is written in part, along another dimension than the tokens")
    written = shape(new)
    if written is None or len(written) != 4:
        raise NoBuffer("the value written to the buffer is not a tensor of four dimensions")
    position, count = _token_range(index[token], sizes[token])
    for have, want in zip(written, (*sizes[:token], count, *sizes[token + 1 :]), strict=True):
        if same_sizes((have,), (1,)) and not same_sizes((want,), (1,)):
            raise NoBuffer("the value written to the buffer is broadcast")
    return position


def _token_range(item: Any, size: Any) -> tuple[Any, Any]:
    """The first token that an index selects, and the number of tokens."""
    if isinstance(item, Narrow):
        start, count = item.start, value_of(item.length)
    elif isinstance(item, slice):
        if item.step not in (None, 1):
            raise NoBuffer("the buffer is written with a step")
        start = 0 if item.start is None else item.start
        count = (size if item.stop is None else value_of(item.stop)) - value_of(start)
        if isinstance(item.stop, int) and item.stop < 0:
            raise NoBuffer("the buffer is written at a position counted from its end")
    elif isinstance(item, Node) and (positions := tensor_of(item)) is not None:
        if positions.dim() != 1 or positions.dtype in (torch.bool, torch.uint8):  # both are masks to torch
            raise NoBuffer("the buffer is written at an index tensor that is not a vector of integers")
        return IndexTensor(item), sizes_of(item)[0]
    else:
        raise NoBuffer("the buffer is written at an index that is neither a slice nor a tensor")
    if _is_negative(value_of(start)):
        raise NoBuffer("the buffer is written at a position counted from its end")
    return start, count


def _is_negative(number: Any) -> bool:
    """Whether a number is negative. Dynamo has guarded on the sign of slice bounds, so the hint is enough."""
    if isinstance(number, torch.SymInt):
        return number.node.has_hint() and number.node.hint < 0
    return isinstance(number, int) and number < 0


def same_position(a: Any, b: Any) -> bool:
    """Whether two positions are known to be equal."""
    if a is b:
        return True
    return tensor_of(a) is None and tensor_of(b) is None and same_size(value_of(a), value_of(b))

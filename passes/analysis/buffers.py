"""Recognizes keys or values that are read from a preallocated buffer, which the graph writes in place.

    buffer.index_copy_(2, arange(n) + past, k)         buffer[:, :, past : past + n] = k
    attention(q, buffer, ..., mask)                    attention(q, buffer[:, :, : past + n], ...)

    buffer.index_copy_(2, at, k)
    attention(q, buffer[..., :end, :], ..., mask)      as the whole buffer, with a mask that hides all from `end` on

`rewrite_buffer` uses the result to let the attention read a quantized shadow of the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node

from ..context import BufferUse
from ..graph.aliases import Writes
from ..graph.dimensions import full_index, order_of
from ..graph.operations import Kind
from ..graph.reading import Call, called_name, is_query, kinds, op_name, read, source_of, writes_to, written
from ..graph.values import dtype_of, made_equal, same_size, same_sizes, shape, sizes_of, tensor_of, value_of
from .buffer_writes import IndexTensor, NoBuffer, buffer_writes, is_preallocated, write_position

#: If a graph may write more tokens than this, as a prefill does, its attention reads the dense buffer.
MAX_QUERY_TOKENS = 16
#: Operators, functions and methods that give a smaller number for a larger one, or take one of two.
_WRAPS = frozenset(
    spelled
    for name in ("mod", "floordiv", "and", "remainder", "fmod", "floor_divide", "bitwise_and", "where")
    for spelled in (name, f"{name}_", f"i{name}", f"__{name}__", f"__i{name}__")
)
#: Operations whose result is not a view.
_COMPUTED = ("linear", "addmm", "matmul", "bmm", "einsum", "add", "mul")

#: The dimensions of a tensor that are batch, head, token and channel.
Dims = tuple[int, int, int, int]


def buffer_use(node: Node, tokens_dim: int, changes: Writes) -> BufferUse | None:
    """The buffer that keys or values are read from, and how the graph writes it; None if there is no buffer.

    Args:
        node: the keys or values.
        tokens_dim: the dimension of ``node`` that counts tokens, 2 or 1.
        changes: the in-place writes of the graph.

    Raises:
        NoBuffer: if there is a buffer, but it is written or read in a way that is not supported.
    """
    buffer, dims, end = _read(node, tokens_dim)
    if buffer is None:
        return None
    writes = buffer_writes(buffer, changes)
    if not writes:
        raise NoBuffer(
            "they are an input of the graph that is not written in it, as where a graph break lies between a cache "
            "and its attention"
        )
    if len(writes) != 1:
        raise NoBuffer("the buffer is written more than once")
    (write, index, new) = writes[0]
    check_order(node, buffer, write, (write, *write.all_input_nodes), changes)
    position = write_position(index, dims, sizes_of(buffer), new)
    count = sizes_of(new)[dims[2]]
    if not is_preallocated(buffer):
        check_step(count)
    consecutive = True
    if isinstance(position, IndexTensor):
        position, consecutive = position.node, position.consecutive()
        if _changes_before(position, changes):
            raise NoBuffer("a tensor that the position of the write depends on is changed in place before")
    if not is_preallocated(buffer) and _may_begin_anew(position):
        raise NoBuffer(
            "the position of the write is computed by a remainder or a choice, so that it may begin anew, as in a "
            "ring, and new tokens take the places of older ones"
        )
    whole = end is None or not _is_end(end, position, count)
    return BufferUse(buffer, dims, new, write, position, count, whole, consecutive)


def check_order(node: Node, buffer: Node, write: Node, own: tuple[Node, ...], changes: Writes) -> None:
    """Check that the attention reads the buffer as it is behind the write.

    Args:
        node: the keys or values.
        buffer: the buffer.
        write: the node that writes to it.
        own: the nodes that the write consists of.
        changes: the in-place writes of the graph.

    Raises:
        NoBuffer: if it does not, or something else reads the buffer before.
    """
    order = changes.order
    if order[write] > order[node] and node is not buffer:
        raise NoBuffer("the buffer is written after it is read")
    if any(order[user] < order[write] for user in buffer.users if user not in own and not is_query(user)):
        raise NoBuffer("the buffer is read before it is written")


def is_step(count: int | torch.SymInt) -> bool:
    """Whether so few tokens are written as in a decode step. A number that differs between calls may be a prompt's."""
    return isinstance(count, int) and count <= MAX_QUERY_TOKENS


def check_step(count: int | torch.SymInt) -> None:
    """Check that so few tokens are written as in a decode step.

    Raises:
        NoBuffer: if there are more.
    """
    if not is_step(count):
        many = f"more than {MAX_QUERY_TOKENS}" if isinstance(count, int) else "different numbers of"
        raise NoBuffer(f"{many} tokens are written at once, as in a prefill, whose attention stays exact")


def is_written(node: Node) -> bool:
    """Whether ``node``, or a tensor that it is a view of, is written in place."""
    current: Node | None = node
    while current is not None:
        if writes_to(current) or written(current):
            return True
        view = kinds(current) & (Kind.REORDERS | Kind.RESHAPES) or op_name(current) in ("getitem", "expand")
        current = source_of(current) if view else None
    return False


def _read(node: Node, tokens_dim: int) -> tuple[Node | None, Dims, Any]:
    """Follow ``node`` back through transposes, a slice and the write to the buffer.

    Returns:
        The buffer or None, its dimensions, and the end of the slice or None.
    """
    dims, end = (0, 3 - tokens_dim, tokens_dim, 3), None
    nothing = None, dims, None
    while True:
        if node.op in ("placeholder", "get_attr"):
            return (node if may_be_buffer(node) else None), dims, end
        call = read(node)
        source = None if call is None else call.source()
        if call is None or source is None or tensor_of(source) is None:  # such as an item of a list
            return nothing
        if call.in_place:
            if call.name not in ("index_copy", "index_put"):
                return nothing
        elif call.kinds & Kind.REORDERS:
            before = dims_before(call, dims)
            if before is None:
                return nothing
            dims = before
        elif call.name in ("getitem", "narrow") and _of_input(node):  # not a slice of a tensor computed here
            found = _slice_end(call, source, dims)
            if end is not None and found is not None:
                return nothing
            end = end if found is None else found
        else:
            return nothing
        node = source


def dims_before(call: Call, dims: Dims) -> Dims | None:
    """The dimensions of the input of a call of `Kind.REORDERS` that are ``dims`` of its result; None if not known."""
    order = order_of(call, len(shape(call.node) or ()))
    if order is None or len(order) != 4:
        return None
    batch, heads, tokens, channels = (order[dim] for dim in dims)
    return batch, heads, tokens, channels


def may_be_buffer(node: Node) -> bool:
    """Whether a node is an input of four dimensions that is dense or a quantized buffer, not a growing cache."""
    value = tensor_of(node)
    if node.op != "placeholder" or value is None or value.dim() != 4 or not value.is_floating_point():
        return False
    return not hasattr(value, "_storage") or is_preallocated(node)


def _of_input(node: Node) -> bool:
    """Whether a node may be a view of an input of the graph."""
    while (call := read(node)) is not None:
        parts = call.kinds & (Kind.REORDERS | Kind.RESHAPES | Kind.SELECTS | Kind.PIECES) or call.name == "expand"
        if call.in_place:
            parts = call.name in ("index_copy", "index_put")
        source = call.source()
        if not parts or source is None:
            return call.in_place or call.name not in _COMPUTED
        node = source
    return True


def _slice_end(call: Call, source: Node, dims: Dims) -> Any:
    """The end ``e`` of a slice ``x[:, :, :e]`` along the tokens; None if it selects everything.

    Raises:
        NoBuffer: if another dimension is sliced, or the slice does not begin at 0.
    """
    whole, part = sizes_of(source), sizes_of(call.node)
    if call.name == "narrow":
        dim, start = call["dim"], call["start"]
        index = [slice(None)] * len(whole)
        if not isinstance(dim, int) or not isinstance(start, int) or start != 0:
            raise NoBuffer("the buffer is read in part, and not from its first token on")
        index[dim] = slice(0, call["length"])
    else:
        index = full_index(call["index"], len(whole))
    if any(not isinstance(item, slice) for item in index):
        raise NoBuffer("the buffer is read through an index that is not a slice")
    end = None
    for dim, item in enumerate(index):
        if item == slice(None) or same_sizes(whole[dim : dim + 1], part[dim : dim + 1]):
            continue
        begins = item.start in (None, 0) and item.step in (None, 1)
        if dim != dims[2] and begins and made_equal(part[dim], whole[dim]):
            continue
        if dim != dims[2] or not begins:
            raise NoBuffer("the buffer is read in part, along another dimension than the tokens")
        end = item.stop
    return end


def _changes_before(node: Node, changes: Writes) -> bool:
    """Whether an input that ``node`` is computed from is changed in place before ``node``."""
    return any(
        changes.order[writer] < changes.order[node] for origin in _origins(node) for writer in changes.of(origin)
    )


def _may_begin_anew(position: Any) -> bool:
    """Whether the graph computes a position, a number or a tensor, by what makes it wrap around.

    A shadow holds the tokens up to the last one written: where a ring begins anew, it would lose all others.
    """
    return isinstance(position, Node) and any(called_name(node) in _WRAPS for node in _origins(position, _is_whole))


def _origins(node: Node, counts: Callable[[Node], bool] = lambda node: True) -> Iterator[Node]:
    """``node`` and the nodes that it is computed from, as far as ``counts`` holds for them and those between."""
    seen, pending = set(), [node]
    while pending:
        current = pending.pop()
        if current not in seen and counts(current):
            seen.add(current)
            pending += current.all_input_nodes
            yield current


def _is_whole(node: Node) -> bool:
    """Whether a node is a whole number, or a tensor of such."""
    dtype = dtype_of(node)
    return dtype is None or not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _is_end(end: Any, position: Any, count: int | torch.SymInt) -> bool:
    """Whether ``end`` is known to be ``position + count``."""
    if tensor_of(position) is not None:
        return False
    return same_size(value_of(end), value_of(position) + count)

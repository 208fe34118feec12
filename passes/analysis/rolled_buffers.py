"""Recognizes keys or values in a preallocated buffer that is full: new tokens push the oldest ones out.

    full = buffer.roll(-1, 2)                      full = cat([buffer[:, :, 1:], k], 2)
    full[:, :, [-1]] = k                           buffer.copy_(full[:, :, -W:])
    buffer.copy_(full)                             attention(q, full, ...)
    attention(q, buffer, ...)

The buffer has W tokens, before and after. `rewrite_buffer` lets the attention read a shadow that holds the same tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.fx import Node

from ..context import BufferUse
from ..graph.aliases import Writes
from ..graph.operations import Kind
from ..graph.reading import Call, read
from ..graph.values import Sizes, dtype_of, made_constant, made_equal, same_size, sizes_of, value_of
from .buffer_writes import Narrow, NoBuffer, buffer_writes, is_preallocated
from .buffers import Dims, check_order, check_step, dims_before, may_be_buffer
from .windows import last_tokens


class _Joined(NamedTuple):
    """Tokens of a buffer, followed by new ones.

    Attributes:
        node: all of them.
        old: the node of those of the buffer.
        buffer: the buffer.
        new: the new ones.
        taken: the node that puts them behind the others.
    """

    node: Node
    old: Node
    buffer: Node
    new: Node
    taken: Node


def rolled_use(node: Node, tokens_dim: int, changes: Writes) -> BufferUse | None:
    """How the graph writes the full buffer that keys or values are read from; None if there is none.

    Args:
        node: the keys or values.
        tokens_dim: the dimension of ``node`` that counts tokens, 2 or 1.
        changes: the in-place writes of the graph.

    Raises:
        NoBuffer: if there is one, but it is written or read in a way that is not supported.
    """
    seen, dims = _behind_views(node, tokens_dim)
    call, token = read(seen), dims[2]
    attended = _joined(call, token) if call is not None and call.name == "cat" else None
    buffer = seen if attended is None else attended.buffer
    if not may_be_buffer(buffer) or is_preallocated(buffer):
        return None
    write, written = _only_copy(buffer, changes), None
    if write is not None:
        written = _written(write["source"], token, changes)
    if write is None or written is None or written.buffer is not buffer:
        return None
    if attended is not None and attended.node is not written.node:
        return None
    window = made_constant(sizes_of(buffer)[token])
    if window is None or not made_equal(sizes_of(write["source"])[token], window):
        return None
    check_step(count := sizes_of(written.new)[token])
    if changes.after(written.new, written.taken):
        raise NoBuffer("new tokens are changed in place after they were written")
    if changes.order[written.taken] > changes.order[write.node]:
        raise NoBuffer("new tokens are put behind those of the buffer after these were written back")
    if attended is None:
        check_order(node, buffer, write.node, (write.node, written.old, written.node), changes)
    extra = 0 if attended is None else made_constant(sizes_of(attended.node)[token] - window)
    if extra is None or extra < 0:
        return None
    return BufferUse(buffer, dims, written.new, write.node, None, count, True, True, rolls=True, extra=extra)


def fills_buffer(node: Node, tokens_dim: int) -> bool:
    """Whether the last tokens of keys or values are copied to another tensor, as those of a prompt longer than it."""
    parts = [user for user in node.users if last_tokens(user, tokens_dim) is not None]
    copies = (read(user) for part in (node, *parts) for user in part.users)
    return any(copy is not None and copy.name == "copy" and copy["source"] in (node, *parts) for copy in copies)


def _behind_views(node: Node, tokens_dim: int) -> tuple[Node, Dims]:
    """What ``node`` is, its dimensions reordered, and the dimensions of that."""
    dims = (0, 3 - tokens_dim, tokens_dim, 3)
    while (call := read(node)) is not None and (source := call.source()) is not None:
        if call.in_place:
            before = dims if call.name == "copy" else None  # it returns what it has written to
        else:
            before = dims_before(call, dims) if call.kinds & Kind.REORDERS else None
        if before is None:
            break
        node, dims = source, before
    return node, dims


def _only_copy(buffer: Node, changes: Writes) -> Call | None:
    """The call that replaces all of a buffer, if nothing else writes to it."""
    writes = changes.of(buffer)
    call = read(writes[0]) if len(writes) == 1 else None
    return call if call is not None and call.name == "copy" and call.source() is buffer else None


def _written(source: Any, token: int, changes: Writes) -> _Joined | None:
    """The tokens whose last ones are ``source``; None if it is not made of a buffer's tokens and new ones."""
    part = last_tokens(source, token)
    call = read(source if part is None else part.source)
    if call is None or call.name not in ("cat", "roll"):
        return None
    joined = _joined(call, token) if call.name == "cat" else _rolled(call, token, changes)
    # a cat is what the attention reads, and nothing may change it; the one write to what is rolled is known
    return None if joined is None or (call.name == "cat" and changes.of(joined.node)) else joined


def _joined(call: Call, token: int) -> _Joined | None:
    """``cat([buffer[:, :, a:], new])``."""
    tensors = call["tensors"]
    if not isinstance(tensors, (list, tuple)) or len(tensors) != 2 or call["dim"] not in (token, token - 4):
        return None
    old, new = tensors
    part = last_tokens(old, token)
    buffer = old if part is None else part.source
    if not isinstance(buffer, Node) or not isinstance(new, Node) or dtype_of(buffer) != dtype_of(new):
        return None
    return _Joined(call.node, old, buffer, new, call.node)


def _rolled(call: Call, token: int, changes: Writes) -> _Joined | None:
    """``buffer.roll(-n, token)`` whose last n tokens are then written."""
    buffer, shift, dim = call.source(), _single(call["shifts"]), _single(call["dims"])
    if buffer is None or shift is None or dim not in (token, token - 4):
        return None
    try:
        writes = buffer_writes(call.node, changes)
    except NoBuffer:
        return None
    if len(writes) != 1:
        return None
    (taken, index, new) = writes[0]
    sizes = sizes_of(call.node)
    if not isinstance(new, Node) or not _made_alike(sizes_of(new), (*sizes[:token], -shift, *sizes[token + 1 :])):
        return None
    index = index if isinstance(index, tuple) else (index,)
    others = (item for dim, item in enumerate(index) if dim != token)
    if len(index) <= token or any(item != slice(None) for item in others):
        return None
    if not _is_end(index[token], -shift, sizes[token], changes):
        return None
    return _Joined(call.node, call.node, buffer, new, taken)


def _made_alike(sizes: Sizes, others: Sizes) -> bool:
    """Whether shapes are equal, by a guard where they are symbols: writing one tensor to another would broadcast it."""
    return len(sizes) == len(others) and all(made_equal(a, b) for a, b in zip(sizes, others, strict=True))


def _single(value: Any) -> int | None:
    """An int, or the one int of a tuple."""
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int) else None


def _is_end(item: Any, count: int, size: Any, changes: Writes) -> bool:
    """Whether an index into ``size`` tokens selects the last ``count`` of them, in their order."""
    if isinstance(item, Narrow):
        return same_size(value_of(item.length), count) and made_equal(value_of(item.start), size - count)
    if isinstance(item, slice):
        ends = item.stop is None or same_size(value_of(item.stop), size)
        start = value_of(item.start)
        if not ends or item.step not in (None, 1) or start is None:
            return False
        return start == -count if isinstance(start, int) and start < 0 else made_equal(start, size - count)
    places, call = item, read(item)
    if call is not None:
        places = call["data"] if call.name == "tensor" and not changes.of(call.node) else None
    if not isinstance(places, (list, tuple)) or not places or any(type(place) is not int for place in places):
        return False
    places = list(places)
    if places[0] >= 0:
        return places == list(range(places[0], places[0] + count)) and made_equal(size, places[0] + count)
    return places == list(range(-count, 0))

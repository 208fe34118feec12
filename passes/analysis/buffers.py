"""Recognize a cache that is a preallocated buffer, written in place. Changes nothing.

    buffer.index_copy_(2, arange(n) + past, k)         buffer[:, :, past : past + n] = k
    attention(q, buffer, ..., mask)                    attention(q, buffer[:, :, : past + n], ...)

The buffer belongs to the user and stays as it is. What is found here lets `rewrite_decode` read from a quantized
*shadow* of it: the tokens before the write (`position`), and those that are written.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch.fx import Node

from ..graph.aliases import Writes, possible_views
from ..graph.reading import argument, op_name
from ..graph.values import example, same_sizes, shape

#: More new tokens than this attend to the buffer itself, exactly.
MAX_QUERY_TOKENS = 16
_METADATA = ("size", "numel", "nelement", "dim", "stride")


class NoBuffer(Exception):
    """Why a buffer is not understood."""


@dataclasses.dataclass(frozen=True, eq=False)
class BufferUse:
    """A buffer behind the keys (or values) of an attention.

    Attributes:
        buffer: its placeholder.
        dims: for each of batch, head, token, channel, which dimension of the buffer it is.
        new: the tokens that are written, in the buffer's order of dimensions.
        write: the node that writes them.
        position: where the first of them goes: an int, a SymInt's node, or the node of a tensor whose first element
            it is.
        count: how many there are.
        whole: True where the attention reads the buffer to its end, so that only the mask hides what is not written.
        consecutive: False where the positions are a tensor that is not known to hold numbers that follow one another.
    """

    buffer: Node
    dims: tuple[int, int, int, int]
    new: Node
    write: Node
    position: Any
    count: int
    whole: bool
    consecutive: bool


def buffer_use(node: Node, tokens_dim: int, changes: Writes) -> BufferUse | None:
    """The buffer that ``node``, keys or values with tokens along ``tokens_dim``, reads; None where there is none.

    Raises:
        NoBuffer: where there is one, in a form that is not understood.
    """
    buffer, dims, end = _read(node, tokens_dim)
    if buffer is None:
        return None
    writes = buffer_writes(buffer, changes)
    if not writes:
        raise NoBuffer("they are an input of the graph that is not written in it")
    if len(writes) != 1:
        raise NoBuffer("the buffer is written more than once")
    write, index, new = writes[0]
    order = changes.order
    if order[write] > order[node] and node is not buffer:
        raise NoBuffer("the buffer is written after it is read")
    readers = [user for user in buffer.users if user not in (write, *write.all_input_nodes)]
    if any(order[user] < order[write] for user in readers if user.target not in _METADATA):
        raise NoBuffer("the buffer is read before it is written")
    position = write_position(index, dims, shape(buffer), new)
    count = shape(new)[dims[2]]
    if not isinstance(count, int) or (count > MAX_QUERY_TOKENS and not is_preallocated(buffer)):
        raise NoBuffer("many tokens are written at once: their attention is computed on the buffer itself")
    consecutive = True
    if isinstance(position, IndexTensor):
        position, consecutive = position.node, position.consecutive()
        if _changes_before(position, changes):
            raise NoBuffer("what the position of the write is computed from is changed in place before")
    whole = end is None
    if not whole and not _is_end(end, position, count):
        raise NoBuffer("the attention reads the buffer up to another place than the end of what was written")
    return BufferUse(buffer, dims, new, write, position, count, whole, consecutive)


def is_preallocated(node: Node) -> bool:
    """Whether a placeholder is an ``InnerQBuffer``: a buffer that holds its tokens quantized."""
    return hasattr(node.meta.get("example_value"), "_offset")


def is_written(node: Node) -> bool:
    """Whether the storage behind ``node`` is changed in place, as far as views of it can be followed back."""
    while True:
        if _in_place_users(node):
            return True
        written = node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__")
        if written:
            return True
        if op_name(node) not in ("transpose", "permute", "getitem", "reshape", "expand", "unsqueeze"):
            return False
        node = node.args[0]


def _in_place_users(node: Node) -> list[Node]:
    return [
        user
        for user in node.users
        if user.args
        and user.args[0] is node
        and (
            user.target is operator.setitem
            or (user.op == "call_method" and user.target.endswith("_") and not user.target.endswith("__"))
        )
    ]


def _read(node: Node, tokens_dim: int) -> tuple[Node | None, tuple[int, ...], Any]:
    """The buffer behind a chain of transpositions, slices and its own write; its dimensions, the end of the slice."""
    dims, end = [0, 3 - tokens_dim, tokens_dim, 3], None
    while True:
        name = op_name(node)
        if node.op in ("placeholder", "get_attr"):
            value = node.meta.get("example_value")
            dense = isinstance(value, torch.Tensor) and (not hasattr(value, "_storage") or is_preallocated(node))
            usable = node.op == "placeholder" and dense and value.dim() == 4 and value.is_floating_point()
            return (node if usable else None), tuple(dims), end
        if name == "transpose":
            swap = {argument(node, "dim0") % 4: argument(node, "dim1") % 4}
            swap |= {b: a for a, b in swap.items()}
            dims = [swap.get(d, d) for d in dims]
            node = node.args[0]
        elif name == "permute":
            order = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            dims = [order[d] % 4 for d in dims]
            node = node.args[0]
        elif name == "getitem" and isinstance(node.args[0], Node) and end is None:
            if not _of_input(node):  # a part of what is computed here, as of fused projections
                return None, tuple(dims), end
            end = _slice_end(node, dims)
            node = node.args[0]
        elif _function(node) in ("index_copy_", "index_put_") and node.args:
            node = node.args[0]
        else:
            return None, tuple(dims), end


_VIEWS = ("transpose", "permute", "movedim", "reshape", "unsqueeze", "expand", "getitem")
_PIECES = (
    "split",
    "chunk",
    "unbind",
    "tensor_split",
    "split_with_sizes",
    "index_copy_",
    "index_put_",
    "narrow",
    "select",
)


def _of_input(node: Node) -> bool:
    """Whether a node may be a view of an input of the graph."""
    while op_name(node) in _VIEWS or _function(node) in _PIECES:
        node = node.args[0]
        if not isinstance(node, Node):
            return True
    computed = _function(node) in ("linear", "addmm") or op_name(node) in ("matmul", "bmm", "einsum", "add", "mul")
    return not computed or _function(node).endswith("_")


def _slice_end(node: Node, dims: list[int]) -> Any:
    """``e`` of ``x[:, :, :e]``, where every other dimension is taken whole; None where all are."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(not isinstance(item, slice) for item in index):
        raise NoBuffer("the buffer is read through an index that is not a slice")
    whole, part = shape(node.args[0]), shape(node)
    end = None
    for dim, item in enumerate(index):
        if item == slice(None) or same_sizes(whole[dim : dim + 1], part[dim : dim + 1]):
            continue
        if dim != dims[2] or item.start not in (None, 0) or item.step not in (None, 1):
            raise NoBuffer("the buffer is read in part, along another dimension than the tokens")
        end = item.stop
    return end


def buffer_writes(buffer: Node, changes: Writes) -> list[tuple[Node, Any, Node]]:
    """Writes to a buffer: the node, the index, what is written.

    Raises:
        NoBuffer: where the buffer is changed in any other way, be it through a view.
    """
    found = [write for user in buffer.users for write in _writes_through(user, buffer)]
    known = {write for write, _, _ in found}
    for other in changes.of(buffer):
        if other not in known:
            raise NoBuffer(f"the buffer is changed by {_function(other)}")
    if is_preallocated(buffer):
        _check_views(buffer, found, changes.order)
    return found


def _writes_through(user: Node, buffer: Node) -> list[tuple[Node, Any, Node]]:
    """The writes to a buffer that are its ``user``, or go through it."""
    if not user.args or user.args[0] is not buffer or user.kwargs:
        return []
    name = _function(user)
    if name == "index_copy_" and len(user.args) == 4:
        _, dim, index, new = user.args
        return [(user, tuple(index if d == dim % 4 else slice(None) for d in range(4)), new)]
    if name == "index_put_" and len(user.args) == 3:
        index = tuple(slice(None) if item is None else item for item in user.args[1])
        return [(user, index, user.args[2])]
    if user.target is operator.setitem:
        return [(user, user.args[1], user.args[2])]
    if op_name(user) == "getitem":
        index = user.args[1]
    elif name == "narrow" and len(user.args) == 4 and isinstance(user.args[1], int):
        _, dim, start, length = user.args
        index = tuple(Narrow(start, length) if d == dim % 4 else slice(None) for d in range(4))
    else:
        return []
    copies = [copy for copy in user.users if copy.args[0] is user and not copy.kwargs and len(copy.args) == 2]
    return [(copy, index, copy.args[1]) for copy in copies if copy.op == "call_method" and copy.target == "copy_"]


def _function(node: Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _check_views(buffer: Node, writes: list[tuple[Node, Any, Node]], order: dict[Node, int]) -> None:
    """A view of a quantized buffer is computed where it is made: what is written to the buffer later is not in it."""
    for view in possible_views(buffer):
        if view is buffer:
            continue
        last = max((order[user] for user in view.users if user.target not in _METADATA), default=-1)
        for write, _, _ in writes:
            if write not in view.users and write is not view and order[view] < order[write] < last:
                raise NoBuffer("a view of it is made before it is written, and read after")


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
        return same_sizes(shape(self.node), (1,)) or _is_arange_plus(self.node)


def _is_arange_plus(node: Node) -> bool:
    """Whether a node is a range of numbers that follow one another, or one plus a single number."""
    if node.op == "call_function" and node.target is torch.arange:
        return "step" not in node.kwargs and len(node.args) < 3
    if op_name(node) != "add" or len(node.args) != 2 or node.kwargs:
        return False
    return any(
        isinstance(ranged, Node) and _is_arange_plus(ranged) and shape(number) in (None, (), (1,))
        for ranged, number in (node.args, node.args[::-1])
    )


def write_position(index: Any, dims: tuple[int, ...], sizes: tuple[Any, ...], new: Any) -> Any:
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
        if not starts_full or not (item.stop is None or _same_number(item.stop, sizes[dim])):
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
        start, count = item.start, _value(item.length)
    elif isinstance(item, slice):
        if item.step not in (None, 1):
            raise NoBuffer("the buffer is written with a step")
        start = 0 if item.start is None else item.start
        count = (size if item.stop is None else _value(item.stop)) - _value(start)
        if isinstance(item.stop, int) and item.stop < 0:
            raise NoBuffer("the buffer is written at a place that is counted from its end")
    elif isinstance(item, Node) and isinstance(example(item), torch.Tensor):
        if example(item).dim() != 1 or example(item).dtype == torch.bool:
            raise NoBuffer("the buffer is written at an index that is not a list of positions")
        return IndexTensor(item), shape(item)[0]
    else:
        raise NoBuffer("the buffer is written at an index that is neither a slice nor a tensor")
    if _is_negative(_value(start)):
        raise NoBuffer("the buffer is written at a place that is counted from its end")
    return start, count


def _is_negative(number: Any) -> bool:
    """Whether a number is below 0 in this call; Dynamo guards on the sign of what it slices by."""
    if isinstance(number, torch.SymInt):
        return number.node.has_hint() and number.node.hint < 0
    return isinstance(number, int) and number < 0


def same_position(a: Any, b: Any) -> bool:
    """Whether two writes begin at the same place."""
    tensors = [isinstance(x, Node) and isinstance(example(x), torch.Tensor) for x in (a, b)]
    return a is b or (not any(tensors) and _same_number(a, b))


def _changes_before(node: Node, changes: Writes) -> bool:
    """Whether an input that ``node`` is computed from is changed in place before ``node``."""
    seen, pending = set(), [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        pending += current.all_input_nodes
        if any(changes.order[writer] < changes.order[node] for writer in changes.of(current)):
            return True
    return False


def _value(number: Any) -> Any:
    return example(number) if isinstance(number, Node) else number


def _same_number(a: Any, b: Any) -> bool:
    return same_sizes((_value(a),), (_value(b),))


def _is_end(end: Any, position: Any, count: int) -> bool:
    if isinstance(position, Node) and isinstance(example(position), torch.Tensor):
        return False
    return same_sizes((_value(end),), (_value(position) + count,))

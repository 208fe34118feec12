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
from torch.fx import GraphModule, Node

from .graph_utils import argument, example, op_name, same_sizes, shape

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


def buffer_use(gm: GraphModule, node: Node) -> BufferUse | None:
    """The buffer that ``node``, keys or values ``[B, H, S, D]``, reads; None where there is none.

    Raises:
        NoBuffer: where there is one, in a form that is not understood.
    """
    buffer, dims, end = _read(node)
    if buffer is None:
        return None
    writes = buffer_writes(buffer)
    if not writes:
        raise NoBuffer("they are an input of the graph that is not written in it")
    if len(writes) != 1:
        raise NoBuffer("the buffer is written more than once")
    write, index, new = writes[0]
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    if order[write] > order[node] and node is not buffer:
        raise NoBuffer("the buffer is written after it is read")
    readers = [user for user in buffer.users if user not in (write, *write.all_input_nodes)]
    if any(order[user] < order[write] for user in readers if user.target not in _METADATA):
        raise NoBuffer("the buffer is read before it is written")
    position = write_position(index, dims, shape(buffer))
    token = dims[2]
    if shape(new) is None or len(shape(new)) != 4:
        raise NoBuffer("what is written to the buffer is not a tensor of four dimensions")
    count = shape(new)[token]
    if not isinstance(count, int) or (count > MAX_QUERY_TOKENS and not is_preallocated(buffer)):
        raise NoBuffer("many tokens are written at once: their attention is computed on the buffer itself")
    consecutive = True
    if isinstance(position, IndexTensor):
        position, consecutive = position.node, position.consecutive()
        if _changes_before(position, order):
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


def _read(node: Node) -> tuple[Node | None, tuple[int, ...], Any]:
    """The buffer behind a chain of transpositions, slices and its own write; its dimensions, the end of the slice."""
    dims, end = [0, 1, 2, 3], None
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
            end = _slice_end(node, dims)
            node = node.args[0]
        elif node.op == "call_method" and node.target in ("index_copy_", "index_put_"):
            node = node.args[0]
        else:
            return None, tuple(dims), end


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


def buffer_writes(buffer: Node) -> list[tuple[Node, Any, Node]]:
    """Writes to a buffer: the node, the index (or ``(dim, index)``), what is written."""
    found = []
    for user in buffer.users:
        if user.op == "call_method" and user.target.endswith("_") and not user.target.endswith("__"):
            if user.target == "index_copy_" and user.args[0] is buffer:
                _, dim, index, new = user.args
                full: list[Any] = [slice(None)] * 4
                full[dim % 4] = index
                found.append((user, tuple(full), new))
            elif user.target == "index_put_" and user.args[0] is buffer and len(user.args) == 3:
                index = [slice(None) if item is None else item for item in user.args[1]]
                found.append((user, tuple(index), user.args[2]))
            elif user.args[0] is buffer:
                raise NoBuffer(f"the buffer is changed by {user.target}")
        elif user.op == "call_function" and user.target is operator.setitem and user.args[0] is buffer:
            found.append((user, user.args[1], user.args[2]))
        elif op_name(user) == "getitem":
            found += [
                (copy, user.args[1], copy.args[1])
                for copy in user.users
                if copy.op == "call_method" and copy.target == "copy_" and copy.args[0] is user
            ]
        elif user.op == "call_function" and getattr(user.target, "__name__", "").endswith("_"):
            raise NoBuffer(f"the buffer is changed by {user.target.__name__}")
    return found


@dataclasses.dataclass(frozen=True)
class IndexTensor:
    """Positions of a write that a tensor holds."""

    node: Node

    def consecutive(self) -> bool:
        """Whether the positions are known to follow one another."""
        return same_sizes(shape(self.node), (1,)) or _is_arange_plus(self.node)


def _is_arange_plus(node: Node) -> bool:
    if op_name(node) != "add":
        return False
    return any(isinstance(a, Node) and a.op == "call_function" and a.target is torch.arange for a in node.args[:2])


def write_position(index: Any, dims: tuple[int, ...], sizes: tuple[Any, ...]) -> Any:
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [item for item in index if not isinstance(item, Node)]:
        raise NoBuffer("the buffer is written through an index with an ellipsis")
    token = dims[2]
    if len(index) <= token:
        raise NoBuffer("the buffer is written along another dimension than the tokens")
    for dim, item in enumerate(index):
        if dim == token:
            continue
        starts_full = isinstance(item, slice) and item.start in (None, 0) and item.step in (None, 1)
        if not starts_full or not (item.stop is None or _same_number(item.stop, sizes[dim])):
            raise NoBuffer("the buffer is written in part, along another dimension than the tokens")
    item = index[token]
    if isinstance(item, slice):
        if item.step not in (None, 1):
            raise NoBuffer("the buffer is written with a step")
        return item.start or 0
    if isinstance(item, Node) and isinstance(example(item), torch.Tensor):
        if example(item).dim() == 1:
            return IndexTensor(item)
        raise NoBuffer("the buffer is written at an index that is not one-dimensional")
    raise NoBuffer("the buffer is written at an index that is neither a slice nor a tensor")


def _changes_before(node: Node, order: dict[Node, int]) -> bool:
    """Whether an input that ``node`` is computed from is changed in place before ``node``."""
    seen, pending = set(), [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        pending += current.all_input_nodes
        if any(order[user] < order[node] for user in _in_place_users(current)):
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

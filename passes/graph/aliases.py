"""What is changed in place, by whichever node and through whichever view. For all passes that must not miss a write.

    head = buffer[:, 0]         a view of the buffer
    head.zero_()                a write to the buffer, although the buffer is not among its arguments

Dense tensors are told apart by the storage of the fake tensors that Dynamo computed. A quantized buffer has none, so
that its views are found by following everything that is made of it and may be a view.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Graph, Node

from ...kernels.internals.tensors import memory_of
from .operations import Kind
from .reading import is_query, kinds, operand, written
from .values import tensor_of


def storage_of(node: Node) -> int | None:
    """A number for the storage of a node's dense tensor, None where there is none."""
    value = tensor_of(node)
    if value is None or hasattr(value, "_storage"):
        return None
    try:
        return memory_of(value)
    except (NotImplementedError, RuntimeError):  # a tensor of another kind, such as one of torch.func
        return None


def possible_views(node: Node) -> list[Node]:
    """``node`` and everything in the graph that is, or may be, a view of it."""
    found, pending = {node: None}, [node]
    while pending:
        for user in pending.pop().users:
            if user not in found and user.op in ("call_function", "call_method") and _may_be_view(user, found):
                found[user] = None
                pending.append(user)
    return list(found)


def _may_be_view(user: Node, of: Iterable[Node]) -> bool:
    """Whether ``user`` may be a view of its first argument, one of ``of``: all but what is known to be none."""
    first = operand(user)
    return first is not None and first in of and not is_query(user) and not kinds(user) & Kind.NEW


class Writes:
    """All writes in place of a graph as it is now, by what they change.

    Attributes:
        order: the place of each node in the graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self._by_target: dict[Node, list[Node]] = {}
        self._by_storage: dict[int, list[Node]] = {}
        for node in graph.nodes:
            for target in written(node):
                self._by_target.setdefault(target, []).append(node)
                if (storage := storage_of(target)) is not None:
                    self._by_storage.setdefault(storage, []).append(node)

    def of(self, node: Node) -> list[Node]:
        """The nodes that change the memory behind ``node``, in order."""
        if (storage := storage_of(node)) is not None:
            return self._by_storage.get(storage, [])
        found = {writer: None for view in possible_views(node) for writer in self._by_target.get(view, [])}
        return sorted(found, key=lambda writer: self.order[writer])

    def between(self, node: Node, first: Node, last: Node) -> bool:
        """Whether the memory behind ``node`` is changed behind ``first`` and before ``last``."""
        return any(self.order[first] < self.order[writer] < self.order[last] for writer in self.of(node))

    def after(self, node: Node, first: Node) -> bool:
        """Whether the memory behind ``node`` is changed behind ``first``."""
        return any(self.order[first] < self.order[writer] for writer in self.of(node))

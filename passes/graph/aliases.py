"""Finds all in-place writes to a tensor, by any node and through any view.

    head = buffer[:, 0]         a view of the buffer
    head.zero_()                a write to the buffer, which is not an argument of the node

Dense tensors alias each other if their fake tensors share a storage. Quantized buffers have no dense storage, so their
views are found by following every operation that may return a view.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Graph, Node

from ...kernels.internals.tensors import memory_of
from .operations import Kind
from .reading import is_query, kinds, operand, written
from .values import tensor_of


def storage_of(node: Node) -> int | None:
    """A number that identifies the storage of a node's dense tensor; None if it has none."""
    value = tensor_of(node)
    if value is None or hasattr(value, "_storage"):
        return None
    try:
        return memory_of(value)
    except (NotImplementedError, RuntimeError):  # a tensor without storage, such as one of torch.func
        return None


def possible_views(node: Node) -> list[Node]:
    """``node`` and all nodes that are or may be views of it."""
    found, pending = {node: None}, [node]
    while pending:
        for user in pending.pop().users:
            if user not in found and user.op in ("call_function", "call_method") and _may_be_view(user, found):
                found[user] = None
                pending.append(user)
    return list(found)


def _may_be_view(user: Node, of: Iterable[Node]) -> bool:
    """Whether ``user`` may be a view of its first argument, which has to be one of ``of``.

    True unless the operation is known to return new memory or no tensor.
    """
    first = operand(user)
    return first is not None and first in of and not is_query(user) and not kinds(user) & Kind.NEW


class Writes:
    """All in-place writes of a graph, as it is when this is created.

    Attributes:
        order: the position of each node in the graph.
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
        """The nodes that write to the memory of ``node``, in graph order."""
        if (storage := storage_of(node)) is not None:
            return self._by_storage.get(storage, [])
        found = {writer: None for view in possible_views(node) for writer in self._by_target.get(view, [])}
        return sorted(found, key=lambda writer: self.order[writer])

    def between(self, node: Node, first: Node, last: Node) -> bool:
        """Whether a node after ``first`` and before ``last`` writes to the memory of ``node``."""
        return any(self.order[first] < self.order[writer] < self.order[last] for writer in self.of(node))

    def after(self, node: Node, first: Node) -> bool:
        """Whether a node after ``first`` writes to the memory of ``node``."""
        return any(self.order[first] < self.order[writer] for writer in self.of(node))

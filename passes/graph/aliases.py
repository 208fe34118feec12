"""What is changed in place, by whichever node and through whichever view. For all passes that must not miss a write.

    head = buffer[:, 0]         a view of the buffer
    head.zero_()                a write to the buffer, although the buffer is not among its arguments

Dense tensors are told apart by the storage of the fake tensors that Dynamo computed. A quantized buffer has none, so
that its views are found by following everything that is made of it and may be a view.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Graph, Node

from ...kernels.internals.graphs import HigherOrderOperator, OpOverload, OpOverloadPacket
from ...kernels.internals.tensors import memory_of, schema_of
from .reading import called_name, is_query, writes_to

#: Methods and functions that compute something new of a tensor, never a view; what is not here may be a view.
_COMPUTES_NAMES = (
    "add sub mul div neg pow sqrt rsqrt matmul bmm baddbmm einsum softmax tanh sum mean amax max min exp log cos "
    "sin clone new_zeros new_empty new_ones zeros_like empty_like ones_like full_like cat concat concatenate stack "
    "where masked_fill index_select gather repeat repeat_interleave scaled_dot_product_attention linear roll eq ne "
    "lt le gt ge any all abs __matmul__ truediv"
)
_COMPUTES = frozenset(_COMPUTES_NAMES.split())


def written(node: Node) -> list[Node]:
    """The tensors that a node changes in place."""
    if node.op not in ("call_function", "call_method"):
        return []
    found = [argument for argument in node.all_input_nodes if node in writes_to(argument)]
    if node.op == "call_function":
        found += _by_schema(node)
    return list(dict.fromkeys(found))


def _by_schema(node: Node) -> list[Node]:
    target = node.target
    if isinstance(target, HigherOrderOperator):  # a user's Triton kernel may write to all that it gets
        return [argument for argument in node.all_input_nodes if "mutation" in target.name()]
    if isinstance(target, OpOverloadPacket):
        target = getattr(target, target.overloads()[0])
    if not isinstance(target, OpOverload) or not schema_of(target).is_mutable:
        return []
    found: list[Node] = []
    for index, argument in enumerate(schema_of(target).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            found += [item for item in (value if isinstance(value, (list, tuple)) else [value]) if _is_node(item)]
    return found


def _is_node(value: Any) -> bool:
    return isinstance(value, Node)


def storage_of(node: Node) -> int | None:
    """A number for the storage of a node's dense tensor, None where there is none."""
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor) or hasattr(value, "_storage"):
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
    if not user.args or user.args[0] not in of or is_query(user):
        return False
    return called_name(user) not in _COMPUTES


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

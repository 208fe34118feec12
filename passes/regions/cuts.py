"""The places where a graph may be cut into regions.

A cut stands before a node. Values that are computed before it and used after it cross the cut: they become results of
one region and inputs of another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch.fx import Graph, Node

from ...kernels.internals.graphs import free_unbacked_symbols, is_constant_size
from ...kernels.internals.tensors import is_traceable_wrapper_subclass
from ..graph.aliases import Writes
from ..graph.operations import Kind
from ..graph.reading import grad_mode_of, possible_kinds, read
from ..graph.values import example_or_none, has_example, tensor_of

#: Parts of names of functions that change a state of torch, which regions compiled by themselves would not see.
_CHANGES_STATE = ("inference_mode", "_functorch", "_saved_tensors_hooks", "_set_fwd_grad_enabled", "_sdpa_kernel")

#: Matrix products that are not of `Kind.PRODUCT`. `join_linears` writes the last one, whose kernel reads finished rows.
_PRODUCTS = ("linear", "addmm", "innerq::row_linear")


def body_of(graph: Graph) -> list[Node]:
    """The nodes of a graph that compute something, in order, without numbers that nothing uses.

    Such numbers are left over where a pass has replaced the computation of a length. The lengths of caches are symbols
    of their own, so that layers that are the same otherwise would differ by them. Changes of the grad mode are left out
    if they change nothing, as in a function under ``torch.no_grad()`` whose inputs require no gradient.
    """
    unused: set[Node] = set(_idle_modes(graph))
    found = []
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if _is_number(node) and unused.issuperset(node.users):
            unused.add(node)
        elif node not in unused:
            found.append(node)
    return found[::-1]


def _is_number(node: Node) -> bool:
    return isinstance(example_or_none(node), (int, float, torch.SymInt, torch.SymFloat))


def allowed_cuts(body: Sequence[Node], writes: Writes) -> list[bool]:
    """For each node of ``body``, whether the graph may be cut before it. ``writes`` are those of the graph.

    A cut is not allowed

    - if a value crosses it that is not a tensor or a size, such as a tuple, or the object of an autocast context;
    - between the first use of memory that the graph allocates and the last write to it, so that each region writes to
      memory of its inputs only if that is memory of the graph's own inputs;
    - where the grad mode is not that of the caller, which a region that leaves it so would change for the caller, too;
    - in a graph that changes another state of torch for the nodes that follow.
    """
    if any(_changes_state(node) for node in body):
        return [False] * len(body)
    position = {node: index for index, node in enumerate(body)}
    steps = [0] * (len(body) + 1)
    for index, node in enumerate(body):
        last = index
        if not may_cross(node):
            ends = (len(body) - 1 if user.op == "output" else position.get(user, index) for user in node.users)
            last = max(ends, default=index)
        if tensor_of(node) is not None:
            last = max([last, *(position[writer] for writer in writes.of(node))])
        if last > index:  # no cut before any of the nodes index + 1 ... last
            steps[index + 1] += 1
            steps[last + 1] -= 1
    crossing = itertools.accumulate(steps[:-1])
    return [count == 0 and mode for count, mode in zip(crossing, _in_mode_of_caller(body), strict=True)]


def may_cross(node: Node) -> bool:
    """Whether the value of a node can be passed from one region to another.

    Sizes that are constants need not be passed: ``extract`` writes them into the region.
    """
    value = example_or_none(node)
    if isinstance(value, torch.Tensor):
        return not is_traceable_wrapper_subclass(value) and not free_unbacked_symbols(value)
    return is_size(value) or (has_example(node) and is_constant(value))


def is_size(value: Any) -> TypeGuard[torch.SymInt]:
    """Whether a value is a symbolic size, which is passed from one region to another as a number."""
    return isinstance(value, torch.SymInt) and not is_constant_size(value) and not free_unbacked_symbols(value)


def same_sizes(graph: Graph) -> dict[Node, Node]:
    """For each input that is a symbolic size, the first input that is the same size.

    Attributes of layers with the same value are inputs of their own with one symbol. A layer may use that of another.
    """
    first: dict[Any, Node] = {}
    inputs = [(node, example_or_none(node)) for node in graph.find_nodes(op="placeholder")]
    return {node: first.setdefault(value.node.expr, node) for node, value in inputs if is_size(value)}


def is_constant(value: Any) -> bool:
    """Whether a value is a number that is the same in all calls of the graph."""
    return isinstance(value, (bool, int, float)) or (isinstance(value, torch.SymInt) and is_constant_size(value))


def is_product(node: Node) -> bool:
    """Whether a node is a matrix product, which Inductor does not fuse with what precedes it."""
    call = read(node)
    return bool(possible_kinds(node) & Kind.PRODUCT) or (call is not None and call.name in _PRODUCTS)


def _idle_modes(graph: Graph) -> list[Node]:
    """The changes of the grad mode in a graph without gradients, unless the last leaves it changed for the caller."""
    modes = [node for node in graph.nodes if grad_mode_of(node) is not None]
    if not modes or grad_mode_of(modes[-1]) != torch.is_grad_enabled():
        return []
    computed = (tensor_of(node) for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    return [] if any(value is not None and value.requires_grad for value in computed) else modes


def _in_mode_of_caller(body: Sequence[Node]) -> Iterator[bool]:
    """For each node, whether the grad mode before it is the one in which the graph is called."""
    mode = caller = torch.is_grad_enabled()
    for node in body:
        yield mode == caller
        after = grad_mode_of(node)
        mode = mode if after is None else after


def _changes_state(node: Node) -> bool:
    if node.op != "call_function":
        return False
    name = f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"
    return any(part in name for part in _CHANGES_STATE)

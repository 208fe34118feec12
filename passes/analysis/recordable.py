"""What has to be known of a graph's inputs so that all that it does on the GPU can be recorded and played again.

A recording holds the kernels with the addresses and sizes of its own call. Everything that a later call brings along is
then either where it was (caches, weights), or small and copied into the recording (tokens, positions), or a size, which
is compared. What the host computes happens once, so that a graph with a tensor on the host is left to Inductor's own
CUDA graphs, which leave such pieces out; so is what cannot be looked into from here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from ...kernels.internals.dynamo_graphs import static
from ...kernels.internals.graphs import HigherOrderOperator, free_symbols, free_unbacked_symbols
from ...kernels.internals.tensors import is_traceable_wrapper_subclass, tree_leaves
from ..context import CacheInput, Reason
from ..graph.aliases import Writes
from ..graph.operations import Kind
from ..graph.reading import may_restride, op_name, possible_kinds
from ..graph.values import example, example_or_none

#: The kind of device that records.
DEVICE = "cuda"


@dataclasses.dataclass(frozen=True)
class RecordedInputs:
    """The inputs of a graph, by their places among its placeholders; of its caches knows whoever calls it.

    Attributes:
        device: the one that everything is on.
        fixed: tensors that keep their address from call to call, as a rule.
        copied: tensors that do not.
        written: tensors that are changed in place, as the program knows it.
        sizes: for each symbol of a size a place where it is read: an input, and its dimension or None for a number.
            How much room each cache has is none of them.
        caches: how many caches there are.
        stays: of the inner tensors of all caches, by their number, those that stay where they are when a cache grows.
    """

    device: torch.device
    fixed: list[int]
    copied: list[int]
    written: list[int]
    sizes: list[tuple[int, int | None]]
    caches: int
    stays: list[int]

    def have_grown(self, before: list[int], now: list[int]) -> bool:
        """Whether the caches that are at ``now`` (``Caches.memory``) were at ``before``, and have more room since."""
        rooms = zip(before[-self.caches :], now[-self.caches :], strict=True)
        return all(old < new for old, new in rooms) and all(before[place] == now[place] for place in self.stays)


def recorded_inputs(gm: GraphModule, caches: list[CacheInput]) -> RecordedInputs | Reason:
    """What to know of the inputs of ``gm``, or why it is not for us to record.

    Args:
        gm: a graph that the passes are done with; what keeps its address is marked as Inductor knows it
            (``_dynamo_static_input_type``).
        caches: all quantized caches among its inputs. Their version counters count nothing.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    if torch.are_deterministic_algorithms_enabled():
        return Reason("deterministic algorithms were asked for")
    devices: set[torch.device] = set()
    for node in gm.graph.nodes:
        if (reason := _not_for_us(gm, node, devices)) is not None:
            return Reason(f"{node}: {reason}")
    if len(devices) != 1:
        return Reason(f"it is on {len(devices)} devices")
    inner = dict.fromkeys(node for cache in caches for node in cache.tensors)
    growing = {node for cache in caches for node in (cache.tensors.codes, cache.tensors.scales)}
    room = set().union(*(free_symbols(example(cache.tensors.codes).shape[2]) for cache in caches))
    fixed, copied, written, sizes = [], [], [], {}
    changes = Writes(gm.graph)
    for place, node in enumerate(placeholders):
        value = example_or_none(node)
        if isinstance(value, torch.Tensor) and node not in inner:
            (fixed if static(node) else copied).append(place)
            if changes.of(node):
                written.append(place)
        for dim, size in enumerate(value.shape) if isinstance(value, torch.Tensor) else [(None, value)]:
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.expr not in room:
                sizes.setdefault(size.node.expr, (place, dim))
    known = room.union(sizes)
    for place, node in enumerate(placeholders):
        if unread := _symbols(example(node), place not in copied) - known:
            return Reason(f"{node}: no input has the size {min(map(str, unread))} by itself")
    stays = [number for number, node in enumerate(inner) if node not in growing]
    return RecordedInputs(devices.pop(), fixed, copied, written, list(sizes.values()), len(caches), stays)


def is_prompt(gm: GraphModule) -> bool:
    """Whether a prompt is written to a quantized buffer: such a graph runs once and is not recorded."""
    return any(op_name(node) == "innerq::write_" for node in gm.graph.nodes)


def _not_for_us(gm: GraphModule, node: Node, devices: set[torch.device]) -> str | None:
    """Why a graph with this node is not recorded from outside, or None; notes the devices of its value."""
    value = example_or_none(node)
    if node.op == "get_attr":
        value = gm
        for name in node.target.split("."):
            value = getattr(value, name)
        if not isinstance(value, torch.Tensor):
            return "it has a graph of its own"
    elif node.op == "call_module" or isinstance(node.target, HigherOrderOperator):
        return "it has a graph of its own"
    elif node.op == "call_function" and torch.Tag.cudagraph_unsafe in getattr(node.target, "tags", ()):
        return "its author says that it cannot be recorded"
    elif possible_kinds(node) & Kind.FROM_HOST:
        return "it brings numbers of the host to the device"
    elif may_restride(node):
        return "it changes the shape of a tensor in place"
    elif node.op == "placeholder" and not isinstance(value, (torch.Tensor, torch.SymInt)):
        return f"it is a {type(value).__name__}"
    elif value is None and node.users and not node.all_input_nodes:
        return "nothing is known of its value"
    if any(free_unbacked_symbols(number) for number in _leaves(value, (torch.SymInt, torch.SymFloat, torch.SymBool))):
        return "it is a number that waits for the device"
    for tensor in _leaves(value, torch.Tensor):
        if is_traceable_wrapper_subclass(tensor):
            return f"it is a {type(tensor).__name__}"
        if free_unbacked_symbols(tensor):
            return "its size depends on what it is computed from"
        devices.add(tensor.device)
        if tensor.device.type != DEVICE:
            return f"it is on {tensor.device}"
    return None


def _leaves(value: Any, kind: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, kind)]


def _symbols(value: Any, stays: bool) -> set[sympy.Symbol]:
    """What kernels see of the sizes of an input. What is copied has the strides of its first call in all of them."""
    if not isinstance(value, torch.Tensor):
        return set(free_symbols(value))
    return {*free_symbols(value.shape), *(free_symbols(value.stride()) if stays else ())}

"""Decides whether a whole graph can be recorded as one CUDA graph, and how a recording has to treat each input.

A CUDA graph holds the addresses and sizes of the call that it was recorded in. So each input of a later call has to be
at the same address (caches, weights), or is small and copied into the recording (tokens, positions), or is a size,
which is compared. Work on the host is not recorded. Inductor can record parts of a graph with tensors on the host, or
with parts that cannot be examined here, if it is asked to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from ...kernels.internals.dynamo_graphs import static
from ...kernels.internals.graphs import HigherOrderOperator, free_symbols, free_unbacked_symbols, size_hint
from ...kernels.internals.tensors import is_traceable_wrapper_subclass, tree_leaves
from ..context import CacheInput, Reason
from ..graph.aliases import Writes
from ..graph.operations import Kind
from ..graph.reading import may_restride, op_name, possible_kinds, read
from ..graph.values import example, example_or_none

#: The type of device that supports recording.
DEVICE = "cuda"

#: Larger inputs, in bytes, are not copied into a recording that was not asked for.
MAX_COPY = 1 << 22

#: A recording that was not asked for has at most so many rows of queries, over all sequences. The host launches the
#: kernels of larger steps before the GPU is done with them, and their recordings hold much memory.
MAX_ROWS = 512

_COLLECTIVES = ("_c10d_functional", "c10d")


@dataclasses.dataclass(frozen=True)
class RecordedInputs:
    """How a recording treats the inputs of a graph, by their index among the placeholders.

    Inner tensors of caches are not listed; the caller passes their addresses separately.

    Attributes:
        device: the device of all tensors.
        fixed: tensors that usually have the same address in each call.
        copied: tensors that do not.
        written: tensors that the graph writes in place.
        sizes: for each symbol of a size, an input that has it: its index, and the dimension, or None for a number.
            Symbols of the capacity of caches are left out.
        caches: the number of caches.
        static_inner: indices of the inner tensors, counted over all caches, that keep their address when a cache grows.
        cache: an inner tensor of a cache that is replaced when the cache grows and dies with it; None without caches.
    """

    device: torch.device
    fixed: list[int]
    copied: list[int]
    written: list[int]
    sizes: list[tuple[int, int | None]]
    caches: int
    static_inner: list[int]
    cache: int | None = None

    def have_grown(self, before: list[int], now: list[int]) -> bool:
        """Whether all caches have grown in place between two calls.

        Args:
            before, now: addresses and capacities of the caches in both calls (``Caches.memory``).
        """
        rooms = zip(before[-self.caches :], now[-self.caches :], strict=True)
        return all(old < new for old, new in rooms) and all(before[place] == now[place] for place in self.static_inner)


def is_on_device(gm: GraphModule) -> bool:
    """Whether an input of a graph is on a device that supports recording."""
    values = map(example_or_none, gm.graph.find_nodes(op="placeholder"))
    return any(isinstance(value, torch.Tensor) and value.device.type == DEVICE for value in values)


def recorded_inputs(
    gm: GraphModule, caches: list[CacheInput], hoisted: Sequence[Node] = (), *, asked: bool = False
) -> RecordedInputs | Reason:
    """How a recording treats the inputs of a graph, or the reason why the graph cannot be recorded as a whole.

    Inputs that keep their address are those that Dynamo knows to (parameters), those that the graph writes, and those
    of the following arguments.

    Args:
        gm: the rewritten graph.
        caches: all quantized caches among its inputs.
        hoisted: its inputs that the prelude writes.
        asked: whether the user has asked for CUDA graphs, so that they may need what a program has to allow: the
            release of collectives before the process ends, and copies of large inputs.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    if torch.are_deterministic_algorithms_enabled():
        return Reason("deterministic algorithms are enabled")
    devices: set[torch.device] = set()
    for node in gm.graph.nodes:
        if (reason := _obstacle(gm, node, devices)) is not None:
            return Reason(f"{node}: {reason}")
        if not asked and (reason := _has_to_be_asked_for(node)) is not None:
            return Reason(f"{node}: {reason}")
    if len(devices) != 1:
        return Reason(f"its tensors are on {len(devices)} devices")
    inner = dict.fromkeys(node for cache in caches for node in cache.tensors)
    growing = {node for cache in caches for node in (cache.tensors.codes, cache.tensors.scales)}
    room = set().union(*(free_symbols(example(cache.tensors.codes).shape[2]) for cache in caches))
    fixed, copied, written, sizes = [], [], [], {}
    changes = Writes(gm.graph)
    for place, node in enumerate(placeholders):
        value = example_or_none(node)
        if isinstance(value, torch.Tensor) and node not in inner:
            keeps = bool(static(node) or changes.of(node)) or node in hoisted or not (asked or _is_small(value))
            (fixed if keeps else copied).append(place)
            if changes.of(node):
                written.append(place)
        for dim, size in enumerate(value.shape) if isinstance(value, torch.Tensor) else [(None, value)]:
            if dim is None and not node.users:
                continue  # a number that nothing in the graph reads, such as the length that the prelude takes
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.expr not in room:
                sizes.setdefault(size.node.expr, (place, dim))
    known = room.union(sizes)
    for place, node in enumerate(placeholders):
        if not isinstance(example(node), torch.Tensor) and not node.users:
            continue
        if unread := _symbols(example(node), place not in copied) - known:
            return Reason(f"{node}: no input has the size {min(map(str, unread))} as a dimension or number of its own")
    static_inner = [number for number, node in enumerate(inner) if node not in growing]
    cache = next((place for place, node in enumerate(placeholders) if node in growing), None)
    return RecordedInputs(devices.pop(), fixed, copied, written, list(sizes.values()), len(caches), static_inner, cache)


def is_prompt(gm: GraphModule) -> bool:
    """Whether a graph writes a prompt to a quantized buffer. Such a graph runs once and is not recorded."""
    return any(op_name(node) == "innerq::write_" for node in gm.graph.nodes)


def _obstacle(gm: GraphModule, node: Node, devices: set[torch.device]) -> str | None:
    """Why a graph with this node cannot be recorded as a whole, or None. Collects the devices of its tensors."""
    value = example_or_none(node)
    if node.op == "get_attr":
        value = gm
        for name in node.target.split("."):
            value = getattr(value, name)
        if not isinstance(value, torch.Tensor):
            return "it is a subgraph"
    elif node.op == "call_module" or isinstance(node.target, HigherOrderOperator):
        return "it calls a subgraph"
    elif node.op == "call_function" and torch.Tag.cudagraph_unsafe in getattr(node.target, "tags", ()):
        return "its operator is tagged cudagraph_unsafe"
    elif possible_kinds(node) & Kind.FROM_HOST:
        return "it copies data from the host to the device"
    elif may_restride(node):
        return "it changes the shape or strides of a tensor in place"
    elif node.op == "placeholder" and not isinstance(value, (torch.Tensor, torch.SymInt)):
        return f"it is a {type(value).__name__}"
    elif value is None and node.users and not node.all_input_nodes:
        return "its value is not known"
    if any(free_unbacked_symbols(number) for number in _leaves(value, (torch.SymInt, torch.SymFloat, torch.SymBool))):
        return "it is a number that is read from the device"
    for tensor in _leaves(value, torch.Tensor):
        if is_traceable_wrapper_subclass(tensor):
            return f"it is a {type(tensor).__name__}"
        if free_unbacked_symbols(tensor):
            return "its size depends on data"
        devices.add(tensor.device)
        if tensor.device.type != DEVICE:
            return f"it is on {tensor.device}"
    return None


def _has_to_be_asked_for(node: Node) -> str | None:
    """Why a graph with this node is not recorded unless the user asks for it, or None."""
    if node.op == "call_function" and (
        str(node.target).startswith(_COLLECTIVES)
        or getattr(node.target, "__module__", "").startswith("torch.distributed")
    ):
        return "a process group waits for the CUDA graphs of its collectives before it ends"
    call = read(node)
    if call is not None and call.name in ("innerq::decode_attention", "innerq::decode_attention_lse"):
        batch, _, tokens, _ = example(call["query"]).shape
        if (rows := size_hint(batch * tokens)) > MAX_ROWS:
            return f"a step of {rows} tokens keeps a GPU busy without a CUDA graph"
    return None


def _is_small(tensor: torch.Tensor) -> bool:
    return size_hint(tensor.numel()) * tensor.dtype.itemsize <= MAX_COPY


def _leaves(value: Any, kind: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, kind)]


def _symbols(value: Any, strides: bool) -> set[sympy.Symbol]:
    """The symbols of sizes of an input that kernels depend on.

    Args:
        strides: whether its strides count. They do not for copied inputs, whose copy always has the same strides.
    """
    if not isinstance(value, torch.Tensor):
        return set(free_symbols(value))
    return {*free_symbols(value.shape), *(free_symbols(value.stride()) if strides else ())}

"""Linear layers of a single token on a GPU, those of one input side by side, as an operator with a kernel for one row.

    q = linear(x, w_q)                     y = row_linear(x, [w_q, w_k, w_v], [None, None, None])
    k = linear(x, w_k)            ->       q, k, v = split(y, [N_q, N_k, N_v], -1)
    v = linear(x, w_v)

At batch 1 a decode step is mostly weights on their way from memory, each read once. A library's kernel for matrices has
nothing to gain from its tiles there, and short weights end before it is at speed. The pass runs on graphs that read a
quantized cache; a prompt and larger batches keep the library's products.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from ..kernels.internals.graphs import linear
from ..kernels.internals.tensors import FakeTensor
from ..kernels.triton import support
from .context.context import PassContext
from .graph.aliases import Writes
from .graph.values import example, shape

#: Layers in one operator at most.
MOST = 4


def join_linears(gm: GraphModule, context: PassContext) -> GraphModule:
    if not (context.caches or context.shadows):
        return gm
    found = [node for node in gm.graph.nodes if _is_row_linear(node)]
    if not found:
        return gm
    writes = Writes(gm.graph)
    groups: list[list[Node]] = []
    open_groups: dict[Node, list[Node]] = {}
    for node in found:
        x = _arguments(node)[0]
        group = open_groups.get(x)
        if group is None or len(group) == MOST or not _may_join(group, node, writes):
            group = open_groups[x] = []
            groups.append(group)
        group.append(node)
    for group in groups:
        _replace(gm, group)
    return gm


def _arguments(node: Node) -> tuple[Any, Any, Any]:
    names = ("input", "weight", "bias")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return tuple(given.get(name) for name in names)


def _is_row_linear(node: Node) -> bool:
    """A linear layer with one row of inputs, of a dtype and on a device that the kernel takes."""
    if node.op != "call_function" or node.target not in (F.linear, linear):
        return False
    x, weight, bias = _arguments(node)
    sizes = shape(x)
    if sizes is None or shape(weight) is None or len(shape(weight)) != 2 or not sizes:
        return False
    if not all(isinstance(size, int) for size in (*sizes, *shape(weight))) or any(size != 1 for size in sizes[:-1]):
        return False
    tensors = [example(argument) for argument in (x, weight, bias) if argument is not None]
    if any(_is_subclass(tensor) or tensor.dtype != tensors[0].dtype for tensor in tensors):
        return False
    row = tensors[0]
    if example(node).dtype != row.dtype:  # as under autocast, which casts what it is given
        return False
    return support.on_gpu(row) and row.dtype in support.DTYPES and tensors[1].is_contiguous()


def _is_subclass(tensor: torch.Tensor) -> bool:
    """A tensor of a kind of its own, such as a DTensor, which knows what a linear layer is to it."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter, FakeTensor)


def _may_join(group: list[Node], node: Node, writes: Writes) -> bool:
    """Whether ``node`` may be computed where the first layer of its input is."""
    first = group[0]
    if writes.between(_arguments(node)[0], first, node):
        return False
    for argument in _arguments(node)[1:]:
        if argument is not None and (writes.order[argument] > writes.order[first] or writes.of(argument)):
            return False
    return True


def _replace(gm: GraphModule, group: list[Node]) -> None:
    first, (x, _, _) = group[0], _arguments(group[0])
    layers = [_arguments(node)[1:] for node in group]
    widths = [shape(weight)[0] for weight, _ in layers]
    with gm.graph.inserting_before(first):
        op = torch.ops.innerq.row_linear.default
        joined = gm.graph.call_function(op, (x, [weight for weight, _ in layers], [bias for _, bias in layers]))
        joined.meta = {name: value for name, value in first.meta.items() if name != "example_value"}
        joined.meta["example_value"] = value = example(first).new_empty((*shape(x)[:-1], sum(widths)))
        results = [joined]
        if len(group) > 1:
            split = gm.graph.call_function(torch.split, (joined, widths, -1))
            split.meta["example_value"] = parts = torch.split(value, widths, -1)
            results = [gm.graph.call_function(operator.getitem, (split, index)) for index in range(len(group))]
            for result, part in zip(results, parts, strict=True):
                result.meta["example_value"] = part
    for node, result in zip(group, results, strict=True):
        node.replace_all_uses_with(result)
        gm.graph.erase_node(node)

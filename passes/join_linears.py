"""Join linear layers with the same single-row input on a GPU into one operator, whose kernel is made for one row.

    q = linear(x, w_q)                     y = row_linear(x, [w_q, w_k, w_v], [None, None, None])
    k = linear(x, w_k)            ->       q, k, v = split(y, [N_q, N_k, N_v], -1)
    v = linear(x, w_v)

At batch size 1 the time of a decode step is mostly that of reading weights from memory. A matrix-matrix kernel of a
library gains nothing from its tiles there, and small weights are read before it reaches full bandwidth. The pass
changes only graphs that read a quantized cache; prefills and larger batches keep the library's kernels.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from ..kernels.internals.tensors import FakeTensor
from ..kernels.triton import support
from .context import PassContext
from .graph.aliases import Writes
from .graph.reading import Call, read
from .graph.values import example, shape, sizes_of, tensor_of
from .graph.writing import Writer

#: The largest number of layers in one operator.
MAX_JOINED = 4


def join_linears(gm: GraphModule, context: PassContext) -> GraphModule:
    if not (context.caches or context.shadows):
        return gm
    found = [call for node in gm.graph.nodes if (call := read(node)) is not None and _is_row_linear(call)]
    if not found:
        return gm
    writes = Writes(gm.graph)
    groups: list[list[Call]] = []
    open_groups: dict[Node, list[Call]] = {}
    for call in found:
        x = call["input"]
        group = open_groups.get(x)
        if group is None or len(group) == MAX_JOINED or not _may_join(group, call, writes):
            group = open_groups[x] = []
            groups.append(group)
        group.append(call)
    write = Writer(gm.graph)
    for group in groups:
        _replace(write, group)
    return gm


def _is_row_linear(call: Call) -> bool:
    """Whether a call is a linear layer with one row of input, of a dtype and on a device that the kernel supports."""
    if call.name != "linear":
        return False
    tensors = [tensor_of(call[name]) for name in ("input", "weight", "bias") if call[name] is not None]
    row, out = tensors[0], tensor_of(call.node)
    sizes, weights = shape(call["input"]), shape(call["weight"])
    if row is None or out is None or not sizes or weights is None or len(weights) != 2:
        return False
    if not all(isinstance(size, int) for size in (*sizes, *weights)) or any(size != 1 for size in sizes[:-1]):
        return False
    if any(tensor is None or _is_subclass(tensor) or tensor.dtype != row.dtype for tensor in tensors):
        return False
    if out.dtype != row.dtype:  # autocast casts the arguments
        return False
    return support.on_gpu(row) and row.dtype in support.KERNEL_DTYPES and example(call["weight"]).is_contiguous()


def _is_subclass(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a subclass with its own implementation of linear layers, such as a DTensor."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter, FakeTensor)


def _may_join(group: list[Call], call: Call, writes: Writes) -> bool:
    """Whether a layer may be computed at the position of the first layer of ``group``."""
    first = group[0].node
    if writes.between(call["input"], first, call.node):
        return False
    for argument in (call["weight"], call["bias"]):
        if argument is not None and (writes.order[argument] > writes.order[first] or writes.of(argument)):
            return False
    return True


def _replace(write: Writer, group: list[Call]) -> None:
    first, x = group[0].node, group[0]["input"]
    weights, biases = ([call[name] for call in group] for name in ("weight", "bias"))
    widths = [sizes_of(weight)[0] for weight in weights]
    with write.before(first):
        value = example(x).new_empty((*example(x).shape[:-1], sum(widths)))
        joined = write.call(torch.ops.innerq.row_linear.default, x, weights, biases, like=first, value=value)
        results = [joined]
        if len(group) > 1:
            parts = write.call(torch.split, joined, widths, -1)
            results = [write.call(operator.getitem, parts, index) for index in range(len(group))]
    for call, result in zip(group, results, strict=True):
        write.replace(call.node, result)
        write.graph.erase_node(call.node)

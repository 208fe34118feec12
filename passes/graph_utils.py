"""Reading Dynamo's graphs: one name for every spelling of an operation, its arguments, its shapes.

Dynamo's graphs hold what the program called: functions (`torch.matmul`), operators (`@`) and methods (`x.matmul`) for
one and the same operation. :func:`op_name` folds them together; :func:`argument` finds an argument whether it was given
by position or by name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

#: Functions and operators by the name of what they compute. Methods go by their own name, see `_METHODS`.
_FUNCTIONS: dict[Any, str] = {
    F.scaled_dot_product_attention: "sdpa",
    torch._C._nn.scaled_dot_product_attention: "sdpa",
    torch.matmul: "matmul",
    operator.matmul: "matmul",
    torch.softmax: "softmax",
    F.softmax: "softmax",
    torch.add: "add",
    operator.add: "add",
    operator.iadd: "add",
    torch.mul: "mul",
    torch.multiply: "mul",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.div: "div",
    torch.divide: "div",
    torch.true_divide: "div",
    operator.truediv: "div",
    operator.itruediv: "div",
    F.dropout: "dropout",
    torch.dropout: "dropout",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
    torch.transpose: "transpose",
    torch.swapaxes: "transpose",
    torch.permute: "permute",
    torch.reshape: "reshape",
    torch.unsqueeze: "unsqueeze",
    torch.repeat_interleave: "repeat_interleave",
    operator.getitem: "getitem",
}

_METHODS: dict[str, str] = {
    "matmul": "matmul",
    "__matmul__": "matmul",
    "softmax": "softmax",
    "add": "add",
    "add_": "add",
    "mul": "mul",
    "mul_": "mul",
    "div": "div",
    "div_": "div",
    "transpose": "transpose",
    "swapaxes": "transpose",
    "permute": "permute",
    "reshape": "reshape",
    "view": "reshape",
    "expand": "expand",
    "unsqueeze": "unsqueeze",
    "contiguous": "contiguous",
    "to": "to",
    "type": "to",
    "type_as": "to",
    "float": "to",
    "half": "to",
    "bfloat16": "to",
    "repeat_interleave": "repeat_interleave",
}

#: Names of the arguments behind the first, by operation, in order.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "sdpa": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    "matmul": ("input", "other"),
    "softmax": ("input", "dim", "_stacklevel", "dtype"),
    "dropout": ("input", "p", "training", "inplace"),
    "cat": ("tensors", "dim"),
    "transpose": ("input", "dim0", "dim1"),
    "unsqueeze": ("input", "dim"),
    "repeat_interleave": ("input", "repeats", "dim"),
}


def op_name(node: Any) -> str | None:
    """The name of the operation of a node, None for anything not known here."""
    if not isinstance(node, Node):
        return None
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return _METHODS.get(node.target)
    return None


def argument(node: Node, name: str, default: Any = None) -> Any:
    """The argument ``name`` of a node whose operation is in `_PARAMETERS`."""
    operation = op_name(node)
    parameters = _PARAMETERS[operation]
    if operation == "softmax" and (node.op == "call_method" or node.target is torch.softmax):
        parameters = ("input", "dim", "dtype")
    if name in node.kwargs:
        return node.kwargs[name]
    index = parameters.index(name)
    return node.args[index] if index < len(node.args) else default


def example(node: Node) -> Any:
    """The fake tensor (or number) that Dynamo computed for a node."""
    return node.meta["example_value"]


def shape(node: Any) -> tuple[Any, ...] | None:
    """The shape of a node's tensor, sizes as ints or SymInts; None where the node is no tensor."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def same_sizes(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether sizes are known to be equal, without adding a guard for the question."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def is_output(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def source_line(node: Node) -> str:
    """Where in the user's program a node comes from, ``file:line in function: code``, or an empty string."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.strip().splitlines()]
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("File "):
            code = lines[index + 1] if index + 1 < len(lines) else ""
            return f"{lines[index]}: {code}" if code else lines[index]
    return ""


# --- changing graphs ------------------------------------------------------------------------------------------------

_IN_PLACE = {operator.iadd, operator.imul, operator.itruediv}
_QUERIES = {"size", "numel", "nelement", "dim", "ndimension"}


def _is_pure(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUERIES or (op_name(node) is not None and not node.target.endswith("_"))
    return op_name(node) is not None and node.target not in _IN_PLACE


def erase_dead(graph: Graph, nodes: Iterable[Node]) -> None:
    """Erase those of ``nodes`` that nothing uses, and what only they used.

    Only operations that are known to have no effect go: a graph of Dynamo may write into its inputs.
    """
    pending = list(nodes)
    erased = set()
    while pending:
        node = pending.pop()
        if node in erased or node.users or not _is_pure(node):
            continue
        inputs = node.all_input_nodes
        graph.erase_node(node)
        erased.add(node)
        pending.extend(inputs)


def size_node(graph: Graph, size: torch.SymInt) -> Node:
    """A node that computes a symbolic size from the inputs of the graph.

    Raises:
        KeyError: if no input carries that size.
    """
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and value.node.expr == size.node.expr:
            return node
    raise KeyError(f"no input of the graph is the size {size}")

"""Reading Dynamo's graphs: one name for every spelling of an operation, its arguments, its shapes.

Dynamo's graphs hold what the program called: functions (`torch.matmul`), operators (`@`) and methods (`x.matmul`) for
one and the same operation. :func:`op_name` folds them together; :func:`argument` finds an argument whether it was given
by position or by name.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from ...kernels.internals.graphs import is_erased, scaled_dot_product_attention, statically_known_true

#: Functions and operators by the name of what they compute. Methods go by their own name, see `_METHODS`.
_FUNCTIONS: dict[Any, str] = {
    F.scaled_dot_product_attention: "sdpa",
    scaled_dot_product_attention: "sdpa",
    torch.matmul: "matmul",
    operator.matmul: "matmul",
    torch.bmm: "bmm",
    torch.baddbmm: "baddbmm",
    torch.einsum: "einsum",
    torch.functional.einsum: "einsum",
    torch.softmax: "softmax",
    F.softmax: "softmax",
    torch.add: "add",
    operator.add: "add",
    operator.iadd: "add",
    torch.sub: "sub",
    torch.subtract: "sub",
    operator.sub: "sub",
    operator.isub: "sub",
    torch.mul: "mul",
    torch.multiply: "mul",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.div: "div",
    torch.divide: "div",
    torch.true_divide: "div",
    operator.truediv: "div",
    operator.itruediv: "div",
    torch.neg: "neg",
    operator.neg: "neg",
    torch.pow: "pow",
    operator.pow: "pow",
    torch.sqrt: "sqrt",
    torch.rsqrt: "rsqrt",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    torch.masked_fill: "masked_fill",
    torch.where: "where",
    torch.max: "max",
    torch.amax: "amax",
    torch.nan_to_num: "nan_to_num",
    torch.tensor: "tensor",
    torch.scalar_tensor: "tensor",
    torch.full: "full",
    F.dropout: "dropout",
    torch.dropout: "dropout",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
    torch.transpose: "transpose",
    torch.swapaxes: "transpose",
    torch.swapdims: "transpose",
    torch.permute: "permute",
    torch.movedim: "movedim",
    torch.moveaxis: "movedim",
    torch.reshape: "reshape",
    torch.flatten: "reshape",
    torch.unflatten: "reshape",
    torch.squeeze: "reshape",
    torch.unsqueeze: "unsqueeze",
    torch.broadcast_to: "expand",
    torch.repeat_interleave: "repeat_interleave",
    torch.tile: "repeat",
    torch.clone: "contiguous",
    torch.detach: "contiguous",
    operator.getitem: "getitem",
    getattr: "getattr",
}

_METHODS: dict[str, str] = {
    "matmul": "matmul",
    "__matmul__": "matmul",
    "bmm": "bmm",
    "baddbmm": "baddbmm",
    "softmax": "softmax",
    "add": "add",
    "add_": "add",
    "sub": "sub",
    "sub_": "sub",
    "mul": "mul",
    "mul_": "mul",
    "div": "div",
    "div_": "div",
    "neg": "neg",
    "pow": "pow",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "tanh": "tanh",
    "tanh_": "tanh",
    "masked_fill": "masked_fill",
    "masked_fill_": "masked_fill",
    "where": "where",
    "max": "max",
    "amax": "amax",
    "nan_to_num": "nan_to_num",
    "transpose": "transpose",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "permute": "permute",
    "movedim": "movedim",
    "moveaxis": "movedim",
    "reshape": "reshape",
    "view": "reshape",
    "view_as": "reshape",
    "reshape_as": "reshape",
    "flatten": "reshape",
    "unflatten": "reshape",
    "squeeze": "reshape",
    "expand": "expand",
    "expand_as": "expand",
    "broadcast_to": "expand",
    "unsqueeze": "unsqueeze",
    "contiguous": "contiguous",
    "clone": "contiguous",
    "detach": "contiguous",
    "to": "to",
    "type": "to",
    "type_as": "to",
    "float": "to",
    "half": "to",
    "bfloat16": "to",
    "double": "to",
    "repeat_interleave": "repeat_interleave",
    "repeat": "repeat",
    "tile": "repeat",
}

#: Names of the arguments behind the first, by operation, in order.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "sdpa": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    "matmul": ("input", "other"),
    "bmm": ("input", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "add": ("input", "other"),
    "sub": ("input", "other"),
    "masked_fill": ("input", "mask", "value"),
    "max": ("input", "dim", "keepdim"),
    "amax": ("input", "dim", "keepdim"),
    "softmax": ("input", "dim", "_stacklevel", "dtype"),
    "dropout": ("input", "p", "training", "inplace"),
    "cat": ("tensors", "dim"),
    "transpose": ("input", "dim0", "dim1"),
    "movedim": ("input", "source", "destination"),
    "unsqueeze": ("input", "dim"),
    "repeat_interleave": ("input", "repeats", "dim"),
}


#: Names that torch takes for its own, as numpy has them.
_NUMPY_NAMES = {"dim": "axis", "keepdim": "keepdims"}


def op_name(node: Any) -> str | None:
    """The name of the operation of a node, None for anything not known here."""
    if not isinstance(node, Node):
        return None
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return _METHODS.get(node.target)
    return None


def called_name(node: Node) -> str:
    """The name of the method or function that a node calls, empty where it calls none."""
    if node.op == "call_method":
        return node.target
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def argument(node: Node, name: str, default: Any = None) -> Any:
    """The argument ``name`` of a node whose operation is in `_PARAMETERS`."""
    operation = op_name(node)
    parameters = _PARAMETERS[operation]
    if operation == "softmax" and (node.op == "call_method" or node.target is torch.softmax):
        parameters = ("input", "dim", "dtype")
    for spelled in (name, _NUMPY_NAMES.get(name)):
        if spelled in node.kwargs:
            return node.kwargs[spelled]
    index = parameters.index(name)
    return node.args[index] if index < len(node.args) else default


def example(node: Node) -> Any:
    """The fake tensor (or number) that Dynamo computed for a node."""
    return node.meta["example_value"]


def shape(node: Any) -> tuple[Any, ...] | None:
    """The shape of a node's tensor, sizes as ints or SymInts; None where the node is no tensor."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return tuple(plain_size(size) for size in value.shape) if isinstance(value, torch.Tensor) else None


def plain_size(size: Any) -> Any:
    """A size, as an int where the symbol has turned out to be a number."""
    return int(size) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size


def same_sizes(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether sizes are known to be equal, without adding a guard for the question."""
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def same_size(a: Any, b: Any) -> bool:
    return same_sizes((a,), (b,))


def is_output(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def constant(value: Any) -> float | None:
    """The number that a value is known to be: a number, or a tensor of no dimensions that is made of numbers."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    name = op_name(value)
    if name is None or shape(value) != () or writes_to(value):
        return None
    if name == "tensor":
        return constant(value.args[0]) if value.args else None
    if name == "full":
        return constant(value.args[1]) if len(value.args) > 1 else constant(value.kwargs.get("fill_value"))
    numbers = [constant(arg) for arg in value.args[: 2 if name in ("mul", "div", "pow") else 1]]
    if not is_pure(value) or any(number is None for number in numbers):
        return None
    try:
        if name in ("sqrt", "rsqrt"):
            return numbers[0] ** (0.5 if name == "sqrt" else -0.5)
        if name == "to" and example(value).is_floating_point():
            return numbers[0]
        if name in ("mul", "div", "pow") and len(numbers) == 2:
            return {"mul": operator.mul, "div": operator.truediv, "pow": operator.pow}[name](*numbers)
    except (ArithmeticError, TypeError):
        return None
    return None


_TORCH = os.path.dirname(torch.__file__) + os.sep


def source_line(node: Node) -> str:
    """Where in the user's program a node comes from, ``file:line in function: code``, or an empty string."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    frames = [index for index, line in enumerate(lines) if line.startswith("File ")]
    own = [index for index in frames if _TORCH not in lines[index]] or frames  # torch's functions call one another
    if not own:
        return ""
    index = own[-1]
    code = lines[index + 1] if index + 1 < len(lines) else ""
    return f"{lines[index]}: {code}" if code else lines[index]


#: How Dynamo names the model: the ``self`` of the frame that it traces first, or the first argument of a decorator's
#: wrapper around ``forward`` (transformers 5.24 has one).
_MODEL = re.compile(r"^L\['self'\]|^L\['args'\]\[0\]")


def module_path(node: Node) -> str:
    """The module that a node comes from, as ``model.layers.0.self_attn``, or an empty string."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", _MODEL.sub("", path))
    return ".".join(part for part in path.split(".") if part not in ("", "_modules"))


# --- changing graphs ------------------------------------------------------------------------------------------------

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
#: Functions whose names end with an underscore for another reason: without it they are words of Python.
_KEYWORDS = {operator.and_, operator.or_, operator.not_, operator.is_}
_QUERIES = {"size", "numel", "nelement", "dim", "ndimension"}


def is_pure(node: Node) -> bool:
    """Whether an operation is known to have no effect but its result."""
    if node.op == "call_method":
        return node.target in _QUERIES or (op_name(node) is not None and not node.target.endswith("_"))
    return op_name(node) is not None and node.target not in _IN_PLACE


def is_query(node: Node) -> bool:
    """Whether a node only asks for sizes or other metadata of a tensor."""
    if node.op == "call_method":
        return node.target in _QUERIES
    return op_name(node) == "getattr" and node.args[1] in ("shape", "dtype", "device", "ndim", "is_cuda")


def writes_to(node: Node) -> list[Node]:
    """The users that change the value of a node in place."""
    return [user for user in node.users if _writes(user, node)]


def _writes(user: Node, node: Node) -> bool:
    if user.kwargs.get("out") is node:
        return True
    if not user.args or user.args[0] is not node:
        return False
    if user.op == "call_method":
        return user.target.endswith("_") and not user.target.endswith("__")
    if user.op != "call_function":
        return False
    name = getattr(user.target, "__name__", "")
    return (
        user.target in _IN_PLACE
        or name in ("setitem", "iand", "ior", "ixor")
        or (name.endswith("_") and not name.endswith("__") and user.target not in _KEYWORDS)
    )


def by_head(graph: Graph, node: Node, tokens_dim: int) -> Node:
    """Insert what turns keys or values whose tokens are along ``tokens_dim`` into ``[B, H, S, D]``."""
    if tokens_dim == 2:
        return node
    new = graph.call_method("transpose", (node, 1, 2))
    new.meta["example_value"] = example(node).transpose(1, 2)
    return new


def erase_dead(graph: Graph, nodes: Iterable[Node]) -> None:
    """Erase those of ``nodes`` that nothing uses, and what only they used.

    Only operations that are known to have no effect go: a graph of Dynamo may write into its inputs.
    """
    pending = list(nodes)
    erased = set()
    while pending:
        node = pending.pop()
        if node in erased or is_erased(node) or node.users or not is_pure(node):
            continue
        inputs = node.all_input_nodes
        graph.erase_node(node)
        erased.add(node)
        pending.extend(inputs)


def size_node(graph: Graph, size: int | torch.SymInt) -> Node | int:
    """A size as an argument of a node: itself where it is a number, else the input of the graph that carries it.

    Raises:
        KeyError: if no input carries that size.
    """
    if isinstance(size, int) or size.node.expr.is_number:
        return int(size)
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and value.node.expr == size.node.expr:
            return node
    raise KeyError(f"no input of the graph is the size {size}")

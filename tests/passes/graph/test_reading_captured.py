"""How Dynamo spells in a graph what the passes match, and that :func:`read` knows each spelling.

The table says it for every operation by which a decoder writes, moves, reads and weighs its cache. A version of torch
that captures one otherwise fails here with its name; it gets an entry with the version, and ``operations.py`` the
spelling.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.fx import Node

from innerq_compile.kernels.versions import release
from innerq_compile.passes.graph.reading import read, written

B, H, S, D = 2, 4, 6, 8
#: The first version of the table; later ones are given where they differ.
FIRST = "2.11"


def positions() -> torch.Tensor:
    return torch.arange(3)


def set_index(x, y):
    x[:, :, positions()] = y[:, :, :3]
    return x


def set_slice(x, y):
    x[:, :, 1:4] = y[:, :, :3]
    return x


def add_in_place(x, y):
    x += 1
    return x


#: By the expression: the program, the name of its last operation in ``operations.py``, and the spelling of the node,
#: or the spellings by the version of torch since which they hold.
CAPTURED: dict[str, tuple[Callable[..., object], str, str | dict[str, str]]] = {
    # --- the order of dimensions
    "x.mT": (lambda x, y: x.mT, "transpose", {FIRST: "getattr(mT)", "2.14": "aten.mT"}),
    "x.mH": (lambda x, y: x.mH, "transpose", {FIRST: "getattr(mH)", "2.14": "aten.mH"}),
    "x.T": (lambda x, y: x[0, 0].T, "reverse", {FIRST: "getattr(T)", "2.14": "aten.numpy_T"}),
    "x.H": (lambda x, y: x[0, 0].H, "transpose", {FIRST: "getattr(H)", "2.14": "aten.matrix_H"}),
    "x.adjoint()": (lambda x, y: x.adjoint(), "transpose", ".adjoint"),
    "x.t()": (lambda x, y: x[0, 0].t(), "reverse", ".t"),
    "x.transpose(1, 2)": (lambda x, y: x.transpose(1, 2), "transpose", ".transpose"),
    "x.swapaxes(1, 2)": (lambda x, y: x.swapaxes(1, 2), "transpose", ".swapaxes"),
    "torch.transpose": (lambda x, y: torch.transpose(x, 1, 2), "transpose", "torch.transpose"),
    "x.permute(0, 2, 1, 3)": (lambda x, y: x.permute(0, 2, 1, 3), "permute", ".permute"),
    "torch.movedim": (lambda x, y: torch.movedim(x, 1, 2), "movedim", "torch.movedim"),
    # --- shapes
    "x.view": (lambda x, y: x.view(B, -1), "reshape", ".view"),
    "x.reshape": (lambda x, y: x.reshape(B, -1), "reshape", ".reshape"),
    "x.flatten(1)": (lambda x, y: x.flatten(1), "reshape", ".flatten"),
    "x.unflatten": (lambda x, y: x.unflatten(-1, (2, 4)), "reshape", ".unflatten"),
    "x.unsqueeze(2)": (lambda x, y: x.unsqueeze(2), "unsqueeze", ".unsqueeze"),
    "x.contiguous()": (lambda x, y: x.contiguous(), "contiguous", ".contiguous"),
    "x.expand": (lambda x, y: x[:, :, None].expand(B, H, 3, S, D), "expand", ".expand"),
    "x.repeat_interleave": (lambda x, y: x.repeat_interleave(2, 1), "repeat_interleave", ".repeat_interleave"),
    # --- parts
    "x[:, :, None]": (lambda x, y: x[:, :, None], "getitem", "operator.getitem"),
    "x[..., 1:]": (lambda x, y: x[..., 1:], "getitem", "operator.getitem"),
    "x.narrow": (lambda x, y: x.narrow(2, 0, 3), "narrow", ".narrow"),
    "x.chunk": (lambda x, y: x.chunk(2, -1), "chunk", ".chunk"),
    "x.split": (lambda x, y: x.split(4, -1), "split", ".split"),
    "torch.cat": (lambda x, y: torch.cat([x, y], dim=-2), "cat", "torch.cat"),
    "torch.concat": (lambda x, y: torch.concat([x, y], -2), "cat", "torch.concat"),
    # --- writes to a buffer
    "x.index_copy_": (lambda x, y: x.index_copy_(2, positions(), y[:, :, :3]), "index_copy", ".index_copy_"),
    "x[:, :, index] = y": (set_index, "setitem", "operator.setitem"),
    "x[:, :, 1:4] = y": (set_slice, "setitem", "operator.setitem"),
    "x.copy_(y)": (lambda x, y: x.copy_(y), "copy", ".copy_"),
    "x.index_put_": (lambda x, y: x.index_put_((positions() % B,), y[:1]), "index_put", ".index_put_"),
    "x.add_(1)": (lambda x, y: x.add_(1), "add", ".add_"),
    "x += 1": (add_in_place, "add", "operator.iadd"),
    # --- attention
    "sdpa": (lambda x, y: F.scaled_dot_product_attention(x, y, y), "sdpa", "torch._C._nn.scaled_dot_product_attention"),
    "x @ y": (lambda x, y: x @ y.transpose(2, 3), "matmul", "operator.matmul"),
    "torch.matmul": (lambda x, y: torch.matmul(x, y.transpose(2, 3)), "matmul", "torch.matmul"),
    "torch.bmm": (lambda x, y: torch.bmm(x[0], y[0].transpose(1, 2)), "bmm", "torch.bmm"),
    "torch.einsum": (lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y), "einsum", "torch.functional.einsum"),
    "F.softmax": (lambda x, y: F.softmax(x, -1, dtype=torch.float32), "softmax", "torch.nn.functional.softmax"),
    "x.softmax(-1)": (lambda x, y: x.softmax(-1), "softmax", ".softmax"),
    "F.dropout": (lambda x, y: F.dropout(x, 0.0, False), "dropout", "torch.nn.functional.dropout"),
    "x * 0.5": (lambda x, y: x * 0.5, "mul", "operator.mul"),
    "x / 2": (lambda x, y: x / 2, "div", "operator.truediv"),
    "torch.tanh": (lambda x, y: torch.tanh(x), "tanh", "torch.tanh"),
    "x.to(dtype)": (lambda x, y: x.to(torch.float16), "to", ".to"),
    "x.type_as(y)": (lambda x, y: x.type_as(y), "to", ".type_as"),
    "F.linear": (lambda x, y: F.linear(x, y[0, 0]), "linear", "torch._C._nn.linear"),
    # --- masks
    "x.masked_fill": (lambda x, y: x.masked_fill(y > 0, -1e9), "masked_fill", ".masked_fill"),
    "torch.where": (lambda x, y: torch.where(y > 0, x, y), "where", "torch.where"),
    "x <= y": (lambda x, y: x <= y, "le", "operator.le"),
    "torch.arange": (lambda x, y: torch.arange(S), "arange", "torch.arange"),
}


def captured(program: Callable[..., object]) -> Node:
    """The last call of the graph that Dynamo makes of ``program``; pieces of a tuple do not count."""
    torch._dynamo.reset()
    graphs = []

    def backend(gm, examples):
        graphs.append(gm.graph)
        return gm.forward

    torch.compile(program, backend=backend, fullgraph=True)(torch.rand(B, H, S, D), torch.rand(B, H, S, D))
    (graph,) = graphs
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    pieces = [node for node in calls if isinstance(node.args[0], Node) and (node.args[0].target in ("chunk", "split"))]
    return [node for node in calls if node not in pieces][-1]


def spelling(node: Node) -> str:
    """``.name`` of a method, ``getattr(name)``, or the dotted name of a function or operator."""
    target = node.target
    if node.op == "call_method":
        return f".{target}"
    if target is getattr:
        return f"getattr({node.args[1]})"
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target)
    where, name = target.__module__, target.__qualname__
    return f"{where}.{name}".replace("_VariableFunctionsClass.", "").replace("_operator.", "operator.")


def expected(spellings: str | dict[str, str]) -> str:
    """The spelling of the installed torch: that of the newest version in the table that is not newer."""
    if isinstance(spellings, str):
        return spellings
    known = [version for version in spellings if release(version) <= release(torch.__version__)]
    return spellings[max(known, key=release)]


@pytest.mark.parametrize("expression", CAPTURED)
def test_captured_as(expression):
    program, operation, spellings = CAPTURED[expression]
    node = captured(program)
    assert spelling(node) == expected(spellings), f"torch {torch.__version__} captures {expression} in another way"
    call = read(node)
    assert call is not None and call.name == operation
    writes = "=" in expression.replace("<=", "") or expression.partition("(")[0].endswith("_")
    assert call.in_place == writes and bool(written(node)) == writes


def test_every_version_of_the_table_is_supported():
    """And the first one is the oldest, so that each has an entry."""
    from innerq_compile.kernels.versions import SUPPORTED_TORCH

    tables = [spellings for _, _, spellings in CAPTURED.values() if isinstance(spellings, dict)]
    assert tables and all({*spellings} <= {*SUPPORTED_TORCH} for spellings in tables)
    assert all(min(spellings, key=release) == SUPPORTED_TORCH[0] for spellings in tables)

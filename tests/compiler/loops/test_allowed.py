"""Functions that do more than compute tensors are refused."""

from __future__ import annotations

import ast

import pytest
import torch
import torch.nn.functional as F

from innerq_compile.compiler.loops.allowed import check, is_loop
from innerq_compile.kernels.internals.dynamo_loops import Refused

TABLE = {"a": 1}


def helper(x, eps: float = 1e-6):
    return inner_helper(x) + eps


def inner_helper(x):
    return x * 2


def writing_helper(x):
    x[0] = 1
    return x


def mutable_helper(x, values=[]):  # noqa: B006
    return x


NAMES = {**globals(), "range_": range, "pair": (1, 2), "torch": torch, "F": F}


def definition(body: str, arguments: str = "x, n") -> ast.FunctionDef:
    found = ast.parse(f"def f({arguments}):\n    " + body.replace("\n", "\n    ")).body[0]
    assert isinstance(found, ast.FunctionDef)
    return found


@pytest.mark.parametrize(
    "body",
    [
        "y = F.pad(x, (0, n))\nreturn y.transpose(1, 2).to(torch.float32)",
        "a, b = [v.exp() for v in (x, x)]\nreturn a if n is None else torch.nn.functional.softmax(b, -1)",
        "for i in range(n):\n    x = x * x[:, i]\nfor i in range(3):\n    x = x + i\nreturn x",
        "y = torch.linalg.solve_triangular(x, x, upper=False)\ny[..., 0] = 1\nreturn y * float('-inf')",
        "return helper(x)",
    ],
)
def test_what_is_allowed(body):
    check(definition(body), NAMES)


def test_functions_that_are_called_are_returned():
    assert [found.name for found in check(definition("return helper(x)"), NAMES)] == ["helper", "inner_helper"]


@pytest.mark.parametrize(
    "body",
    [
        "global g\nreturn x",
        "x.append(1)\nreturn x",
        "y = x.item()\nreturn y",
        "y = x.tolist()\nreturn y",
        "y = x.add_(1)\nreturn y",
        "y = torch.exp(x, out=x)\nreturn y",
        "y = torch.manual_seed(0)\nreturn x",
        "y = torch.rand(3)\nreturn x",
        "y = F.dropout(x)\nreturn y",
        "y = torch.zeros\nreturn y",
        "return TABLE['a']",
        "return pair",
        "return NOWHERE",
        "return writing_helper(x)",
        "return mutable_helper(x)",
        "return TABLE.size(x)",
        "return print(x)",
        "x.y = 1\nreturn x",
        "x.y[0] = 1\nreturn x",
        "del n\nreturn x",
        "y = {'a': x}\nreturn y",
        "y = {x}\nreturn y",
        "y = lambda: x\nreturn y",
        "def g():\n    pass\nreturn x",
        "with n:\n    pass\nreturn x",
        "try:\n    pass\nfinally:\n    pass\nreturn x",
        "while n:\n    pass\nreturn x",
        "assert n\nreturn x",
        "raise n",
        "import os\nreturn x",
        "yield x",
        "y = f'{x}'\nreturn x",
        "return (y := x)",
        "return helper(*x)",
        "return helper(**x)",
        "return x.data",
        "for i in x:\n    pass\nreturn x",
        "for i in range(n):\n    break\nreturn x",
        "for i in range(n):\n    continue\nreturn x",
        "for i in range(n):\n    return x",
        "for i in range(n):\n    x = x\nelse:\n    x = x\nreturn x",
        "for i in range(n):\n    x = x\nreturn x + i",
        "i = 1\nfor i in range(n):\n    x = x\nreturn x",
        "for x in range(n):\n    n = n\nreturn n",
        "range = 1\nreturn x",
        "return [F for F in (x, x)]",
        "return n(x)",
    ],
)
def test_what_is_refused(body):
    with pytest.raises(Refused):
        check(definition(body), NAMES)


def test_arguments_of_any_name_are_not_read():
    check(definition("return x", "x, *args, **kwargs"), NAMES)
    for name in ("args", "kwargs"):
        with pytest.raises(Refused, match=f"it reads {name}"):
            check(definition(f"return {name}", "x, *args, **kwargs"), NAMES)


def test_a_range_of_another_name():
    with pytest.raises(Refused, match="calls range"):
        check(definition("for i in range(n):\n    x = x\nreturn x"), {**NAMES, "range": helper})


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        ("x = x[:, i]", True),
        ("y[i] = x[i]\nx = y * x[0, i]", True),
        ("x = x[:i]", False),
        ("x = x * i", False),
        ("x = x[i + 1]", False),
        ("x = x if n else x", False),
        ("x = [x for _ in range(2)]", False),
        ("if n:\n    x = x", False),
        ("for k in range(2):\n    x = x", False),
        ("x = x[i]\ni = 1", False),
    ],
)
def test_loops_whose_variable_is_an_element(body, taken):
    assert is_loop(ast.parse("for i in range(n):\n    " + body.replace("\n", "\n    ")).body[0]) is taken

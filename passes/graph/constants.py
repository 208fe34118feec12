"""Evaluates scalar constants in a graph, in any spelling.

8.0        torch.tensor(8.0)        torch.full((), 8.0)        torch.div(input=torch.tensor(16.0), other=2)
"""

from __future__ import annotations

import operator
from typing import Any

from .reading import Call, is_pure, read, writes_to
from .values import dtype_of, shape

_BINARY = {
    "add": ("other", operator.add),
    "sub": ("other", operator.sub),
    "mul": ("other", operator.mul),
    "div": ("other", operator.truediv),
    "pow": ("exponent", operator.pow),
}


def constant(value: Any) -> float | None:
    """The value of a constant: a Python number, or a node that computes a zero-dimensional tensor from constants.

    None for anything else, including bools.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    call = read(value)
    if call is None or shape(value) != () or not is_pure(call.node) or writes_to(call.node):
        return None
    number = _computed(call)
    dtype = dtype_of(value)
    if number is None or dtype is None or (not dtype.is_floating_point and number != int(number)):
        return None
    return number


def _computed(call: Call) -> float | None:
    name = call.name
    if name in ("tensor", "scalar_tensor"):
        return constant(call["data"])
    if name == "full":
        return constant(call["fill_value"])
    if name not in _BINARY and name not in ("sqrt", "rsqrt", "neg", "to"):
        return None
    number = constant(call["input"])
    if number is None:
        return None
    try:
        if name in _BINARY:
            parameter, function = _BINARY[name]
            other = constant(call[parameter])
            return None if other is None or not call.is_plain() else float(function(number, other))
        if name in ("sqrt", "rsqrt"):
            return float(number ** (0.5 if name == "sqrt" else -0.5))
    except (ArithmeticError, TypeError):  # such as division by zero, or a complex root
        return None
    return -number if name == "neg" else number

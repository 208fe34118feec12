"""Evaluates symbolic sizes of a graph from the arguments of a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..kernels.internals.graphs import as_python, is_constant_size
from ..passes.graph.values import example_or_none


class SizeReader:
    """Evaluates symbolic sizes of a graph from the arguments of a call."""

    def __init__(self, original: GraphModule) -> None:
        self._places: dict[Any, tuple[int, int | None]] = {}  # symbol -> (argument, dimension or None for an int)
        for index, node in enumerate(original.graph.find_nodes(op="placeholder")):
            value = example_or_none(node)
            if isinstance(value, torch.SymInt):
                self._note(value, index, None)
            elif isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    self._note(size, index, dim)

    def _note(self, size: Any, index: int, dim: int | None) -> None:
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
            self._places.setdefault(size.node.expr, (index, dim))

    def reader(self, size: Any) -> Callable[[tuple[Any, ...]], int]:
        """A function of the call's arguments that evaluates ``size``.

        Raises:
            KeyError: if the size depends on a symbol that is not a size or number among the arguments.
        """
        if not isinstance(size, torch.SymInt) or is_constant_size(size):
            constant = int(size)
            return lambda args: constant
        expr = size.node.expr
        if expr.is_Symbol:
            index, dim = self._places[expr]
            return lambda args: args[index] if dim is None else args[index].shape[dim]
        return self.evaluator(expr)

    def evaluator(self, expr: Any) -> Callable[[Sequence[Any]], Any]:
        """A function of the call's arguments that evaluates a sympy expression of symbols, such as a condition on them.

        Raises:
            KeyError: if it depends on a symbol that is not a size or number among the arguments.
        """
        places = {symbol: self._places[symbol] for symbol in expr.free_symbols}
        # compiled to a Python function, because sympy's evaluation takes a tenth of a millisecond at every step
        evaluate = eval(f"lambda {', '.join(map(str, places))}: {as_python(expr)}", {"math": math})
        reads = list(places.values())
        return lambda args: evaluate(*[args[i] if d is None else args[i].shape[d] for i, d in reads])

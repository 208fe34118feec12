"""What passes need in addition to ``torch.fx`` to read graphs, sizes and operators. See ``table/graphs.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule
from torch.fx.experimental.symbolic_shapes import free_symbols, free_unbacked_symbols, statically_known_true
from torch.utils._sympy.printers import PythonPrinter

__all__ = [
    "HigherOrderOperator",
    "LazyGraphModule",
    "OpOverload",
    "OpOverloadPacket",
    "as_python",
    "as_size",
    "free_symbols",
    "free_unbacked_symbols",
    "guards_of",
    "hint_of",
    "holds",
    "is_constant_size",
    "is_erased",
    "linear",
    "node_of_line",
    "own_symbol",
    "range_of",
    "same_sizes",
    "scaled_dot_product_attention",
    "shape_env_of",
    "size_hint",
    "size_with",
    "statically_known_true",
    "write_code",
]

#: The functions behind the names in ``torch.nn.functional``; a graph may call them directly.
linear: Any = torch._C._nn.linear  # pyright: ignore[reportAttributeAccessIssue]
scaled_dot_product_attention: Any = torch._C._nn.scaled_dot_product_attention  # pyright: ignore[reportAttributeAccessIssue]


def write_code(gm: GraphModule) -> None:
    """Generate the code of a graph that is to be called as it is.

    Otherwise its first call does. If several threads call it then, they disturb one another: torch keeps with the nodes
    under which names the code that is being generated has them.
    """
    if isinstance(gm, LazyGraphModule):
        gm.real_recompile()


def is_erased(node: Node) -> bool:
    """Whether a node has been erased from its graph."""
    return node._erased


def same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal, whatever the values of symbols. Adds no guard."""
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def is_constant_size(size: torch.SymInt) -> bool:
    """Whether a symbolic int has one value, which the graph specializes on."""
    return bool(size.node.expr.is_number)


def own_symbol(size: torch.SymInt) -> Any:
    """The symbol as which a size was created, or None if it was computed.

    Its expression has another symbol instead where the two were found to be equal since then.
    """
    return size.node._expr if size.node._expr.is_Symbol else None


def as_size(symbol: Any, size: torch.SymInt) -> torch.SymInt:
    """A symbol as a size, of the value of ``size``."""
    return symbol_as_size(symbol, size, size.node.hint)


def symbol_as_size(symbol: Any, like: torch.SymInt, value: int | None) -> torch.SymInt:
    """A symbol of the graph that ``like`` belongs to as a size, which has a value in the first call."""
    return like.node.shape_env.create_symintnode(symbol, hint=value)


def shape_env_of(size: torch.SymInt | torch.SymFloat) -> Any:
    """The shape environment of a symbolic number: the symbols of its graph, and what is known of them."""
    return size.node.shape_env


def range_of(size: torch.SymInt | torch.SymFloat, symbol: Any) -> Any:
    """The range of a symbol of a symbolic number: the values that its graph may be called with."""
    return shape_env_of(size).var_to_range[symbol]


def guards_of(shape_env: Any) -> list[Any]:
    """The conditions on symbols that a graph relies on, as sympy expressions, in the order in which they were added."""
    return [guard.expr for guard in shape_env.guards]


def hint_of(shape_env: Any, condition: Any) -> bool:
    """Whether a condition on symbols holds in the first call of a graph. No guard is added."""
    return bool(shape_env.create_symboolnode(condition).node.hint)


def holds(shape_env: Any, condition: Any) -> bool:
    """Whether a condition on symbols holds in the first call of a graph. It becomes a guard of the graph."""
    return bool(shape_env.create_symboolnode(condition))


def as_python(expression: Any) -> str:
    """A symbolic size as a Python expression."""
    return PythonPrinter().doprint(expression)


def size_hint(size: int | torch.SymInt) -> int:
    """The value that a size had when the graph was captured, without a guard; a large one if it depends on data."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 1 << 62


def size_with(size: int | torch.SymInt, number: int) -> int:
    """The value of a size with ``number`` in place of each symbol."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.xreplace({symbol: sympy.Integer(number) for symbol in expression.free_symbols}))


def node_of_line(code: Any, line: int) -> int | None:
    """The index of the node that a line of ``Graph.python_code(...)`` was generated from, or None."""
    return code._lineno_map.get(line - code._prologue_start + 1) if code._lineno_map else None

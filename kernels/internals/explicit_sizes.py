"""Makes every symbol of a graph's sizes an input of the graph.

Caches of compiled code on disk keep the guards of a graph on symbols that are inputs, and no others. Without those,
code that was compiled for small tensors, with indices of 32 bits, is found for large ones. Dynamo's graphs have each
symbol as an input; a rewritten graph has tensors of caches, whose capacity is a size of theirs alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from .dynamo_graphs import ConstantSource, copy_graph, set_source
from .graphs import free_symbols, own_symbol, symbol_as_size


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a symbol can be read: dimension ``dim`` of input ``index`` has the size ``factor * symbol + offset``."""

    index: int
    dim: int
    factor: int
    offset: int

    def value(self, inputs: Sequence[Any]) -> int:
        """The value of the symbol in a call."""
        return self._solved(inputs[self.index].shape[self.dim])

    def _solved(self, size: int) -> int:
        return (size - self.offset) // self.factor

    def as_size(self, symbol: Any, size: torch.SymInt) -> torch.SymInt:
        """The symbol as a size, if ``size`` is that of the input."""
        return symbol_as_size(symbol, size, self._solved(size.node.hint))


def hidden_sizes(gm: GraphModule) -> dict[Place, torch.SymInt]:
    """Symbols in the sizes of inputs that are no inputs: where to read each of them, and the symbol as a size."""
    inputs = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
    known = {symbol for one in inputs if isinstance(one, torch.SymInt) for symbol in (own_symbol(one), one.node.expr)}
    found: dict[Place, torch.SymInt] = {}
    for index, one in enumerate(inputs):
        for dim, size in enumerate(one.shape if isinstance(one, torch.Tensor) else ()):
            if not isinstance(size, torch.SymInt) or len(free_symbols(size)) != 1 or size.node.hint is None:
                continue  # a size without a value in the first call has no guards
            expr = size.node.expr
            (symbol,) = expr.free_symbols
            factor = expr.coeff(symbol)
            offset = expr - factor * symbol
            if symbol not in known and factor.is_Integer and factor and offset.is_Integer:
                known.add(symbol)
                place = Place(index, dim, int(factor), int(offset))
                found[place] = place.as_size(symbol, size)
    return found


def with_inputs(gm: GraphModule, sizes: Sequence[torch.SymInt]) -> GraphModule:
    """The graph with ``sizes`` as further inputs, behind its own, which it does not use; itself if there are none."""
    if not sizes:
        return gm
    made = copy_graph(gm)
    last = made.graph.find_nodes(op="placeholder")[-1]
    for index, size in enumerate(sizes):
        with made.graph.inserting_after(last):
            last = made.graph.placeholder(f"innerq_size_{index}")
        last.meta["example_value"] = size
        set_source(last, ConstantSource(f"innerq_size_{index}"))
    made.recompile()
    return made

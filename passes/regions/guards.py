"""Conditions on symbols that a compiled region relies on.

Inductor and AOTAutograd may specialize on properties of a size, such as that it is a multiple of 16. Such a condition
becomes a guard of the graph: Dynamo compiles again if it does not hold in a later call. A function compiled with the
symbols of one layer and called with those of another relies on the same conditions for the symbols of that layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch

from ...kernels.internals.graphs import guards_of, holds, shape_env_of


class Guards:
    """Context of the compilation of a region: the guards that it adds to the graph.

    Args:
        sizes: symbolic sizes of the graph.
    """

    def __init__(self, sizes: Iterable[torch.SymInt]) -> None:
        self._shape_env = next((shape_env_of(size) for size in sizes), None)
        self._conditions: list[Any] = []

    def __enter__(self) -> Guards:
        self._before = self._count()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shape_env is not None:
            self._conditions = guards_of(self._shape_env)[self._before :]

    def _count(self) -> int:
        return 0 if self._shape_env is None else len(guards_of(self._shape_env))

    def hold_for(self, compiled: Sequence[sympy.Symbol], others: Sequence[sympy.Symbol]) -> bool:
        """Whether the guards hold with each symbol of ``compiled`` replaced. They become guards of the graph if so."""
        renamed = {old: new for old, new in zip(compiled, others, strict=True) if old != new}
        return all(
            holds(self._shape_env, condition.xreplace(renamed))
            for condition in self._conditions
            if not condition.free_symbols.isdisjoint(renamed)
        )

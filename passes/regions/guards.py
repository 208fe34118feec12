"""Conditions on symbols that a compiled region relies on.

Inductor and AOTAutograd may specialize on properties of a size, such as that it is a multiple of 16. Such a condition
becomes a guard of the graph: Dynamo compiles again if it does not hold in a later call. A function compiled with the
symbols of one layer and called with those of another relies on the same conditions for the symbols of that layer. So it
does on conditions that the program itself depends on, such as that the cache of its first layer is not full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sympy
import torch

from ...kernels.internals.graphs import guards_of, hint_of, holds, shape_env_of


class Guards:
    """Context of the compilation of a region: the guards that it relies on.

    These are the guards that it adds to the graph, and those on symbols of the region alone that the graph had before,
    or got from other regions meanwhile.

    Args:
        sizes: symbolic sizes of the graph.
    """

    def __init__(self, sizes: Iterable[torch.SymInt]) -> None:
        self._shape_env = next((shape_env_of(size) for size in sizes), None)
        self._own: list[Any] = []
        self._others: list[Any] = []
        self._seen = 0

    def __enter__(self) -> Guards:
        self._note(self._others)
        return self

    def __exit__(self, *exception: object) -> None:
        self._note(self._own)

    @contextlib.contextmanager
    def of_another(self) -> Iterator[None]:
        """A context within this one in which another region is compiled, whose guards are not added by this one."""
        self._note(self._own)
        yield
        self._note(self._others)

    def _note(self, guards: list[Any]) -> None:
        """Add to ``guards`` what the graph relies on since the last call."""
        found = self._all()
        guards += found[self._seen :]
        self._seen = len(found)

    def _all(self) -> list[Any]:
        return [] if self._shape_env is None else guards_of(self._shape_env)

    def hold_for(self, compiled: Sequence[sympy.Symbol], others: Sequence[sympy.Symbol]) -> bool:
        """Whether the guards hold with each symbol of ``compiled`` replaced. They become guards of the graph if so.

        If not, no guard is added: otherwise a call in which they do hold would be compiled again.
        """
        pairs = set(zip(compiled, others, strict=True))
        if len(pairs) > len(set(compiled)):
            return False  # the function was compiled with one symbol for sizes that are different ones here
        renamed = {old: new for old, new in pairs if old != new}
        if self._shape_env is None:
            return not renamed
        relied_on = self._own + [one for one in self._others if one.free_symbols <= set(compiled)]
        conditions = [one.xreplace(renamed) for one in relied_on if not one.free_symbols.isdisjoint(renamed)]
        return all(hint_of(self._shape_env, condition) for condition in conditions) and all(
            holds(self._shape_env, condition) for condition in conditions
        )

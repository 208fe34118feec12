"""Undocumented API that ``internals/explicit_sizes.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch.fx.experimental.sym_node",
        names=("expr", "hint"),
        on_objects=True,
        why="Which symbol a size of a tensor is computed from, and its value in the first call.",
        without="Nothing compiles.",
    ),
)

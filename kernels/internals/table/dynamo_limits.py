"""Undocumented API that ``internals/dynamo_limits.py`` uses."""

from __future__ import annotations

from .entry import Internal

_UNTOLD = "No warning says that caches are dense because Dynamo has reached its limit of graphs."

ENTRIES = (
    Internal(
        module="torch._dynamo.convert_frame",
        names=("exceeds_recompile_limit",),
        why="Dynamo asks it whether a function is compiled once more. It is wrapped, because Dynamo's own warning does "
        "not say what it means: new caches are dense.",
        without="The backend cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.convert_frame",
        names=("compiler_fn", "code", "one_graph"),
        on_objects=True,
        why="What the caller of that function compiles, for which backend, and whether it raises an error.",
        without=_UNTOLD,
    ),
    Internal(
        module="torch._dynamo.config",
        names=("fail_on_recompile_limit_hit",),
        why="With it Dynamo raises an error that says enough.",
        without="Compiling fails with an AttributeError.",
    ),
)

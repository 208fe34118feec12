"""Undocumented API that ``internals/dynamo_limits.py`` uses."""

from __future__ import annotations

from .entry import Internal

_DENSE = "Dynamo's own limits hold, for all modules together, and no warning says that caches are dense behind them."

ENTRIES = (
    Internal(
        module="torch._dynamo.convert_frame",
        names=("exceeds_recompile_limit",),
        why="Dynamo asks it whether a function is compiled once more. It is wrapped to give each module a limit of its "
        "own, and because Dynamo's warning does not say what a limit means: new caches are dense.",
        without="The backend cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.convert_frame",
        names=("compiler_fn", "code", "one_graph", "locals", "closure"),
        on_objects=True,
        why="What the caller of that function compiles, for which backend, for which call, and whether it raises an "
        "error.",
        without=_DENSE,
    ),
    Internal(
        module="torch._guards",
        names=("CompileId.frame_compile_id",),
        why="That a function is compiled for the first time, perhaps since a reset.",
        without="Compiling fails with an AttributeError.",
    ),
    Internal(
        module="torch._dynamo.config",
        names=("recompile_limit", "accumulated_recompile_limit"),
        why="The limits, which are raised. Those that the program has lowered hold.",
        without="Compiling fails with an AttributeError.",
    ),
    Internal(
        module="torch._dynamo.config",
        names=("fail_on_recompile_limit_hit",),
        why="With it Dynamo raises an error that says enough.",
        without="Compiling fails with an AttributeError.",
    ),
)

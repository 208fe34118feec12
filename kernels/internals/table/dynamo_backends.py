"""Undocumented API that ``internals/dynamo_backends.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._dynamo.eval_frame",
        names=("innermost_backend",),
        why="Programs that other backends compile are left alone.",
        without="The backend cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.output_graph",
        names=("compiler_fn",),
        on_objects=True,
        why="The backend that Dynamo traces a program for.",
        without="Compiling fails with an AttributeError.",
    ),
)

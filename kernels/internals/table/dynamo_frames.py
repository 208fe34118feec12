"""Undocumented API that ``internals/dynamo_frames.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._dynamo.convert_frame",
        names=("get_eval_frame_isolate_recompiles_id",),
        versions=("2.13", "2.14", "2.15"),
        why="From torch 2.13 on layers that are compiled one by one have graphs of their own, which others do not use.",
        without="A thread that has waited may use the graph of another layer once.",
    ),
    Internal(
        module="torch._dynamo.convert_frame",
        names=("f_locals", "closure"),
        on_objects=True,
        why="What a frame that Dynamo compiles is given, or has closed over: the module that runs it is among that.",
        without="Compiling fails with an AttributeError.",
    ),
)

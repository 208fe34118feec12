"""Undocumented API that ``internals/constant_results.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_TRACES = "Traces are not kept on disk: a new process traces its models."

ENTRIES = (
    Internal(
        module="torch._dynamo.variables.functions",
        names=("invoke_and_store_as_constant",),
        why="Calls a function whose result is taken for a constant, with no guard. It is replaced while a frame is "
        "traced that is to be kept, to note the call and what it returned.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.variables.nn_module",
        names=("invoke_and_store_as_constant",),
        why="The same function, under the name by which methods of modules are called.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.variables",
        names=("functions", "nn_module"),
        why="The modules in which the function is replaced.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.decorators",
        names=("_dynamo_marked_constant",),
        why="The mark of such a function, by which it is told from decorators that wrap it.",
        without=_NO_TRACES,
        on_objects=True,
    ),
)

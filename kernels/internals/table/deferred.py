"""Undocumented API that ``internals/deferred.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NOTHING = "Nothing compiles."

ENTRIES = (
    Internal(
        module="torch._guards",
        names=(
            "CompileContext.current_compile_id",
            "TracingContext",
            "TracingContext.try_get",
            "compile_context",
            "tracing",
        ),
        why="The context in which Dynamo calls a backend: fake mode, symbols, the compilation's id. It is made again "
        "for a graph that is compiled later.",
        without=_NOTHING,
    ),
    Internal(
        module="torch._dynamo.convert_frame",
        names=("compile_lock",),
        why="Only one thread compiles at a time.",
        without=_NOTHING,
    ),
    Internal(
        module="torch._dynamo.utils",
        names=("get_metrics_context", "maybe_disable_inference_mode", "maybe_disable_inference_mode_for_fake_prop"),
        why="Inductor notes statistics of a compilation there; and nothing is compiled in inference mode.",
        without=_NOTHING,
    ),
    Internal(
        module="torch._subclasses",
        names=("FakeTensor",),
        why="Inputs without data, as Inductor makes them of example inputs; keys of compiled graphs depend on it.",
        without=_NOTHING,
    ),
)

"""Undocumented API that ``internals/dynamo_calls.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_GENERATE = "torch.compile(model, backend='innerq').generate(...) runs uncompiled, or fails with an AttributeError."

ENTRIES = (
    Internal(
        module="torch._dynamo",
        names=("reset", "mark_static(index)"),
        why="The command line compiles one model with several presets; reproducers need the sizes of the first call.",
        without="The commands bench and fidelity, and reproducers, fail with an AttributeError.",
    ),
    Internal(
        module="torch._dynamo.exc",
        names=("ShortenTraceback",),
        why="Dynamo re-raises an error of this class unwrapped, without its own stack frames.",
        without="The backend cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.exc",
        names=("RestartAnalysis",),
        why="AOTAutograd raises it to have Dynamo trace again, with a float as a constant. The backend lets it pass.",
        without="The backend cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.utils",
        names=("counters", "get_compilation_metrics"),
        why="explain() reports whether Inductor has skipped CUDA graphs, graph breaks, and why a graph was compiled "
        "again.",
        without="The backend cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.eval_frame",
        names=("OptimizedModule",),
        why="The class of torch.compile(model). It forwards unknown attributes to the model that it wraps, so that "
        "generate would run the uncompiled model; the backend adds its own generate.",
        without=_NO_GENERATE,
    ),
    Internal(
        module="torch._dynamo.eval_frame",
        names=("innermost_backend", "dynamo_ctx", "_orig_mod"),
        on_objects=True,
        why="Whether a compiled module uses this backend, and its compiled form.",
        without=_NO_GENERATE,
    ),
    Internal(
        module="torch.nn",
        names=("Module._compiled_call_impl", "Module._call_impl"),
        why="The function that a module's call runs. It is set while generate() or explain() runs, and reset to "
        "undo a compilation.",
        without="explain(), the command fidelity and generate() of a compiled model fail with an AttributeError.",
    ),
)

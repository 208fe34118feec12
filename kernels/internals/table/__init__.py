"""The list of undocumented API of torch and Triton that is used: one file of entries per module of ``internals``.

The entries are separate from the code that uses them, so that they can be read where that code cannot be imported.
"""

from __future__ import annotations

from . import (
    constant_results,
    cuda,
    deferred,
    dynamo_backends,
    dynamo_calls,
    dynamo_frames,
    dynamo_graphs,
    dynamo_limits,
    dynamo_loops,
    dynamo_sizes,
    dynamo_threads,
    explicit_sizes,
    graph_pickling,
    graphs,
    guarded_values,
    inductor,
    inductor_waiting,
    launchers,
    logs,
    templates,
    tensors,
    traces,
    triton_compiler,
    vector_isa,
)
from .entry import Internal

#: Entries by the name of the module of ``internals`` that uses them.
TOPICS: dict[str, tuple[Internal, ...]] = {
    "constant_results": constant_results.ENTRIES,
    "cuda": cuda.ENTRIES,
    "deferred": deferred.ENTRIES,
    "dynamo_backends": dynamo_backends.ENTRIES,
    "dynamo_calls": dynamo_calls.ENTRIES,
    "dynamo_frames": dynamo_frames.ENTRIES,
    "dynamo_graphs": dynamo_graphs.ENTRIES,
    "dynamo_limits": dynamo_limits.ENTRIES,
    "dynamo_loops": dynamo_loops.ENTRIES,
    "dynamo_sizes": dynamo_sizes.ENTRIES,
    "dynamo_threads": dynamo_threads.ENTRIES,
    "explicit_sizes": explicit_sizes.ENTRIES,
    "graph_pickling": graph_pickling.ENTRIES,
    "graphs": graphs.ENTRIES,
    "guarded_values": guarded_values.ENTRIES,
    "inductor": inductor.ENTRIES,
    "inductor_waiting": inductor_waiting.ENTRIES,
    "launchers": launchers.ENTRIES,
    "logs": logs.ENTRIES,
    "templates": templates.ENTRIES,
    "tensors": tensors.ENTRIES,
    "traces": traces.ENTRIES,
    "triton_compiler": triton_compiler.ENTRIES,
    "vector_isa": vector_isa.ENTRIES,
}


def missing(*topics: str) -> dict[str, Internal]:
    """Names that do not exist, or lack a parameter, in the installed versions; with their entries.

    Imports the modules that it checks, Inductor among them.

    Args:
        topics: keys of :data:`TOPICS`; all of them if none is given.

    Returns:
        Entries by full name, such as ``torch._inductor.ir.FixedLayout``.
    """
    found: dict[str, Internal] = {}
    for topic in topics or TOPICS:
        for entry in TOPICS[topic]:
            found |= dict.fromkeys(entry.missing(), entry)
    return found

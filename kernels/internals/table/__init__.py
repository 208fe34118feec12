"""What is used of torch's and Triton's undocumented API: a file for each module of ``internals``, entries in each.

The entries stand apart from the code that uses them, so that they can be read where that code cannot be imported.
"""

from __future__ import annotations

from . import cuda, dynamo_calls, dynamo_graphs, graphs, inductor, launchers, logs, templates, tensors, triton_compiler
from .entry import Internal

#: By the name of the module of ``internals`` that uses them.
TOPICS: dict[str, tuple[Internal, ...]] = {
    "cuda": cuda.ENTRIES,
    "dynamo_calls": dynamo_calls.ENTRIES,
    "dynamo_graphs": dynamo_graphs.ENTRIES,
    "graphs": graphs.ENTRIES,
    "inductor": inductor.ENTRIES,
    "launchers": launchers.ENTRIES,
    "logs": logs.ENTRIES,
    "templates": templates.ENTRIES,
    "tensors": tensors.ENTRIES,
    "triton_compiler": triton_compiler.ENTRIES,
}


def missing(*topics: str) -> dict[str, Internal]:
    """The names that are not as they are needed here, such as ``torch._inductor.ir.FixedLayout``, with their entries.

    Imports what it looks into, Inductor among it.

    Args:
        topics: keys of :data:`TOPICS`; all of them where none is given.
    """
    found: dict[str, Internal] = {}
    for topic in topics or TOPICS:
        for entry in TOPICS[topic]:
            found |= dict.fromkeys(entry.missing(), entry)
    return found

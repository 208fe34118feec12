"""Undocumented API that ``internals/logs.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._logging._internal",
        names=("register_log", "register_artifact(visible, off_by_default)"),
        why="TORCH_LOGS and torch._logging.set_logs accept registered names only.",
        without="The package cannot be imported.",
    ),
    Internal(
        module="torch._logging._internal",
        names=("getArtifactLogger", "trace_structured(metadata_fn, payload_fn)"),
        why="The log of the artifact innerq_graphs, and artifacts of a compilation for tlparse.",
        without="The package cannot be imported.",
    ),
    Internal(
        module="torch._guards",
        names=("CompileContext.current_compile_id",),
        why="Identifies a graph in reports as torch's own logs do, so that recompilations can be assigned to it.",
        without="The package cannot be imported.",
    ),
)

"""Torch's logs and its trace for tlparse. See ``table/logs.py``. Imported while torch itself is being imported."""

from __future__ import annotations

from torch._guards import CompileContext
from torch._logging._internal import getArtifactLogger as artifact_logger
from torch._logging._internal import register_artifact, register_log, trace_structured

__all__ = ["artifact_logger", "compile_id", "register_artifact", "register_log", "trace_structured"]


def compile_id() -> str:
    """The id of the current compilation in torch's logs, such as ``0/1``; empty outside of a compilation."""
    current = CompileContext.current_compile_id()
    return "" if current is None else str(current)

"""Torch's loggers and its structured trace. See ``table/logs.py``. Imported while torch itself is being imported."""

from __future__ import annotations

from torch._guards import CompileContext
from torch._logging._internal import getArtifactLogger as artifact_logger
from torch._logging._internal import register_artifact, register_log, trace_structured

__all__ = ["artifact_logger", "compile_id", "register_artifact", "register_log", "trace_structured"]


def compile_id() -> str:
    """The id of the current compilation, as in torch's logs (``0/1``); empty if there is none."""
    current = CompileContext.current_compile_id()
    return "" if current is None else str(current)

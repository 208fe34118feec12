"""The module that ``torch.compile(..., backend="innerq")`` loads by the entry point ``torch_dynamo_backends``."""

from __future__ import annotations

from ..compiler import traces
from ..compiler.backend import innerq_backend
from ..inspect import dump
from . import generate

generate.install()
dump.install()
traces.install(innerq_backend)

__all__ = ["innerq_backend"]

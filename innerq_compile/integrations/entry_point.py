"""The module that ``torch.compile(..., backend="innerq")`` loads by the entry point ``torch_dynamo_backends``."""

from __future__ import annotations

from ..compiler.backend import innerq_backend
from ..compiler.traces import keeping
from ..inspect import dump
from . import generate

generate.install()
dump.install()
keeping.install(innerq_backend)

__all__ = ["innerq_backend"]

"""The exception raised by the backend. In a file of its own because it imports Dynamo, which ``errors.py`` avoids."""

from __future__ import annotations

from .errors import InnerQError
from .kernels.internals.dynamo_calls import ShortenTraceback


class CompileError(InnerQError, ShortenTraceback):
    """An InnerQError raised during compilation. Dynamo re-raises it unwrapped and without its own stack frames."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.first_useful_frame = None

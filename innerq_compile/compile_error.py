"""The error of a compilation. A file of its own: it imports Dynamo, which the other errors do without."""

from __future__ import annotations

from .errors import InnerQError
from .kernels.internals.dynamo_calls import ShortenTraceback


class CompileError(InnerQError, ShortenTraceback):
    """An InnerQError raised while compiling. Dynamo lets it pass as it is, without its own frames."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.first_useful_frame = None

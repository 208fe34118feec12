"""Errors that users see."""

from __future__ import annotations


class InnerQError(ValueError):
    """A request that cannot be served. The message names the value, what is allowed, and a way out."""


class UnsupportedOperation(InnerQError, NotImplementedError):
    """An operation that would have to change a quantized cache in a way it cannot represent."""

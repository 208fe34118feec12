"""Exceptions of the public API."""

from __future__ import annotations


class InnerQError(ValueError):
    """A request that cannot be fulfilled. The message names the value, what is allowed, and what to do instead."""


class UnsupportedOperation(InnerQError, NotImplementedError):
    """An in-place operation that a quantized cache cannot represent, such as writing single elements."""

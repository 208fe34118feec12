"""Hashes of functions for Triton that do not depend on what was hashed before. Imports nothing from Triton."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)

#: Functions that are hashed with all that they call, by id; they are held, so that no id is used again.
_HASHED: dict[int, Any] = {}
#: Held while functions are hashed: another thread must not find a function that is half done.
_HASHING = threading.Lock()


def hash_in_order(function: Any) -> None:
    """Hash what a function for Triton calls before Triton hashes the function.

    Machine code is kept on disk by the hash of a kernel. Until Triton 3.8 that hash lists the constants of only those
    callees which were hashed before, so it depended on which kernel was compiled first, and a process compiled anew
    what others had kept. Functions in Triton's interpreter have no hash.
    """
    if _needs_none(function):
        return
    try:
        with _HASHING:
            _hash(function, set())
    except Exception as error:  # the kernel can be compiled all the same, or Triton says why not
        log.debug("%r is not hashed: %r", function, error)


def _needs_none(function: Any) -> bool:
    """Whether a function is hashed, or has no hash."""
    return id(function) in _HASHED or not hasattr(type(function), "cache_key")


def _hash(function: Any, begun: set[int]) -> None:
    if id(function) in begun or _needs_none(function):
        return
    begun.add(id(function))  # functions may call themselves
    for callee in _callees(function.fn):
        _hash(callee, begun)
    _ = function.cache_key
    _HASHED[id(function)] = function


def _callees(function: types.FunctionType) -> Iterator[Any]:
    """What a function may call, by its own names and as an attribute of a module."""
    names, scope = function.__code__.co_names, function.__globals__
    for name in names:
        value = scope.get(name)
        if isinstance(value, types.ModuleType):
            yield from (getattr(value, attribute, None) for attribute in names)
        else:
            yield value

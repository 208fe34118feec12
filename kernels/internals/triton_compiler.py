"""Triton's compiler, called without a GPU. See ``table/triton_compiler.py``. Imports Triton."""

from __future__ import annotations

import pathlib
import threading
import types
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

__all__ = ["ASTSource", "CompiledKernel", "GPUTarget", "disassembler", "hash_in_order"]

#: The ids of functions that are hashed, and what they call. They live as long as their modules.
_HASHED: set[int] = set()
#: Held while functions are hashed: another thread must not find a function that is half done.
_HASHING = threading.RLock()


def hash_in_order(function: Any) -> None:
    """Hash what a function for Triton calls before Triton hashes the function.

    Machine code is kept on disk by the hash of a kernel. Until Triton 3.8 that hash lists the constants of only those
    callees which were hashed before, so it depended on which kernel was compiled first, and a process compiled anew
    what others had kept. Functions in Triton's interpreter have no hash.
    """
    if not hasattr(type(function), "cache_key"):
        return
    with _HASHING:
        if id(function) in _HASHED:
            return
        _HASHED.add(id(function))  # at once, because functions may call themselves
        for callee in _callees(function.fn):
            hash_in_order(callee)
        _ = function.cache_key


def _callees(function: types.FunctionType) -> Iterator[Any]:
    """What a function may call, by its own names and as an attribute of a module."""
    names, scope = function.__code__.co_names, function.__globals__
    for name in names:
        value = scope.get(name)
        if isinstance(value, types.ModuleType):
            yield from (getattr(value, attribute, None) for attribute in names)
        else:
            yield value


def disassembler() -> pathlib.Path:
    """The path of the ``nvdisasm`` that is part of Triton."""
    return pathlib.Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / "nvdisasm"

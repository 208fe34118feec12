"""Compiled functions by format, or by formats of keys and values. They are compiled at their first use."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..formats import CacheFormat
from . import build, codegen
from .codegen import Side

log = logging.getLogger("innerq_compile.kernels.cpu")

#: A compiled function. Takes packed arguments (``arguments.py``), returns 0 on success.
Function = Callable[[bytes], int]


class SideFunctions(NamedTuple):
    """The functions for one side of a cache."""

    append: Function
    prefill: Function


class PairFunctions(NamedTuple):
    """The functions for keys and values together."""

    append: Function
    decode: Function


_lock = threading.Lock()
# by format, head_dim and dtype; None: compilation failed
_sides: dict[tuple[Any, ...], SideFunctions | None] = {}
_pairs: dict[tuple[Any, ...], PairFunctions | None] = {}
# by what the compiled code depends on
_compiled_sides: dict[Side, SideFunctions] = {}
_compiled_pairs: dict[tuple[Side, Side], PairFunctions] = {}


def compile_formats(
    singles: list[tuple[CacheFormat, int, torch.dtype]],
    pairs: list[tuple[CacheFormat, CacheFormat, int, int, torch.dtype]],
) -> None:
    """Compile the kernels of several formats as one library.

    Args:
        singles: ``(format, head_dim, dtype)`` of sides for which only append and prefill are needed.
        pairs: ``(key format, value format, head_dim, value head_dim, dtype)`` of caches that are also read.
    """
    with _lock:
        _compile(
            [Side.of(*single) for single in singles],
            [(Side.of(k, dim, dtype), Side.of(v, v_dim, dtype)) for k, v, dim, v_dim, dtype in pairs],
        )


def side_functions(fmt: CacheFormat, head_dim: int, dtype: torch.dtype) -> SideFunctions | None:
    """The functions for one cache side; None, with a warning the first time, if compilation fails."""
    key = (fmt.spec, head_dim, dtype)
    try:
        return _sides[key]
    except KeyError:
        side = Side.of(fmt, head_dim, dtype)
        return _found(_sides, key, lambda: _compile([side], []), lambda: _compiled_sides[side])


def pair_functions(
    k_fmt: CacheFormat, v_fmt: CacheFormat, head_dim: int, value_dim: int, dtype: torch.dtype
) -> PairFunctions | None:
    """The functions for keys and values; None, with a warning the first time, if compilation fails."""
    key = (k_fmt.spec, v_fmt.spec, head_dim, value_dim, dtype)
    try:
        return _pairs[key]
    except KeyError:
        pair = (Side.of(k_fmt, head_dim, dtype), Side.of(v_fmt, value_dim, dtype))
        return _found(_pairs, key, lambda: _compile([], [pair]), lambda: _compiled_pairs[pair])


def _found(
    table: dict[tuple[Any, ...], Any], key: tuple[Any, ...], compile: Callable[[], None], functions: Callable[[], Any]
) -> Any:
    """``table[key]``, compiled if it is missing."""
    with _lock:
        if key not in table:
            try:
                compile()
                table[key] = functions()
            except Exception as error:  # whatever the toolchain raises: the reference is used instead
                log.warning("no CPU kernel for %s, plain torch serves instead: %s", key, error)
                table[key] = None
        return table[key]


def _compile(sides: list[Side], pairs: list[tuple[Side, Side]]) -> None:
    """Compile what has not been compiled yet, as one library."""
    pairs = [pair for pair in dict.fromkeys(pairs) if pair not in _compiled_pairs]
    sides = [*sides, *(side for pair in pairs for side in pair)]
    sides = [side for side in dict.fromkeys(sides) if side not in _compiled_sides]
    if not sides and not pairs:
        return
    library = build.load(codegen.source(sides, pairs, build.lanes()))

    def function(name: str) -> Function:
        entry = getattr(library, name)
        entry.argtypes, entry.restype = [ctypes.c_char_p], ctypes.c_int
        return entry

    for i, side in enumerate(sides):
        _compiled_sides[side] = SideFunctions(function(f"append_side_{i}"), function(f"prefill_{i}"))
    for i, pair in enumerate(pairs):
        _compiled_pairs[pair] = PairFunctions(function(f"append_pair_{i}"), function(f"decode_{i}"))

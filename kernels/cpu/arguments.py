"""The arguments of compiled functions, packed as the structs of append.h, prefill.h and masks.h.

All fields are eight bytes. Packing a struct and passing its address takes a microsecond; passing thirty arguments one
by one through ctypes takes ten.
"""

from __future__ import annotations

import struct

from ..cache import Cache

_CACHE = "8q"
APPEND_ONE = struct.Struct("5q" + _CACHE + "5q")
APPEND_TWO = struct.Struct("5q" + 2 * (_CACHE + "5q"))
PREFILL = struct.Struct("4q" + _CACHE + "8q")
DECODE = struct.Struct("2q" + 2 * _CACHE + "19q2d8q")


def cache_fields(cache: Cache) -> tuple[int, ...]:
    """The fields of the ``Cache`` struct of ``cache.h``."""
    codes, profile, fmt = cache.codes, cache.query_profile, cache.format
    return (
        codes.data_ptr(),
        cache.scales.data_ptr(),
        cache.window.data_ptr(),
        cache.state.data_ptr(),
        0 if profile is None else profile.data_ptr(),
        codes.shape[2],
        fmt.sink,
        fmt.recent,
    )


def is_plain(cache: Cache) -> bool:
    """Whether the tensors of a cache side have the memory layout that the kernels require."""
    window = cache.window
    return (
        cache.codes.is_contiguous()
        and cache.scales.is_contiguous()
        and window.is_contiguous()
        and cache.state.is_contiguous()
        and window.shape[2] == cache.format.window
    )


def is_writable(cache: Cache) -> bool:
    """The same of a cache that is to be written to, by which encoders read its query profile."""
    profile = cache.query_profile
    return is_plain(cache) and (not cache.format.uses_queries or (profile is not None and profile.is_contiguous()))

"""Calls of the C++ kernels that write caches: append and prefill."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from .. import reference
from ..backend import Append
from ..cache import Cache
from ..formats import LANES, CacheFormat
from .arguments import APPEND_ONE, APPEND_TWO, PREFILL, cache_fields, is_writable
from .codegen import CPP_TYPES
from .compiled import Function, pair_functions, side_functions


def supports_append(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether ``x [B, H, N, D]`` can be written to a cache by :func:`append_`."""
    return x.dtype in CPP_TYPES and x.shape[3] % LANES == 0


def append_(sides: Sequence[Append], drop: int = 0) -> None:
    """Append new tokens to one or two cache sides, in place. See ``reference.append_``.

    Args:
        sides: ``(cache, new [B, H, N, D])`` of the keys and the values, or of either.
        drop: how many more tokens at the front are hidden afterwards.

    Raises:
        IndexError: if a cache has no room for a block.
    """
    cache, new = sides[0]
    batch, heads, count, head_dim = new.shape
    plain = is_writable(cache) and cache.window.dtype is new.dtype
    function: Function | None = None
    if len(sides) == 1:
        if plain and (functions := side_functions(cache.format, head_dim, new.dtype)) is not None:
            function = functions.append
        pack, fields = APPEND_ONE.pack, ()
    else:
        values, new_value = sides[1]
        plain = plain and is_writable(values) and values.window.dtype is new_value.dtype is new.dtype
        if plain and new_value.shape[:3] == new.shape[:3] and cache.format.is_key and not values.format.is_key:
            pair = pair_functions(cache.format, values.format, head_dim, new_value.shape[3], new.dtype)
            function = None if pair is None else pair.append
        pack, fields = APPEND_TWO.pack, (*cache_fields(values), new_value.data_ptr(), *new_value.stride())
    if function is None:
        for side in sides:
            reference.append_(*side, drop)
        return
    failed = function(
        pack(
            batch,
            heads,
            count,
            torch.get_num_threads(),
            drop,
            *cache_fields(cache),
            new.data_ptr(),
            *new.stride(),
            *fields,
        )
    )
    if failed:
        raise IndexError(f"append_: a cache with room for {cache.codes.shape[2]} blocks is full")


def supports_prefill(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`prefill` can make a cache of ``x [B, H, S, D]``. Compiles its kernel on the first call."""
    return supports_append(fmt, x) and side_functions(fmt, x.shape[3], x.dtype) is not None


def prefill(
    x: torch.Tensor,
    start: torch.Tensor,
    mean: torch.Tensor | None,
    norm: torch.Tensor | None,
    capacity: int,
    fmt: CacheFormat,
    query_profile: torch.Tensor | None = None,
) -> Cache:
    """Make a cache side from a prompt. See ``reference.prefill``; blocks past the end of a sequence are zero.

    Raises:
        IndexError: if ``capacity`` is too small.
    """
    batch, heads, tokens, head_dim = x.shape
    functions = side_functions(fmt, head_dim, x.dtype)
    assert functions is not None, "supports_prefill was not asked"
    cache = reference.empty_cache(fmt, batch, heads, head_dim, capacity, x.dtype, x.device)
    profile = reference.default_profile(fmt, x, norm) if query_profile is None else query_profile.contiguous()
    cache = dataclasses.replace(cache, query_profile=profile, mean=mean, norm=norm)
    start = start.to(torch.int32).contiguous()
    mean = None if mean is None else mean.to(torch.float32).contiguous()
    norm = None if norm is None else norm.to(torch.float32).contiguous()
    arguments = PREFILL.pack(
        batch,
        heads,
        tokens,
        torch.get_num_threads(),
        *cache_fields(cache),
        x.data_ptr(),
        *x.stride(),
        start.data_ptr(),
        0 if mean is None else mean.data_ptr(),
        0 if norm is None else norm.data_ptr(),
    )
    if functions.prefill(arguments):
        raise IndexError(f"prefill: {tokens} tokens do not fit a cache with room for {capacity} blocks")
    return cache

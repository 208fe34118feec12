"""CPU kernels: C++ that Inductor's toolchain compiles on first use, specialised for a pair of formats.

``kernels/ops.py`` calls what this module names. Each function gives what its namesake in ``kernels/reference`` gives,
codes and scales bit for bit, and leaves the call to it where a tensor is not as a kernel wants it (a view, mixed
dtypes).
The files, from the bottom: ``vec.h`` vectors, ``cache.h`` a cache side, ``modes/`` the encoders of modes, ``encode.h``
blocks, ``append.h``, ``prefill.h``, ``decode.h`` attention (on ``contract.h``, ``tokens.h``, ``masks.h``),
``codegen.py`` the constants of a format, ``build.py`` the toolchain.

``INNERQ_CPU_KERNELS=0`` in the environment switches all of it off.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading

import torch

from .. import reference
from ..formats import LANES, CacheFormat
from . import build, codegen
from .codegen import CPP_TYPES, Side

log = logging.getLogger("innerq_compile.kernels.cpu")

Cache = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_MASK_KINDS = {torch.bool: 1, torch.float32: 2, torch.bfloat16: 3, torch.float16: 4}
_NO_STRIDE = (0, 0, 0, 0)

# Argument blocks, as the structs of append.h, prefill.h and masks.h: everything is eight bytes wide. Packing one and
# passing its address costs a microsecond; converting thirty arguments one by one costs ten.
_CACHE = "7q"
_APPEND_ONE = struct.Struct("4q" + _CACHE + "5q")
_APPEND_TWO = struct.Struct("4q" + 2 * (_CACHE + "5q"))
_PREFILL = struct.Struct("4q" + _CACHE + "8q")
_DECODE = struct.Struct("2q" + 2 * _CACHE + "18q2d")

_lock = threading.Lock()
_sides: dict[tuple, tuple | None] = {}  # (spec, head_dim, dtype) -> (append, prefill), None: does not compile
_pairs: dict[tuple, tuple | None] = {}  # (k spec, v spec, head_dim, value head_dim, dtype) -> (append, decode)
_compiled_sides: dict[Side, tuple] = {}
_compiled_pairs: dict[tuple[Side, Side], tuple] = {}
_usable: bool | None = None


def available() -> bool:
    """Whether the kernels can be used here: a C++ compiler is there, and they are not switched off."""
    global _usable
    if _usable is None:
        _usable = os.environ.get("INNERQ_CPU_KERNELS", "1") != "0" and build.compiler_found()
    return _usable


# --- compilation ------------------------------------------------------------------------------------------------


def compile_formats(
    singles: list[tuple[CacheFormat, int, torch.dtype]],
    pairs: list[tuple[CacheFormat, CacheFormat, int, int, torch.dtype]],
) -> None:
    """Compile the kernels of several formats in one go.

    Args:
        singles: ``(format, head_dim, dtype)`` of sides that are only appended to and prefilled.
        pairs: ``(key format, value format, head_dim, value head_dim, dtype)`` of caches that are attended to.
    """
    with _lock:
        _compile(
            [Side.of(*single) for single in singles],
            [(Side.of(k, dim, dtype), Side.of(v, v_dim, dtype)) for k, v, dim, v_dim, dtype in pairs],
        )


def _compile(sides: list[Side], pairs: list[tuple[Side, Side]]) -> None:
    pairs = [pair for pair in dict.fromkeys(pairs) if pair not in _compiled_pairs]
    sides = [*sides, *(side for pair in pairs for side in pair)]
    sides = [side for side in dict.fromkeys(sides) if side not in _compiled_sides]
    if not sides and not pairs:
        return
    library = build.load(codegen.source(sides, pairs, build.lanes()))

    def function(name):
        entry = getattr(library, name)
        entry.argtypes, entry.restype = [ctypes.c_char_p], ctypes.c_int
        return entry

    for i, side in enumerate(sides):
        _compiled_sides[side] = function(f"append_side_{i}"), function(f"prefill_{i}")
    for i, pair in enumerate(pairs):
        _compiled_pairs[pair] = function(f"append_pair_{i}"), function(f"decode_{i}")


def _find(table: dict, key: tuple, sides: tuple[Side, ...]) -> tuple | None:
    """Fill ``table[key]``: the functions of one side or of a pair, None if they cannot be compiled."""
    with _lock:
        if key not in table:
            try:
                if len(sides) == 1:
                    _compile(list(sides), [])
                    table[key] = _compiled_sides[sides[0]]
                else:
                    _compile([], [sides])
                    table[key] = _compiled_pairs[sides]
            except Exception as error:  # whatever a toolchain may raise: slower is better than not at all
                log.warning("no CPU kernel for %s, plain torch serves instead: %s", key, error)
                table[key] = None
        return table[key]


def _side(fmt: CacheFormat, head_dim: int, dtype: torch.dtype) -> tuple | None:
    key = (fmt.spec, head_dim, dtype)
    try:
        return _sides[key]
    except KeyError:
        return _find(_sides, key, (Side.of(fmt, head_dim, dtype),))


def _pair(k_fmt: CacheFormat, v_fmt: CacheFormat, head_dim: int, value_dim: int, dtype: torch.dtype) -> tuple | None:
    key = (k_fmt.spec, v_fmt.spec, head_dim, value_dim, dtype)
    try:
        return _pairs[key]
    except KeyError:
        return _find(_pairs, key, (Side.of(k_fmt, head_dim, dtype), Side.of(v_fmt, value_dim, dtype)))


# --- arguments --------------------------------------------------------------------------------------------------


def _plain(cache: Cache, fmt: CacheFormat) -> bool:
    """Whether the tensors of a cache side lie in memory as the kernels want them."""
    codes, scales, window, state = cache
    return (
        codes.is_contiguous()
        and scales.is_contiguous()
        and window.is_contiguous()
        and state.is_contiguous()
        and window.shape[2] == fmt.window_rows
    )


def _cache_fields(cache: Cache, fmt: CacheFormat) -> tuple[int, ...]:
    """The ``Cache`` struct of ``cache.h``."""
    codes, scales, window, state = cache
    return (
        codes.data_ptr(),
        scales.data_ptr(),
        window.data_ptr(),
        state.data_ptr(),
        codes.shape[2],
        fmt.sink,
        fmt.recent,
    )


# --- append -----------------------------------------------------------------------------------------------------


def supports_append(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether ``x [B, H, N, D]`` can be written to a cache by :func:`append_`."""
    return x.dtype in CPP_TYPES and x.shape[3] % LANES == 0


def append_(sides: tuple[tuple[Cache, torch.Tensor, CacheFormat], ...]) -> None:
    """Write new tokens behind the end of one or two cache sides, in place. See ``reference.append_``.

    Args:
        sides: ``(cache, new [B, H, N, D], format)`` of the keys and the values, or of either.
    """
    (first, new, fmt), second = sides[0], sides[1] if len(sides) == 2 else None
    batch, heads, count, head_dim = new.shape
    plain = _plain(first, fmt) and first[2].dtype is new.dtype
    entry = None
    if second is None:
        entry = _side(fmt, head_dim, new.dtype) if plain else None
        pack, fields = _APPEND_ONE.pack, ()
    else:
        cache2, new2, fmt2 = second
        plain = plain and _plain(cache2, fmt2) and cache2[2].dtype is new2.dtype is new.dtype
        if plain and new2.shape[:3] == new.shape[:3] and fmt.is_key and not fmt2.is_key:
            entry = _pair(fmt, fmt2, head_dim, new2.shape[3], new.dtype)
        pack, fields = _APPEND_TWO.pack, (*_cache_fields(cache2, fmt2), new2.data_ptr(), *new2.stride())
    if entry is None:
        for cache, x, side_fmt in sides:
            reference.append_(*cache, x, side_fmt)
        return
    failed = entry[0](
        pack(
            batch,
            heads,
            count,
            torch.get_num_threads(),
            *_cache_fields(first, fmt),
            new.data_ptr(),
            *new.stride(),
            *fields,
        )
    )
    if failed:
        raise IndexError(f"append_: a cache with room for {first[0].shape[2]} blocks is full")


# --- prefill ----------------------------------------------------------------------------------------------------


def supports_prefill(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`prefill` can make a cache of ``x [B, H, S, D]``."""
    return supports_append(fmt, x) and _side(fmt, x.shape[3], x.dtype) is not None


def prefill(
    x: torch.Tensor,
    start: torch.Tensor,
    mean: torch.Tensor | None,
    norm: torch.Tensor | None,
    capacity: int,
    fmt: CacheFormat,
    query_profile: torch.Tensor | None = None,
) -> Cache:
    """A cache side made of ``x [B, H, S, D]``. See ``reference.prefill``; blocks past a sequence's own end are zero."""
    batch, heads, tokens, head_dim = x.shape
    cache = reference.empty_cache(fmt, batch, heads, head_dim, capacity, x.dtype, x.device)
    reference.set_query_profile_(cache[2], fmt, query_profile, norm)
    start = start.to(torch.int32).contiguous()
    mean = None if mean is None else mean.to(torch.float32).contiguous()
    norm = None if norm is None else norm.to(torch.float32).contiguous()
    entry = _side(fmt, head_dim, x.dtype)
    args = _PREFILL.pack(
        batch,
        heads,
        tokens,
        torch.get_num_threads(),
        *_cache_fields(cache, fmt),
        x.data_ptr(),
        *x.stride(),
        start.data_ptr(),
        0 if mean is None else mean.data_ptr(),
        0 if norm is None else norm.data_ptr(),
    )
    if entry[1](args):
        raise IndexError(f"prefill: {tokens} tokens do not fit a cache with room for {capacity} blocks")
    return cache


# --- decode_attention -------------------------------------------------------------------------------------------


def supports_decode(
    query: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    mask: torch.Tensor | None,
    scale: float,
    causal: bool,
    softcap: float,
    sink_logits: torch.Tensor | None,
    k_fmt: CacheFormat,
    v_fmt: CacheFormat,
) -> bool:
    """Whether :func:`decode_attention` can serve these arguments. Compiles its kernel on the first call."""
    window, v_window = k_cache[2], v_cache[2]
    dtype, head_dim, value_dim = window.dtype, window.shape[3], v_window.shape[3]
    return (
        not _refusal(query, window, v_window, mask)
        and query.shape[3] == head_dim
        and (mask is None or (mask.dim() <= 4 and mask.shape[-1] > 0))
        and _plain(k_cache, k_fmt)
        and _plain(v_cache, v_fmt)
        and _pair(k_fmt, v_fmt, head_dim, value_dim, dtype) is not None
    )


def _refusal(query, window, v_window, mask) -> str:
    """Why dtypes and head_dims keep a call from the kernel, in words; empty if they do not."""
    if window.dtype not in CPP_TYPES:
        return f"no C++ kernel for {window.dtype}"
    if query.dtype is not window.dtype or v_window.dtype is not window.dtype:
        return "query and cache differ in dtype"
    if window.shape[3] % LANES or v_window.shape[3] % LANES:
        return f"head_dim is no multiple of {LANES}"
    if mask is not None and mask.dtype not in _MASK_KINDS:
        return f"no C++ kernel for a mask of {mask.dtype}"
    return ""


def decode_kernel(query, k_window, v_window, mask, k_fmt: CacheFormat, v_fmt: CacheFormat) -> str:
    """Which kernel :func:`decode_attention` takes, and why, see ``ops.decode_kernel``."""
    reason = _refusal(query, k_window, v_window, mask)
    return f"reference: {reason}" if reason else "C++"


def decode_attention(
    query: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    mask: torch.Tensor | None,
    scale: float,
    causal: bool,
    softcap: float,
    sink_logits: torch.Tensor | None,
    k_fmt: CacheFormat,
    v_fmt: CacheFormat,
    open_from: torch.Tensor | None = None,  # the mask is read everywhere
) -> torch.Tensor:
    """Attention of ``query [B, Hq, N, D]`` to all tokens of a cache, ``[B, Hq, N, Dv]`` in the query's dtype.

    See ``reference.decode_attention``. A row that sees nothing gives zero, also where an additive mask of -inf is why.
    """
    batch, q_heads, rows, head_dim = query.shape
    window, v_window = k_cache[2], v_cache[2]
    heads, value_dim = window.shape[1], v_window.shape[3]
    out = query.new_empty((batch, q_heads, rows, value_dim))
    mask_ptr, mask_kind, mask_length, mask_stride = 0, 0, 0, _NO_STRIDE
    if mask is not None:
        mask = mask.expand(batch, q_heads, rows, mask.shape[-1])
        mask_ptr, mask_kind = mask.data_ptr(), _MASK_KINDS[mask.dtype]
        mask_length, mask_stride = mask.shape[3], mask.stride()
    sink_ptr = 0
    if sink_logits is not None:
        sink_logits = sink_logits.to(torch.float32).contiguous()
        sink_ptr = sink_logits.data_ptr()
    entry = _pair(k_fmt, v_fmt, head_dim, value_dim, window.dtype)
    failed = entry[1](
        _DECODE.pack(
            query.data_ptr(),
            out.data_ptr(),
            *_cache_fields(k_cache, k_fmt),
            *_cache_fields(v_cache, v_fmt),
            mask_ptr,
            sink_ptr,
            mask_kind,
            mask_length,
            *mask_stride,
            batch,
            heads,
            q_heads // heads,
            rows,
            *query.stride(),
            causal,
            torch.get_num_threads(),
            scale,
            softcap or 0.0,
        )
    )
    if failed:
        raise MemoryError("decode_attention: no memory for partial results")
    return out
